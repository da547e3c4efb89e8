"""Help pages and translations against the nodes' schemas. `python tests/test_texts.py` writes the English texts, which
are the schemas'."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = ("en", "zh", "ja", "de", "fr", "es")
PACK = "pack_of_texts"
SECTIONS = ("## Inputs", "## Outputs", "## Wiring", "## What goes wrong", "## See also")
# The editor's translator takes these for placeholders, plurals and links; older editors break on them.
MARKS = re.compile(r"[{}|@]")
NUMBER = re.compile(r"\d*[.,]?\d+")


class _IO(SimpleNamespace):
    """`comfy_api.latest.io`, as far as schemas need it: what is called gives back what it was called with."""

    ComfyNode, NodeOutput, Input, Hidden, Schema = object, object, object, MagicMock(), SimpleNamespace

    def __getattr__(self, name: str) -> SimpleNamespace:
        return self.Custom(name.upper())

    @staticmethod
    def Custom(kind: str) -> SimpleNamespace:
        return SimpleNamespace(
            Input=lambda id, **about: SimpleNamespace(id=id, kind=kind, **about),
            Output=lambda **about: SimpleNamespace(kind=kind, **about),
        )


def read_schemas() -> dict[str, SimpleNamespace]:
    """Every node's schema by its id, read with stand-ins for ComfyUI and for what knows it."""
    latest = ModuleType("comfy_api.latest")
    latest.io, latest.ui, latest.ComfyExtension = _IO(), MagicMock(), object
    pack = ModuleType(PACK)
    pack.__path__ = [str(ROOT)]
    fakes = {
        "comfy_api": ModuleType("comfy_api"),
        "comfy_api.latest": latest,
        PACK: pack,
        f"{PACK}.hgr.hosts.comfy": MagicMock(),
    }
    fakes |= {f"{PACK}.hgr.hosts.comfy.{file.stem}": MagicMock() for file in (ROOT / "hgr/hosts/comfy").glob("*.py")}
    before = dict(sys.modules)
    sys.modules.update(fakes)
    try:
        modules = [
            importlib.import_module(f"{PACK}.nodes.{file.stem}") for file in sorted((ROOT / "nodes").glob("*.py"))
        ]
        schemas = [node.define_schema() for module in modules for node in getattr(module, "NODES", ())]
    finally:
        for name in set(sys.modules) - set(before):
            if name in fakes or name.startswith(PACK):
                del sys.modules[name]
        sys.modules.update({name: before[name] for name in fakes if name in before})
    return {schema.node_id: schema for schema in schemas}


def english(schema: SimpleNamespace) -> dict[str, Any]:
    """A node's texts as the editor looks for them. A text with marks is left out: the editor then shows the schema's
    own."""

    def said(texts: dict[str, str]) -> dict[str, str]:
        return {key: text for key, text in texts.items() if not MARKS.search(text)}

    inputs = {
        each.id.replace(".", "_"): said({"name": getattr(each, "display_name", each.id), "tooltip": each.tooltip})
        for each in getattr(schema, "inputs", ())
    }
    outputs = {
        str(i): said({"name": getattr(each, "display_name", each.kind), "tooltip": each.tooltip})
        for i, each in enumerate(getattr(schema, "outputs", ()))
    }
    return (
        {"display_name": schema.display_name, "description": schema.description}
        | ({"inputs": inputs} if inputs else {})
        | ({"outputs": outputs} if outputs else {})
    )


def load(language: str, name: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs), (
            f"locales/{language}/{name}.json: a key comes twice: {pairs}"
        )
        return dict(pairs)

    return json.loads(
        (ROOT / "locales" / language / f"{name}.json").read_bytes().decode("utf-8"), object_pairs_hook=once
    )


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: tree}
    return {key: leaf for name, part in tree.items() for key, leaf in leaves(part, f"{path}/{name}").items()}


def numbers(text: str) -> list[float]:
    """The numbers in a text, however a language writes them."""
    joined = re.sub(r"(?<=\d)[.,\u202f\u00a0](?=\d{3}(?!\d))", "", text)
    return sorted(float(each.replace(",", ".")) for each in NUMBER.findall(joined))


@pytest.fixture(scope="module")
def schemas() -> dict[str, SimpleNamespace]:
    return read_schemas()


def node_ids() -> list[str]:
    """By the source alone, so that a node that is in no list of nodes is seen too."""
    trees = [ast.parse(file.read_text("utf-8")) for file in sorted((ROOT / "nodes").glob("*.py"))]
    return sorted(
        word.value.value
        for tree in trees
        for word in ast.walk(tree)
        if isinstance(word, ast.keyword) and word.arg == "node_id" and isinstance(word.value, ast.Constant)
    )


def test_every_node_is_read(schemas: dict[str, SimpleNamespace]) -> None:
    assert sorted(schemas) == node_ids() and node_ids()


def test_there_are_no_other_pages_and_languages() -> None:
    assert sorted(page.name for page in (ROOT / "web/docs").iterdir()) == sorted(
        [*(f"{name}.md" for name in node_ids()), "images"]
    )
    assert sorted(picture.name for picture in (ROOT / "web/docs/images").iterdir()) == [
        f"{name}.png" for name in node_ids()
    ]
    assert sorted(folder.name for folder in (ROOT / "locales").iterdir()) == sorted(LANGUAGES)
    assert all(
        {file.name for file in folder.iterdir()} == {"main.json", "nodeDefs.json"}
        for folder in (ROOT / "locales").iterdir()
    )


@pytest.mark.parametrize("node_id", node_ids())
def test_help_page(node_id: str, schemas: dict[str, SimpleNamespace]) -> None:
    schema, page = schemas[node_id], (ROOT / f"web/docs/{node_id}.md").read_bytes().decode("utf-8")
    assert page.startswith(f"# {schema.display_name}\n")
    at = [page.find(f"\n{section}\n") for section in SECTIONS]
    assert -1 not in at and at == sorted(at)
    inputs, outputs = page[at[0] : at[1]], page[at[1] : at[2]]
    rows = re.findall(r"^\| `(\w+)`", inputs, re.MULTILINE)
    assert rows == [each.id for each in getattr(schema, "inputs", ())]
    assert re.findall(r"^\| `([\w ]+)`", outputs, re.MULTILINE) == [
        getattr(each, "display_name", each.kind) for each in getattr(schema, "outputs", ())
    ]
    for each in getattr(schema, "inputs", ()):
        if each.kind == "COMBO" and each.id not in ("file", "hgr_name"):
            row = next(line for line in inputs.splitlines() if line.startswith(f"| `{each.id}`"))
            assert all(f"`{option}`" in row for option in each.options), each.id
    assert not re.search(r"<[a-zA-Z/!]", page), "an HTML tag"
    assert re.findall(r"!\[[^\]]+\]\((.+)\)", page) == [f"images/{node_id}.png"], (
        "the node's picture, with a text for who cannot see it"
    )
    assert not re.search(r"(?<!!)(\[[^\]]*\])\((?!https://)", page), "a link that the editor cannot follow"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_there(language: str, schemas: dict[str, SimpleNamespace]) -> None:
    found, wanted = (
        leaves(load(language, "nodeDefs")),
        leaves({name: english(schema) for name, schema in schemas.items()}),
    )
    if language == "en":
        assert found == wanted, "the schemas have changed: python tests/test_texts.py, then the translations"
    marked = {
        f"/{name}/inputs/{each.id}/tooltip"
        for name, schema in schemas.items()
        for each in getattr(schema, "inputs", ())
        if MARKS.search(each.tooltip)
    }
    assert found.keys() - marked == wanted.keys()
    if language != "en":
        assert marked <= found.keys()


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_are_plain(language: str) -> None:
    for key, text in leaves({name: load(language, name) for name in ("nodeDefs", "main")}).items():
        assert isinstance(text, str) and text.strip() == text != "", key
        assert not MARKS.search(text), f"{key}: a mark that the editor's translator does not take for text"
        assert not re.search(r"<[a-zA-Z/!]", text), f"{key}: an HTML tag"
        assert "  " not in text and "\n" not in text, key


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_translations_say_the_same(language: str, schemas: dict[str, SimpleNamespace]) -> None:
    """The same numbers and options as the schema: what a changed default or range leaves behind is found."""
    found = load(language, "nodeDefs")
    for name, schema in schemas.items():
        for each in getattr(schema, "inputs", ()):
            text = found[name]["inputs"][each.id]["tooltip"]
            assert numbers(text) == numbers(each.tooltip), (
                f"{name}.{each.id}: {numbers(text)}, in English {numbers(each.tooltip)}"
            )
            options = [
                str(o) for o in getattr(each, "options", ()) if re.search(rf"\b{re.escape(str(o))}\b", each.tooltip)
            ]
            assert all(option in text for option in options), f"{name}.{each.id}: {options}"
        assert "SafeCFG" not in schema.display_name or "SafeCFG" in found[name]["display_name"]
        assert "HGR" not in schema.display_name or "HGR" in found[name]["display_name"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_words_outside_nodes(language: str, schemas: dict[str, SimpleNamespace]) -> None:
    main = load(language, "main")
    assert main.keys() == {"nodeCategories", "dataTypes"}
    assert main["nodeCategories"].keys() == {schema.category for schema in schemas.values()}
    assert main["dataTypes"].keys() == {"HGR", "PAIRS"}


def write_english() -> None:
    texts = {name: english(schema) for name, schema in read_schemas().items()}
    (ROOT / "locales/en/nodeDefs.json").write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    write_english()
