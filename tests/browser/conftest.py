"""The editor in a browser, on a ComfyUI of its own. Needs ComfyUI, Playwright and a Chromium; skipped where one is
missing.

Nothing of these is imported before a fixture needs it, so that collecting the tests works without them.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "host"))  # tests import the modules that lie there, and here
sys.path.insert(0, str(Path(__file__).parent))

import editor as editor_kit
from server_kit import Server, find_comfyui, running_server


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    return editor_kit


@pytest.fixture(scope="session")
def comfyui(kit: ModuleType) -> Path:
    """ComfyUI's folder, where a browser can open its editor too."""
    comfyui = find_comfyui()
    if comfyui is None:
        pytest.skip("no ComfyUI found: set COMFYUI_PATH to its folder")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("no Playwright: pip install playwright")
    if kit.CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    return comfyui


@pytest.fixture(scope="session")
def server(kit: ModuleType, comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running ComfyUI that has two more HGRs, hostile.safetensors and damaged.safetensors."""
    base = tmp_path_factory.mktemp("server")
    kit.write_hostile_hgr(base / "models/hgr/hostile.safetensors")
    (base / "models/hgr/damaged.safetensors").write_bytes(b"not an HGR")
    with running_server(comfyui, base) as server:
        yield server


@pytest.fixture(scope="session")
def chromium(kit: ModuleType, comfyui: Path) -> Iterator[Any]:
    with kit.open_browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def browser(kit: ModuleType, chromium: Any, server: Any) -> Iterator[Any]:
    with kit.open_page(chromium, server.url) as editor:
        yield editor


@pytest.fixture(params=["classic", "vue"])
def renderer(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def workflow(kit: ModuleType) -> dict[str, Any]:
    """The quick start: HGR Loader is node 3, SafeCFG (Model) node 7."""
    return json.loads(kit.QUICK_START.read_text())


@pytest.fixture
def editor(browser: Any, workflow: dict[str, Any], request: pytest.FixtureRequest) -> Iterator[Any]:
    """The editor with the quick start, in the classic renderer."""
    browser.set(
        "Comfy.VueNodes.Enabled", "renderer" in request.fixturenames and request.getfixturevalue("renderer") == "vue"
    )
    browser.load(workflow)
    browser.look_at(7)
    yield browser
    assert not browser.errors


@pytest.fixture
def rendered(editor: Any, renderer: str) -> Any:
    """The same, in both renderers."""
    return editor
