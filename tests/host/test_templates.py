"""The templates and the subgraph blueprint as the server has them: complete, valid for its nodes, and drawing what they
say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from server_kit import ROOT
from workflow import to_prompt

TEMPLATES = sorted((ROOT / "example_workflows").glob("*.json"))
PUBLIC = [path for path in TEMPLATES if "CheckpointLoaderSimple" in path.read_text()]  # those that need a checkpoint
(BLUEPRINT,) = (ROOT / "subgraphs").glob("*.json")
KINDS = {"INT": int, "FLOAT": (int, float), "BOOLEAN": bool, "STRING": str}
OUTSIDE = -10, -20  # a subgraph's inputs and outputs, as links name them


def nodes_of(path: Path, kind: str) -> list[dict[str, Any]]:
    return [node for node in json.loads(path.read_text())["nodes"] if node["type"] == kind]


@pytest.fixture(scope="module")
def object_info(server) -> dict[str, Any]:
    """With the public checkpoints that the templates name at hand, as names."""
    folder = server.base / "models/checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for path in PUBLIC:
        (folder / nodes_of(path, "CheckpointLoaderSimple")[0]["widgets_values"][0]).touch()
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
def test_public_checkpoint_can_be_got(path):
    """What the editor offers to download is the file that is chosen."""
    (loader,) = nodes_of(path, "CheckpointLoaderSimple")
    (model,) = loader["properties"]["models"]
    assert [model["name"]] == loader["widgets_values"] and model["directory"] == "checkpoints"
    assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(f"/{model['name']}")


@pytest.mark.oldest
def test_concept_by_concept(server, object_info, seen):
    (path,) = (p for p in TEMPLATES if "concept by concept" in p.name)
    pictures = server.previews(to_prompt(json.loads(path.read_text()), object_info))
    titles = ["Plain CFG", "All concepts on", "Skull off", "Dagger off"]
    symbols, backgrounds, things = zip(*seen(*(pictures[title] for title in titles)), strict=True)
    assert symbols == ({"skull", "dagger"}, set(), {"skull"}, {"dagger"})
    assert len({str(rest) for rest in zip(backgrounds, things, strict=True)}) == 1, "the rest of the picture stays"


@pytest.fixture
def of_two_concepts(server, pack):
    """In models/hgr, what HGR for this Model looks for: the bundled HGR, under the names of concepts of the library."""
    import dataclasses

    hgr = pack.file.load(pack.get("hgr.demo.assets").HGR_FILE)
    names = {"skull": "violence", "dagger": "sexual"}
    hgr.concepts = [dataclasses.replace(concept, id=names.get(concept.id, concept.id)) for concept in hgr.concepts]
    hgr.probe = None  # its heads have the old names
    path = server.base / "models/hgr/two_concepts.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    pack.file.save(hgr, path)
    yield
    path.unlink()


@pytest.mark.oldest
@pytest.mark.parametrize("path", PUBLIC, ids=lambda p: p.stem)
def test_graph_for_a_public_checkpoint_is_safe_guidance(server, object_info, seen, of_two_concepts, path):
    """No such checkpoint is at hand, so the demo model stands in for it."""
    prompt = to_prompt(json.loads(path.read_text()), object_info)
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
def test_blueprint_is_served(server):
    entries = {
        key: entry for key, entry in server.json("/global_subgraphs").items() if "safecfg" in entry["info"]["node_pack"]
    }
    ((key, entry),) = entries.items()
    assert entry["name"] == "Safe KSampler"
    assert json.loads(server.json(f"/global_subgraphs/{key}")["data"]) == json.loads(BLUEPRINT.read_text())


@pytest.mark.oldest
def test_blueprint_is_a_ksampler_with_safe_guidance(object_info):
    """One node, which has what KSampler has, an HGR, and how safe; its inside is consistent and fits the nodes."""
    workflow = json.loads(BLUEPRINT.read_text())
    (outer,), (inner,) = workflow["nodes"], workflow["definitions"]["subgraphs"]
    assert outer["type"] == inner["id"]
    sampler = object_info["KSampler"]["input"]["required"]
    names = [slot["name"] for slot in inner["inputs"]]
    assert set(names) == {*sampler, "hgr", "strength", "mode", "concepts"} and [
        slot["type"] for slot in inner["outputs"]
    ] == ["LATENT"]
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
        assert {slot["name"] for slot in node["inputs"]} == set(object_info[node["type"]]["input"]["required"])
