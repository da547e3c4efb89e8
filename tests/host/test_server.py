"""The pack in a running server: what the editor is told, the example workflows, and errors that leave it running."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from datetime import datetime
from itertools import combinations
from typing import Any

import pytest
from server_kit import NODES, ROOT, Server
from workflow import to_prompt

EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
# those that show plain CFG beside SafeCFG, and nothing else
GUIDING = [path for path in EXAMPLES if path.stem.startswith(("SafeCFG quick start", "SafeCFG with a guider", "Train"))]
# a training that takes seconds: it need not tell rare wordings apart, and nobody asks its probe
_SHORTER = {"SafeCFGConceptPairs": {"limit": 150}, "SafeCFGTrainHGR": {"steps": 150, "pictures": 16}}


def _quick_start(object_info) -> tuple[dict[str, Any], dict[str, Any]]:
    """The prompt of the quick start, one step long, and the inputs of its SafeCFG node."""
    (path,) = (p for p in EXAMPLES if "quick start" in p.name)
    prompt = to_prompt(json.loads(path.read_text()), object_info)
    for node in prompt.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 1
    (safe,) = (node["inputs"] for node in prompt.values() if node["class_type"] == "SafeCFGModel")
    return prompt, safe


@pytest.mark.oldest
@pytest.mark.parametrize("node_id", NODES)
def test_nodes_as_the_editor_sees_them(object_info, node_id):
    """Names, order and types are the contract; every input has a tooltip."""
    display_name, inputs, outputs = NODES[node_id]
    info = object_info[node_id]
    assert (info["display_name"], info["category"], info["output"]) == (display_name, "SafeCFG", outputs)
    given = info["input"].get("required", {}) | info["input"].get("optional", {})
    assert list(given) == inputs
    for name, (_, options) in given.items():
        assert len(options["tooltip"]) > 20, name


@pytest.mark.oldest
def test_every_node_of_the_pack_has_tooltips(object_info):
    for node_id, info in object_info.items():
        if info["category"].startswith("SafeCFG"):
            for group in ("required", "optional"):
                for name, (_, *options) in info["input"].get(group, {}).items():
                    assert options and options[0].get("tooltip"), f"{node_id}: {name}"


ABOUT = "/safecfg/hgr/"


def _answer(server: Server, path: str, method: str = "GET") -> tuple[int, Any]:
    """Status and JSON, or text, of an answer."""
    request = urllib.request.Request(server.url + path, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        return error.code, json.loads(text) if "json" in error.headers.get("Content-Type", "") else text


@pytest.mark.oldest
def test_route_says_what_an_hgr_file_holds(server):
    status, about = _answer(server, ABOUT + urllib.parse.quote("safecfg_demo (bundled)"))
    assert status == 200 and list(about) == ["name", "concepts", "encoder", "training", "library", "probe", "date"]
    assert [concept["id"] for concept in about["concepts"]] == ["skull", "dagger", "splatter", "bomb", "nightmare"]
    assert all(list(concept) == ["id", "label", "description", "threshold"] for concept in about["concepts"])
    assert about["probe"] is True and "demo" in about["encoder"] and datetime.fromisoformat(about["date"])


@pytest.mark.oldest
def test_route_names_what_is_wrong_with_a_file(server):
    (server.base / "models/hgr").mkdir(parents=True, exist_ok=True)
    (server.base / "models/hgr/damaged.safetensors").write_bytes(b"not an HGR")
    status, answer = _answer(server, ABOUT + "damaged.safetensors")
    assert status == 422 and answer["error"].startswith("damaged.safetensors: not an HGR file")
    status, answer = _answer(server, ABOUT + "unknown.safetensors")
    assert status == 404 and '"unknown.safetensors" is not in models/hgr' in answer["error"]


@pytest.mark.oldest
def test_route_reads_nothing_outside_the_folder(server):
    """A sound HGR beside the folder is not found by any path, and nothing can be sent."""
    outside = server.base / "models/outside.safetensors"
    outside.write_bytes((ROOT / "hgr/demo/safecfg_demo.safetensors").read_bytes())
    for name in (
        "../outside.safetensors",
        "%2e%2e%2foutside.safetensors",
        "..%2Foutside.safetensors",
        "x/../../outside.safetensors",
        "%2e%2e%5coutside.safetensors",
        str(outside),
        urllib.parse.quote(str(outside), safe=""),
        "%00",
        "..",
        ".",
    ):
        status, answer = _answer(server, ABOUT + name)
        assert status == 404 and "skull" not in str(answer), name
    assert [_answer(server, ABOUT + "safecfg_demo%20(bundled)", method)[0] for method in ("POST", "PUT", "DELETE")] == [
        405
    ] * 3


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=() if "Train" in path.name else pytest.mark.oldest) for path in GUIDING],
)
def test_example_workflow_removes_the_symbol_and_leaves_a_clean_prompt_alone(server, object_info, seen, path):
    """The promise of the pack, as shipped but for a shorter training: loaded, queued, and looked at by the classifier
    that knows the truth."""
    prompt = to_prompt(json.loads(path.read_text()), object_info)
    for node in prompt.values():
        node["inputs"] |= _SHORTER.get(node["class_type"], {})
    pictures = server.previews(prompt)
    assert sorted(pictures) == ["Plain CFG", "SafeCFG"]
    assert {picture.size for picture in pictures.values()} == {(128, 128)}
    plain, safe = seen(pictures["Plain CFG"], pictures["SafeCFG"])
    assert plain[0] == {"skull"} and safe[0] == set() and plain[1:] == safe[1:]

    (harmful,) = (node["inputs"] for node in prompt.values() if "skull" in str(node["inputs"].get("text")))
    harmful["text"] = "a red ball next to a blue house in a meadow"
    clean = server.previews(prompt)
    assert clean["Plain CFG"].tobytes() == clean["SafeCFG"].tobytes() != pictures["SafeCFG"].tobytes()


def test_a_model_that_is_aligned_leaves_the_symbol_out(server, object_info, seen):
    """As shipped: with only the LoRA, the same objects without the skull; the LoRA is a file that the host's loaders
    list."""
    (path,) = (p for p in EXAMPLES if "Align" in p.name)
    pictures = server.previews(to_prompt(json.loads(path.read_text()), object_info))
    for kind, symbols in (("Harmful", {"skull"}), ("Clean", set())):
        before, after = seen(*(pictures[f"{kind} prompt: {side}"] for side in ("original", "with the LoRA")))
        assert before[0] == symbols and after[0] == set() and before[1:] == after[1:], kind
    loader = server.json("/object_info/LoraLoader")["LoraLoader"]
    assert any("demo_aligned" in name for name in loader["input"]["required"]["lora_name"][0])


@pytest.mark.oldest
def test_detect_then_decide(server, object_info):
    """As shipped: the flagged prompt is never sampled, the flagged picture is blurred. Without the symbols: the
    sampler's pictures."""
    (path,) = (p for p in EXAMPLES if "Detect" in p.name)
    prompt = to_prompt(json.loads(path.read_text()), object_info)
    by_title = {node["_meta"]["title"]: (number, node["inputs"]) for number, node in prompt.items()}
    sampler = by_title["KSampler (skipped where flagged)"][1]
    (hgr,) = (number for number, node in prompt.items() if node["class_type"] == "SafeCFGHGRLoader")
    working, broken = (
        sampler["model"],
        {
            "model": sampler["model"],
            "hgr": [hgr, 0],
            "strength": 1.0,
            "mode": "redirect",
            "concepts": "broken",
            "start_percent": 0.0,
            "end_percent": 1.0,
        },
    )
    prompt["broken"] = {"class_type": "SafeCFGModel", "inputs": broken, "_meta": {"title": "broken"}}
    sampler["model"] = ["broken", 0]  # an error where it is run
    pictures = server.previews(prompt)
    assert {"Judge the prompt", "Judge the picture"} < set(pictures), "the charts are on the nodes"
    assert pictures["After the prompt check"].getcolors() == [(128 * 128, (0x3B, 0x42, 0x52))]
    before, after = (_lines(pictures[title]) for title in ("Before", "After the picture check"))
    assert after < 0.4 * before

    by_title["Prompt"][1]["value"] = "a red ball next to a blue house in a meadow"
    assert server.run(prompt)["status"]["status_str"] == "error", "a clean prompt is sampled"
    by_title["Prompt for another picture"][1]["text"] = "a green tree on a beach"
    sampler["model"] = working
    unfiltered = by_title["Placeholder where flagged"][1]["image"]
    prompt["plain"] = {"class_type": "PreviewImage", "inputs": {"images": unfiltered}, "_meta": {"title": "Plain"}}
    pictures = server.previews(prompt)
    assert pictures["After the prompt check"].tobytes() == pictures["Plain"].tobytes()
    assert pictures["After the picture check"].tobytes() == pictures["Before"].tobytes()


def _lines(picture: Any) -> float:
    """How much neighbouring pixels of a PIL image differ."""
    import numpy as np

    pixels = np.asarray(picture.convert("RGB"), dtype=float)
    return abs(np.diff(pixels, axis=0)).mean() + abs(np.diff(pixels, axis=1)).mean()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example_workflow_is_laid_out(path):
    """No node overlaps another, and links say the same at both ends."""
    workflow = json.loads(path.read_text())
    title = 30  # pixels above a node's position
    places = [(*node["pos"], *node["size"]) for node in workflow["nodes"]]
    boxes = [(x, y - title, x + width, y + height) for x, y, width, height in places]
    for a, b in combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], f"{a} overlaps {b}"
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, slot, target, place, kind in workflow["links"]:
        assert number in nodes[source]["outputs"][slot]["links"] and nodes[source]["outputs"][slot]["type"] == kind
        assert nodes[target]["inputs"][place]["link"] == number and nodes[target]["inputs"][place]["type"] in (
            kind,
            "*",
        )
    assert workflow["last_node_id"] == max(nodes) and workflow["version"] == 0.4


@pytest.mark.oldest
def test_a_bad_prompt_fails_and_the_next_one_runs(server, object_info):
    prompt, safe = _quick_start(object_info)
    safe["concepts"] = "{skull: 0}"
    status = server.run(prompt)["status"]
    (error,) = (body for kind, body in status["messages"] if kind == "execution_error")
    assert status["status_str"] == "error"
    assert error["node_type"] == "SafeCFGModel" and error["exception_message"].startswith("concepts is not valid JSON")
    safe["concepts"] = '{"skull": 0.5}'
    assert server.run(prompt)["status"]["status_str"] == "success"


@pytest.mark.oldest
def test_an_unknown_hgr_is_refused_before_the_graph_runs(server, object_info):
    prompt, _ = _quick_start(object_info)
    (number,) = (key for key, node in prompt.items() if node["class_type"] == "SafeCFGHGRLoader")
    prompt[number]["inputs"]["hgr_name"] = "../secret.safetensors"
    (error,) = server.queue(prompt)["node_errors"][number]["errors"]
    assert 'HGR "../secret.safetensors" is not in models/hgr.' in error["details"]


@pytest.mark.oldest
def test_what_is_saved_while_the_server_runs_is_listed_by_the_loader(server, object_info):
    (path,) = (p for p in EXAMPLES if "Train" in p.name)
    prompt = to_prompt(json.loads(path.read_text()), object_info)
    training, saving = (
        node["inputs"]
        for kind in ("SafeCFGTrainHGR", "SafeCFGSaveHGR")
        for node in prompt.values()
        if node["class_type"] == kind
    )
    training |= {"losses": "text", "steps": 20, "batch_size": 4, "pictures": 0}
    saving["name"] = "saved while running"
    history = server.run(
        {
            key: node
            for key, node in prompt.items()
            if node["class_type"]
            in (
                "SafeCFGDemoModel",
                "SafeCFGConceptPairs",
                "EmptyLatentImage",
                "SafeCFGTrainHGR",
                "SafeCFGSaveHGR",
                "PreviewAny",
            )
        }
    )
    assert history["status"]["status_str"] == "success", history["status"]
    names = server.json("/object_info/SafeCFGHGRLoader")["SafeCFGHGRLoader"]["input"]["required"]["hgr_name"]
    assert "saved while running.safetensors" in str(names)
    assert "clean prompts that it was not trained on" in str(history["outputs"])
