"""From a workflow as the editor saves it to a prompt as the server takes it, and to what its nodes give."""

from __future__ import annotations

from typing import Any

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTES = {"Note", "MarkdownNote"}


def widget_names(info: dict[str, Any]) -> list[str]:
    """A node's widgets in the order of `widgets_values`; a seed's control has no name."""
    names = []
    for group in ("required", "optional"):
        for name, (kind, *options) in info["input"].get(group, {}).items():
            options = options[0] if options else {}
            if (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput"):
                names += [name, ""] if options.get("control_after_generate") else [name]
    return names


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """`object_info`: the server's answer under that name."""
    sources = {link: [str(node), slot] for link, node, slot, *_ in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        values = dict(zip(widget_names(object_info[node["type"]]), node.get("widgets_values", []), strict=True))
        values.pop("", None)
        linked = {i["name"]: sources[i["link"]] for i in node["inputs"] if i["link"] is not None}
        prompt[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": values | linked,
            "_meta": {"title": node.get("title")},
        }
    return prompt


def outputs_of(prompt: dict[str, Any], node: str, known: dict[str, tuple], classes: dict[str, type]) -> tuple:
    """The outputs of a node, after running it and those before it in this process. known: outputs by node, which fills.
    classes: by `class_type`, as the host has them."""
    if node not in known:
        inputs = {
            name: outputs_of(prompt, value[0], known, classes)[value[1]] if isinstance(value, list) else value
            for name, value in prompt[node]["inputs"].items()
        }
        kind = classes[prompt[node]["class_type"]]
        made = getattr(kind(), kind.FUNCTION)(**inputs)
        known[node] = getattr(made, "args", made)
    return known[node]
