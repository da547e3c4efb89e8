"""What a user of a server with a policy sees in the editor: the shield, and why a graph is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from server_kit import running_server

pytestmark = pytest.mark.slow
# The demo model under another name: of a pack whose nodes are there when this one's are not.
PACK = """
import importlib, sys

class AnotherPacksModel:
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP", "VAE"), "load", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def load(self):
        room = next(name for name in sys.modules if name.endswith(".hgr.hosts.comfy.policy")).rpartition(".")[0]
        return importlib.import_module(room + ".demo").load_demo_model()

NODE_CLASS_MAPPINGS = {"AnotherPacksModel": AnotherPacksModel}
"""


@contextmanager
def opened(kit: Any, chromium: Any, comfyui: Any, base: Any, policy: str) -> Iterator[tuple[Any, Any]]:
    """A server with this policy, and its editor."""
    for folder in ("user", "custom_nodes"):
        (base / folder).mkdir()
    (base / "user/safecfg_policy.json").write_text(policy)
    (base / "custom_nodes/another_pack.py").write_text(PACK)
    with (
        running_server(comfyui, base) as server,
        kit.open_page(chromium, server.url, node="AnotherPacksModel") as editor,
    ):
        yield server, editor


@pytest.fixture(scope="module")
def policed(kit, chromium, comfyui, tmp_path_factory):
    with opened(kit, chromium, comfyui, tmp_path_factory.mktemp("policed"), "{}") as both:
        yield both


def graph(**others: Any) -> dict[str, Any]:
    """A harmful prompt and core nodes alone, but for the model."""
    settings = {"seed": 7, "steps": 12, "cfg": 7.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    return {
        "1": node("AnotherPacksModel"),
        "2": node("CLIPTextEncode", clip=["1", 1], text="a skull above a red ball in a meadow"),
        "3": node("CLIPTextEncode", clip=["1", 1], text=""),
        "4": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "5": node("KSampler", **settings | links),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("PreviewImage", images=["6", 0]),
    } | others


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def load(editor: Any, prompt: dict[str, Any]) -> None:
    editor.js("await app.loadApiJson(a, 'mine.json')", prompt)
    editor.page.wait_for_timeout(500)


def shield(editor: Any) -> tuple[str, str]:
    """Its words, and those of its tooltip."""
    badge = editor.page.locator(".pi-shield").locator("..")
    badge.hover()
    tooltip = editor.page.get_by_role("tooltip")
    tooltip.wait_for()
    words, told = badge.inner_text().split(), tooltip.inner_text()
    editor.page.mouse.move(600, 600)
    return " ".join(words), told


def refused(editor: Any) -> str:
    """Press Run: what is told of the error, without a click on its details."""
    editor.js(
        "window.failed = new Promise((done) =>"
        "app.api.addEventListener('execution_error', ({ detail }) => done(detail.node_type), { once: true }))"
    )
    editor.page.get_by_test_id("queue-button").click()
    assert editor.js("return await window.failed") == "KSampler"
    toast = editor.page.locator(".p-toast-message").filter(has_text="operator decides")
    toast.wait_for()
    return toast.inner_text()


def test_the_shield_says_what_is_in_force_and_that_its_file_has_changed(policed):
    server, editor = policed
    words, told = shield(editor)
    assert words == "SafeCFG policy"
    assert "SafeCFG acts in every sampling run" in told and "Refused: LoRAs and merges" in told
    (server.base / "user/safecfg_policy.json").write_text('{"strength": 0.5}')
    editor.open()
    words, told = shield(editor)
    assert words == "SafeCFG policy changed" and "it counts after a restart" in told and "strength 1," in told
    assert not editor.errors


def test_a_harmful_graph_without_safecfg_comes_out_redirected(policed, kit):
    from hgr.cli.policy_graphs import with_symbol

    server, editor = policed
    load(editor, graph())
    (output,) = (each["images"] for each in editor.run().values() if "images" in each)
    pictures = [server.get(f"/view?filename={file['filename']}&type=temp") for file in output]
    assert len(pictures) == 1 and with_symbol(pictures) == 0


def test_a_refused_graph_says_why_in_the_editor(policed):
    _, editor = policed
    stronger = node("UNetCrossAttentionMultiply", model=["1", 0], q=1.1, k=1.0, v=1.0, out=1.0)
    sampler = graph()["5"]["inputs"] | {"model": ["8", 0]}
    load(editor, graph(**{"5": node("KSampler", **sampler), "8": stronger}))
    assert "A LoRA, a merge or another change of the model's weights acts in this run" in refused(editor)


def test_a_broken_policy_is_told_at_once_and_with_each_refused_graph(kit, chromium, comfyui, tmp_path):
    with opened(kit, chromium, comfyui, tmp_path, '{"strength": 7}') as (_, editor):
        toast = editor.page.locator(".p-toast-message").filter(has_text="SafeCFG policy broken")
        toast.wait_for()
        assert "Nothing is sampled. safecfg_policy.json: strength is 7" in toast.inner_text()
        words, told = shield(editor)
        assert words == "SafeCFG policy broken" and "strength is 7" in told
        load(editor, graph())
        assert "Its file is broken, so nothing is sampled. safecfg_policy.json: strength is 7" in refused(editor)
        assert not editor.errors
