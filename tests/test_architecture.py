"""The contributor's pages against the repository: the paths and make targets that they name are there, and the
picture is what its script draws."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("docs/architecture.md", "CONTRIBUTING.md", "SECURITY.md")
SOURCES = (*PAGES, *(str(path.relative_to(ROOT)) for path in sorted((ROOT / ".github").rglob("*.*")) if path.is_file()))
# files and folders of this repository, by a folder in the name or by the kind of file
PATH = re.compile(r"[\w.-]+(/[\w.-]+)*/|([\w.-]+/)+[\w.-]+|[\w-]+\.(py|md|toml|js|css|json|yml|svg|txt)|\.[a-z-]+")
MADE = {".venv", ".venv-comfy", "runs/demo/output", "models/hgr"}  # by tools; no part of the repository


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def quoted(page: str) -> set[str]:
    """What stands in backticks."""
    return set(re.findall(r"`([^`\n]+)`", page))


@pytest.mark.parametrize("name", PAGES)
def test_every_path_that_a_page_names_exists(name: str) -> None:
    page = read(name)
    named = {text for text in quoted(page) if PATH.fullmatch(text)} - MADE
    linked = {
        (ROOT / name).parent.relative_to(ROOT) / link
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page)
        if "://" not in link
    }
    assert named or linked
    assert not [path for path in sorted([*named, *map(str, linked)]) if not (ROOT / path).exists()]


@pytest.mark.parametrize("name", ["docs/architecture.md"])
def test_every_name_is_in_the_file_beside_it(name: str) -> None:
    """`redirect` in `hgr/core/redirect.py`: the page is a map, so it must not send anybody to the wrong file."""
    pairs = re.findall(r"`(\w+)`(?: or `\w+`)? in `([\w/]+\.py)`", read(name))
    assert pairs
    assert not [(word, path) for word, path in pairs if not re.search(rf"\b{word}\b", read(path))]


@pytest.mark.parametrize("name", SOURCES)
def test_every_make_target_that_a_page_or_a_workflow_names_is_in_the_makefile(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`|run: )\s*make ([a-z-]+)", read(name), re.MULTILINE)) <= targets


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/draw_architecture.py, by its file."""
    spec = importlib.util.spec_from_file_location("draw_architecture", ROOT / "scripts/draw_architecture.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_what_its_script_draws(script: ModuleType) -> None:
    drawn = script.draw()
    assert script.PICTURE.read_bytes().decode("utf-8") == drawn, "run python scripts/draw_architecture.py"
    ElementTree.fromstring(drawn)


def test_every_file_in_the_picture_is_in_its_room(script: ModuleType) -> None:
    lanes = (script.GUIDE, script.TRAIN, script.JUDGE)
    for box in (*(box for lane in lanes for box in lane.boxes), *script.SECOND_ROW):
        room = ROOT / "hgr" / ("hosts/comfy" if box.room == "host" else box.room)
        assert not [file for file in box.files.split() if not (room / file).is_file()], box.title
