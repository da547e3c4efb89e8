"""Tests in a real ComfyUI, found through COMFYUI_PATH, above this pack's custom_nodes folder, or in the home folder.

Nothing of ComfyUI or torch is imported before a fixture needs it, so that collecting the tests works without either.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests import the modules that lie beside them

from server_kit import ROOT, Server, find_comfyui, running_server, version_of

CURRENT = (0, 33)  # tests without the marker `oldest` need at least this version


@pytest.hookimpl(tryfirst=True)  # before `-m` picks by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    comfyui = find_comfyui()
    skip = pytest.mark.skip(reason="not among the tests for the oldest ComfyUI")
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        if "server" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
        if comfyui and version_of(comfyui) < CURRENT and not item.get_closest_marker("oldest"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    found = find_comfyui()
    if found is None:
        pytest.skip("no ComfyUI found: set COMFYUI_PATH to its folder")
    return found


@pytest.fixture(autouse=True)
def no_prompts_kept() -> None:
    """Each test's trainings encode their prompts themselves, as if they were the first."""
    if folders := sys.modules.get("folder_paths"):
        shutil.rmtree(Path(folders.get_system_user_directory("safecfg"), "prompts"), ignore_errors=True)


@pytest.fixture(scope="session")
def comfyui(comfyui_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """ComfyUI importable in this process, on the CPU, its folders in a temporary place.

    The repository must not lie beside it on sys.path: both have a top-level module `nodes`.
    """
    before = sys.path[:]
    sys.path[:] = [str(comfyui_path), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
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
        file=get("hgr.core.file"),
        hgr=get("hgr.core.hgr"),
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


@pytest.fixture(scope="session")
def server(comfyui_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running ComfyUI with this folder as a pack."""
    with running_server(comfyui_path, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="session")
def object_info(server: Server) -> dict[str, Any]:
    return server.json("/object_info")


@pytest.fixture(scope="session")
def seen(pack: SimpleNamespace):
    """What the classifier that knows the truth finds in pictures of the demo world: of each the symbols, the background
    and the things in the lower half."""
    import numpy as np
    import torch

    world, classifier = pack.get("hgr.demo.world"), pack.get("hgr.demo.classifier").load_classifier()

    def look(*pictures: Any) -> list[tuple]:
        pixels = torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))
        judged = classifier.judge(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
        symbols = [
            {name for name, there in zip(world.SYMBOLS, row, strict=True) if there} for row in judged.symbols.tolist()
        ]
        return list(zip(symbols, judged.background.tolist(), judged.slots.tolist(), strict=True))

    return look


@pytest.fixture
def interrupt_at(pack, monkeypatch):
    """Interrupts a training in the given call of its progress's `step`; returns the list of steps, which fills."""
    import comfy.model_management as management

    def interrupt(call: int) -> list[int]:
        progress, seen = pack.get("hgr.hosts.comfy.progress").TrainingProgress, []
        step = progress.step

        def counted(self, done, loss):
            seen.append(done)
            if len(seen) == call:
                management.interrupt_current_processing()
            step(self, done, loss)

        monkeypatch.setattr(progress, "step", counted)
        return seen

    return interrupt
