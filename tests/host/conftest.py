"""Tests in a real ComfyUI, found through COMFYUI_PATH, above this pack's custom_nodes folder, or in the home folder.

Nothing of ComfyUI or torch is imported before a fixture needs it, so that collecting the tests works without either.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
CURRENT = (0, 33)  # tests without the marker `oldest` need at least this version


def find_comfyui() -> Path | None:
    """ComfyUI's folder, or None."""
    given = os.environ.get("COMFYUI_PATH")
    places = [Path(given).expanduser()] if given else [ROOT.parents[1], Path.home() / "comfy" / "ComfyUI"]
    return next((place for place in places if (place / "comfyui_version.py").is_file()), None)


def version_of(comfyui: Path) -> tuple[int, ...]:
    text = (comfyui / "comfyui_version.py").read_text()
    return tuple(int(part) for part in re.search(r'"(\d+)\.(\d+)', text).groups())


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "oldest: also runs on the oldest ComfyUI that is supported")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    comfyui = find_comfyui()
    if comfyui and version_of(comfyui) < CURRENT:
        skip = pytest.mark.skip(reason="not among the tests for the oldest ComfyUI")
        for item in items:
            if ROOT / "tests" / "host" in item.path.parents and not item.get_closest_marker("oldest"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    found = find_comfyui()
    if found is None:
        pytest.skip("no ComfyUI found: set COMFYUI_PATH to its folder")
    return found


@pytest.fixture(scope="session")
def comfyui(comfyui_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """ComfyUI importable in this process, on the CPU, its folders in a temporary place.

    The repository must not lie beside it on sys.path: both have a top-level module `nodes`.
    """
    before = sys.path[:]
    sys.path[:] = [str(comfyui_path), str(Path(__file__).parent)] + [
        p for p in sys.path if Path(p or ".").resolve() != ROOT
    ]
    from comfy.cli_args import args

    args.cpu = True
    args.base_directory = str(tmp_path_factory.mktemp("base"))
    yield comfyui_path
    sys.path[:] = before


@pytest.fixture(autouse=True)
def inference_mode(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests in this process run as ComfyUI runs its nodes."""
    if "comfyui" not in request.fixturenames:
        yield
        return
    request.getfixturevalue("comfyui")
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def pack(comfyui: Path) -> SimpleNamespace:
    """The pack, loaded as ComfyUI loads it: by file, under its folder's path as name."""
    name = str(ROOT).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)

    def get(path: str) -> ModuleType:
        return importlib.import_module(f"{name}.{path}")

    return SimpleNamespace(
        root=module,
        get=get,
        file=get("hgr.file"),
        redirector=get("hgr.redirector"),
        files=get("hgr.hosts.comfy.files"),
        guidance=get("hgr.hosts.comfy.guidance"),
        guide=get("nodes.guide"),
        loader=get("nodes.loader"),
        demo=get("nodes.demo"),
    )


@pytest.fixture(scope="session")
def kit(pack: SimpleNamespace):
    """The demo model and what tests do with it."""
    import torch
    from host_kit import Kit

    with torch.inference_mode():
        return Kit(pack)


@pytest.fixture(scope="session")
def hgr(kit):
    """An HGR whose first concept fires on `host_kit.HARMFUL` and not on `host_kit.CLEAN`; its second never fires."""
    import torch

    with torch.inference_mode():
        return kit.make_hgr()
