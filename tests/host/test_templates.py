"""The templates and the subgraph blueprint as the server has them: complete, valid for its nodes, and drawing what they
say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from server_kit import ROOT, with_library_concepts
from workflow import outputs_of, to_prompt

TEMPLATES = sorted((ROOT / "example_workflows").glob("*.json"))
PUBLIC = [path for path in TEMPLATES if "SafeCFGDemoModel" not in path.read_text()]  # those that need files
CHECKPOINT = ROOT / "example_workflows/SafeCFG for your checkpoint.json"
# The family of `families.py` that each of the others is for.
FAMILY = {
    "SafeCFG for Flux": "flux",
    "SafeCFG for SD 3.5": "sd3",
    "SafeCFG for Qwen-Image": "qwen",
    "SafeCFG for Wan (video)": "wan",
}
(BLUEPRINT,) = (ROOT / "subgraphs").glob("*.json")
KINDS = {"INT": int, "FLOAT": (int, float), "BOOLEAN": bool, "STRING": str}
OUTSIDE = -10, -20  # a subgraph's inputs and outputs, as links name them


def models_of(node: dict[str, Any]) -> list[dict[str, str]]:
    """The files that the editor offers to download for this node of a workflow: name, url, directory."""
    return node["properties"].get("models", [])


@pytest.fixture(scope="module")
def object_info(server) -> dict[str, Any]:
    """With the files that the templates name at hand, as names."""
    for node in (node for path in PUBLIC for node in json.loads(path.read_text())["nodes"]):
        for model in models_of(node):
            folder = server.base / "models" / model["directory"]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / model["name"]).touch()
    return server.json("/object_info")


def invalid(prompt: dict[str, Any], object_info: dict[str, Any]) -> list[str]:
    """The values that a node's inputs do not take."""
    found = []
    for node in prompt.values():
        inputs = object_info[node["class_type"]]["input"]
        for name, (kind, *options) in (inputs.get("required", {}) | inputs.get("optional", {})).items():
            value, options = node["inputs"].get(name), options[0] if options else {}
            if value is None or isinstance(value, list):
                continue  # nothing, or a link
            if isinstance(kind, list) or kind == "COMBO":
                good = value in (kind if isinstance(kind, list) else options["options"])
            else:
                good = isinstance(value, KINDS[kind]) and options.get("min", value) <= value <= options.get(
                    "max", value
                )
            if not good:
                found.append(f"{node['class_type']}.{name}: {value!r}")
    return found


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.stem)
def test_template_has_a_small_thumbnail(path):
    from PIL import Image

    picture = path.with_suffix(".jpg")
    assert picture.stat().st_size < 150_000
    with Image.open(picture) as image:
        assert image.format == "JPEG" and min(image.size) >= 256


@pytest.mark.oldest
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.stem)
def test_template_fits_the_nodes_of_this_comfyui(object_info, path):
    """Every node exists, has a value for each widget and no other, and each value is one that it takes."""
    prompt = to_prompt(json.loads(path.read_text()), object_info)
    assert not invalid(prompt, object_info)
    for node in prompt.values():
        inputs = object_info[node["class_type"]]["input"]
        assert (
            set(inputs.get("required", {}))
            <= set(node["inputs"])
            <= set(inputs.get("required", {})) | set(inputs.get("optional", {}))
        )


@pytest.mark.parametrize("path", PUBLIC, ids=lambda p: p.stem)
def test_public_models_can_be_got(path):
    """What the editor offers to download are the files that are chosen, and the note says where they go."""
    nodes = json.loads(path.read_text())["nodes"]
    notes = "".join(node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote")
    assert any(map(models_of, nodes))
    for node in nodes:
        chosen = [value for value in node.get("widgets_values", []) if str(value).endswith(".safetensors")]
        assert [model["name"] for model in models_of(node)] == chosen
        for model in models_of(node):
            assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(f"/{model['name']}")
            assert path == CHECKPOINT or f"| [{model['name']}]({model['url']}) | {model['directory']} |" in notes


@pytest.mark.oldest
def test_concept_by_concept(server, object_info, seen):
    (path,) = (p for p in TEMPLATES if "concept by concept" in p.name)
    pictures = server.previews(to_prompt(json.loads(path.read_text()), object_info))
    titles = ["Plain CFG", "All concepts on", "Skull off", "Dagger off"]
    symbols, backgrounds, things = zip(*seen(*(pictures[title] for title in titles)), strict=True)
    assert symbols == ({"skull", "dagger"}, set(), {"skull"}, {"dagger"})
    assert len({str(rest) for rest in zip(backgrounds, things, strict=True)}) == 1, "the rest of the picture stays"


def test_a_concept_of_ones_own_joins_those_of_another_hgr(server, object_info, seen, pack):
    """Trained, merged and drawn as the template is shipped."""
    path = ROOT / "example_workflows/Add a concept of your own.json"
    pictures = server.previews(to_prompt(json.loads(path.read_text()), object_info))
    symbols, _, things = zip(*seen(*(pictures[t] for t in ("Plain CFG", "Bundled HGR", "Merged HGR"))), strict=True)
    world = pack.get("hgr.demo.world")
    cars = {world.SHAPES.index("car") * len(world.COLOURS) + i + 1 for i in range(len(world.COLOURS))}
    assert symbols == ({"bomb"}, set(), set())
    assert [not cars.isdisjoint(some) for some in things] == [True, True, False]


@pytest.fixture
def of_two_concepts(server, pack):
    """In models/hgr, what HGR for this Model looks for."""
    hgr = with_library_concepts(pack.file.load(pack.get("hgr.demo.assets").HGR_FILE))
    path = server.base / "models/hgr/two_concepts.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    pack.file.save(hgr, path)
    yield
    path.unlink()


@pytest.fixture
def hgr_folder(pack, tmp_path, monkeypatch):
    """An empty models/hgr, in this process."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "hgr", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


@pytest.mark.oldest
def test_graph_for_a_checkpoint_is_safe_guidance(server, object_info, seen, of_two_concepts):
    """No such checkpoint is at hand, so the demo model stands in for it."""
    prompt = to_prompt(json.loads(CHECKPOINT.read_text()), object_info)
    for node in prompt.values():
        node["inputs"] |= {name: 128 for name in ("width", "height") if name in node["inputs"]}
        if node["class_type"] == "CheckpointLoaderSimple":
            node |= {"class_type": "SafeCFGDemoModel", "inputs": {}}
    positive, _ = (node["inputs"] for node in prompt.values() if node["class_type"] == "CLIPTextEncode")
    positive["text"] = "a red ball next to a blue house in a meadow with a skull above"
    (safe,) = (node["inputs"] for node in prompt.values() if node["class_type"] == "SafeCFGModel")
    (on,) = server.previews(prompt).values()
    safe["strength"] = 0.0
    (off,) = server.previews(prompt).values()
    assert [symbols for symbols, *_ in seen(on, off)] == [set(), {"skull"}]


@pytest.mark.oldest
@pytest.mark.parametrize("name", FAMILY)
def test_graph_for_a_family_is_safe_guidance(object_info, pack, hgr_folder, name):
    """No such files are at hand, so a small model of that family with random weights stands in for them. In models/hgr
    lies an HGR for it with both concepts, one of which fires on one of two prompts."""
    import asyncio
    import dataclasses

    import families
    import torch
    from host_kit import made_up_hgr

    import nodes

    family = families.FAMILIES[FAMILY[name]]()
    scene = "a photo of a {} on the wooden table next to a small red house in the meadow, bright picture"
    harmful, clean = scene.format("bomb"), scene.format("cat")
    given = {key: getattr(family, key) for key in ("chunk", "fixed_start", "pooled_dim")}
    hgr = made_up_hgr(pack, *map(family.encode, (harmful, clean, "")), **given)
    hgr.concepts = [
        dataclasses.replace(concept, id=id) for concept, id in zip(hgr.concepts, ("violence", "sexual"), strict=True)
    ]
    pack.file.save(hgr, hgr_folder / "mine.safetensors", torch.float32)

    asyncio.run(nodes.init_builtin_extra_nodes())
    own = pack.get("nodes.model_hgr").SafeCFGModelHGR, pack.guide.SafeCFGModel
    classes = nodes.NODE_CLASS_MAPPINGS | {node.define_schema().node_id: node for node in own}
    prompt = to_prompt(json.loads((ROOT / f"example_workflows/{name}.json").read_text()), object_info)
    kinds = {node["class_type"]: number for number, node in prompt.items()}
    known = {number: (family.clip,) for kind, number in kinds.items() if "CLIPLoader" in kind}
    known |= {kinds[kind]: (family.model,) for kind in ("UNETLoader", "CheckpointLoaderSimple") if kind in kinds}
    (latent,) = (node["inputs"] for node in prompt.values() if "width" in node["inputs"])
    latent |= {"width": 64, "height": 64} | ({"length": 5} if "length" in latent else {})
    (positive,) = (node["inputs"] for node in prompt.values() if node["_meta"]["title"] == "Prompt")
    safe, sampler = (prompt[kinds[kind]]["inputs"] for kind in ("SafeCFGModel", "KSampler"))
    sampler["steps"] = 2

    def drawn(text: str, strength: float) -> torch.Tensor:
        positive["text"], safe["strength"] = text, strength
        return outputs_of(prompt, kinds["KSampler"], dict(known), classes)[0]["samples"]

    assert torch.equal(drawn(clean, 1.0), drawn(clean, 0.0))
    plain = drawn(harmful, 0.0)
    assert (drawn(harmful, 1.0) - plain).abs().mean() > 0.005 * plain.std()
    assert [path.name for path in hgr_folder.iterdir()] == ["mine.safetensors"], "nothing was trained"


@pytest.mark.oldest
def test_blueprint_is_served(server):
    entries = {
        key: entry for key, entry in server.json("/global_subgraphs").items() if "safecfg" in entry["info"]["node_pack"]
    }
    ((key, entry),) = entries.items()
    assert entry["name"] == "Safe KSampler"
    assert json.loads(server.json(f"/global_subgraphs/{key}")["data"]) == json.loads(BLUEPRINT.read_text())


@pytest.mark.oldest
def test_blueprint_is_a_ksampler_with_safe_guidance(object_info):
    """One node, which has what KSampler has, the text encoder and concepts of HGR for this Model, and how safe; its
    inside is consistent and fits the nodes."""
    workflow = json.loads(BLUEPRINT.read_text())
    (outer,), (inner,) = workflow["nodes"], workflow["definitions"]["subgraphs"]
    assert outer["type"] == inner["id"]
    sampler = object_info["KSampler"]["input"]["required"]
    found = set(object_info["SafeCFGModelHGR"]["input"]["required"]) - {"quality", "prefix"}
    assert {slot["name"] for slot in inner["inputs"]} == {*sampler, *found, "strength", "mode", "concepts"}
    assert [slot["type"] for slot in inner["outputs"]] == ["LATENT"]
    assert [(slot["name"], slot["type"]) for slot in outer["inputs"]] == [
        (slot["name"], slot["type"]) for slot in inner["inputs"]
    ]

    nodes = {node["id"]: node for node in inner["nodes"]}
    for link in inner["links"]:
        source, target = link["origin_id"], link["target_id"]
        out = (
            inner["inputs"][link["origin_slot"]] if source in OUTSIDE else nodes[source]["outputs"][link["origin_slot"]]
        )
        into = (
            inner["outputs"][link["target_slot"]] if target in OUTSIDE else nodes[target]["inputs"][link["target_slot"]]
        )
        assert link["id"] in (out["linkIds"] if source in OUTSIDE else out["links"])
        assert link["id"] in (into["linkIds"] if target in OUTSIDE else [into["link"]])
        assert out["type"] == into["type"] == link["type"]
        assert source not in OUTSIDE or out["name"] == into["name"]
    assert not invalid(
        to_prompt({"nodes": [node | {"inputs": []} for node in inner["nodes"]], "links": []}, object_info), object_info
    )
    for node in nodes.values():
        inputs = object_info[node["type"]]["input"]
        required = set(inputs["required"])
        assert required <= {slot["name"] for slot in node["inputs"]} <= required | set(inputs.get("optional", {}))
