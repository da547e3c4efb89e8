"""A server with a policy, through its API alone: what comes out of graphs, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_kit import ROOT, Server, running_server

pytestmark = [pytest.mark.oldest, pytest.mark.slow]
# A pack that samples by itself: it calls the model's own method, past the host's guiders.
PACK = """
import torch

class OwnSampler:
    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "sample", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "positive": ("CONDITIONING",), "latent": ("LATENT",)}}

    def sample(self, model, positive, latent):
        import comfy.model_management
        comfy.model_management.load_models_gpu([model])
        x = torch.randn(latent["samples"].shape)
        return ({"samples": model.model.apply_model(x, torch.ones(len(x)), c_crossattn=positive[0][0])},)

NODE_CLASS_MAPPINGS = {"OwnSampler": OwnSampler}
"""


def _server(comfyui: Path, base: Path, policy: str) -> Any:
    (base / "user").mkdir()
    (base / "user/safecfg_policy.json").write_text(policy)
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes/own_sampler.py").write_text(PACK)
    return running_server(comfyui, base)


@pytest.fixture(scope="module")
def policed(comfyui_path, tmp_path_factory) -> Iterator[Server]:
    with _server(comfyui_path, tmp_path_factory.mktemp("policed"), '{"audit": "with text"}') as server:
        yield server


def _error(server: Server, graph: dict[str, Any]) -> str:
    """The error of the only node that fails; empty if the graph ran to its end."""
    history = server.run(graph)
    errors = [body for kind, body in history["status"]["messages"] if kind == "execution_error"]
    return errors[0]["exception_message"] if errors else ""


def _graph(text: str, **others: dict[str, Any]) -> dict[str, Any]:
    """The demo model and a KSampler of one step, with other nodes or some in their place."""
    sampling = {"seed": 0, "steps": 1, "cfg": 7.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": ["1", 0], "positive": ["4", 0], "negative": ["5", 0], "latent_image": ["6", 0]}
    return {
        "1": _node("SafeCFGDemoModel"),
        "4": _node("CLIPTextEncode", clip=["1", 1], text=text),
        "5": _node("CLIPTextEncode", clip=["1", 1], text=""),
        "6": _node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "7": _node("KSampler", **links, **sampling),
        "8": _node("VAEDecode", samples=["7", 0], vae=["1", 2]),
        "9": _node("PreviewImage", images=["8", 0]),
    } | others


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def test_verify_says_that_the_policy_holds(policed):
    """As an operator calls it."""
    words = [sys.executable, "-m", "hgr", "policy", "verify", "--server", policed.url]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "The policy holds." in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("skull in ") + done.stdout.count("left out") == 10
    assert "SafeCFG policy in force" in policed.log.read_text()


def test_a_pack_that_samples_by_itself_is_refused(policed):
    own = {"7": _node("OwnSampler", model=["1", 0], positive=["4", 0], latent=["6", 0])}
    assert "this node samples by itself" in _error(policed, _graph("a ball", **own))


def test_a_second_pass_is_no_start_picture_but_an_upload_is(policed):
    from PIL import Image

    again = _graph("a ball")["7"]["inputs"] | {"latent_image": ["7", 0], "denoise": 0.5}
    graph = _graph("a ball", **{"10": _node("KSampler", **again)})
    graph["8"]["inputs"]["samples"] = ["10", 0]
    assert _error(policed, graph) == ""
    (policed.base / "input").mkdir(exist_ok=True)
    Image.new("RGB", (128, 128), "red").save(policed.base / "input/mine.png")
    graph |= {"11": _node("LoadImage", image="mine.png"), "12": _node("VAEEncode", pixels=["11", 0], vae=["1", 2])}
    graph["7"]["inputs"]["latent_image"] = ["12", 0]
    assert '("image_to_image")' in _error(policed, graph)


def test_graphs_cannot_save_an_hgr_for_an_auto_policy(policed):
    hgr = _node("SafeCFGHGRLoader", hgr_name="safecfg_demo (bundled)")
    graph = {"1": hgr, "2": _node("SafeCFGSaveHGR", hgr=["1", 0], name="mine")}
    assert "graphs may not save one" in _error(policed, graph)


def test_the_route_shows_the_policy_without_paths(policed):
    told = policed.json("/safecfg/policy")
    assert told["policy"]["hgr"] == ["safecfg_demo (bundled)"] and not told["fault"] and not told["changed"]
    assert str(policed.base) not in json.dumps(told)


def test_the_audit_log_knows_the_graph(policed):
    _error(policed, _graph("a skull above a red ball"))
    line = json.loads((policed.base / "user/safecfg_audit.jsonl").read_text().splitlines()[-1])
    assert (line["node"], line["decision"], line["concepts"]) == ("7", "redirected", ["skull"])
    assert line["prompt_id"] and "a skull above a red ball" in line["text"]


def test_a_broken_policy_stops_the_packs_load_and_says_so(comfyui_path, tmp_path):
    with _server(comfyui_path, tmp_path, '{"strength": 7}') as server:
        told = server.json("/safecfg/policy")
        assert told["policy"] is None and "strength is 7" in told["fault"]
        assert "SafeCFG POLICY: safecfg_policy.json: strength is 7" in server.log.read_text()
        assert not [name for name in server.json("/object_info") if name.startswith("SafeCFG")]
        with pytest.raises(urllib.error.HTTPError):
            server.queue(_graph("a ball"))


def test_pictures_are_judged_before_they_are_shown(comfyui_path, tmp_path):
    """The policy's redirection is next to nothing here, so that there is something to judge."""
    import numpy as np

    demo = "safecfg_demo (bundled)"
    policy = {"strength": 0.05, "pictures": "blank", "judge": {"checkpoint": demo, "hgr": demo}}
    with _server(comfyui_path, tmp_path, json.dumps(policy)) as server:
        shown = {}
        for text in ("a skull next to a red ball in a meadow", "a red ball in a meadow"):
            graph = _graph(text)
            graph["6"]["inputs"]["batch_size"], graph["7"]["inputs"]["steps"] = 2, 12
            (output,) = server.run(graph)["outputs"].values()
            shown[text] = [np.asarray(server.picture(file)).std() for file in output["images"]]
        harmful, clean = shown.values()
        assert 0 in harmful and 0 not in clean, shown
        assert "picture blanked (" in server.log.read_text()
        graph["10"] = _node("SaveLatent", samples=["7", 0], filename_prefix="mine")
        assert "latents are not saved" in _error(server, graph)
