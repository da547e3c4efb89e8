"""The node Concept Pairs: its contract, what it mixes, and the files that it takes from ComfyUI's input folder."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.oldest

CONCEPTS = ["hate", "harassment", "violence", "self_harm", "sexual", "shocking", "illegal_activity"]
ROWS = "harmful,clean,concept\n" + "".join(f"a bad thing {i},a good thing {i},mine\n" for i in range(70))


@pytest.fixture()
def node(pack, tmp_path, monkeypatch):
    """The node with an input folder of its own."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    (tmp_path / "input").mkdir()
    (tmp_path / "secret.csv").write_text(ROWS)
    return SimpleNamespace(
        type=pack.get("nodes.pairs").SafeCFGConceptPairs, sources=pack.get("hgr.data.sources"), input=tmp_path / "input"
    )


def run(node, *on, **settings):
    """(pairs, report) with these built-in concepts on and the other inputs at their defaults."""
    inputs = node.type.define_schema().inputs
    given = {item.id: item.default for item in inputs if not item.optional and item.id not in ("file", *CONCEPTS)}
    given |= {concept: concept in on for concept in CONCEPTS} | {"file": "none", "limit": 50} | settings
    return node.type.execute(**given).args


def offered(node):
    """The names of files that the node offers."""
    (combo,) = (item for item in node.type.define_schema().inputs if item.id == "file")
    return list(combo.options)


def test_the_contract(node):
    """Ids, order and types, which never change once released; every input has a tooltip."""
    schema = node.type.define_schema()
    assert (schema.node_id, schema.display_name, schema.category) == ("SafeCFGConceptPairs", "Concept Pairs", "SafeCFG")
    assert [item.id for item in schema.inputs] == [*CONCEPTS, "style", "own", "demo_world", "file", "limit", "more"]
    assert [item.get_io_type() for item in schema.inputs] == [
        *["BOOLEAN"] * 7,
        "STRING",
        "STRING",
        "BOOLEAN",
        "COMBO",
        "INT",
        "PAIRS",
    ]
    assert [item.get_io_type() for item in schema.outputs] == ["PAIRS", "STRING"]
    assert all(len(item.tooltip) > 20 for item in (*schema.inputs, *schema.outputs))


def test_the_pack_has_the_node(pack, node):
    import asyncio

    assert node.type in asyncio.run(pack.get("nodes.extension").SafeCFGExtension().get_node_list())


def test_the_switches_are_the_librarys_concepts(node):
    assert list(node.sources.CATEGORIES) == CONCEPTS
    for concept in CONCEPTS:
        found, report = run(node, concept)
        assert found.ids == (concept,) and len(found.pairs) == 50 and len(found.clean) > 1000
        assert f"({concept}): 50 pairs" in report


def test_as_it_is_dropped_into_a_graph_it_works(node):
    defaults = {
        item.id: item.default for item in node.type.define_schema().inputs if not item.optional and item.id != "file"
    }
    found, _ = node.type.execute(**defaults, file="none").args
    assert list(found.ids) == CONCEPTS
    assert all(len(found.of(concept)) >= 1500 for concept in CONCEPTS), "with those of related categories"


def test_styles_own_concepts_and_the_demo_world(node):
    found, report = run(node, style="Frida Kahlo\n\ncubism\n", own="spiders: spider, cobweb\nmice", demo_world=True)
    assert found.ids == (
        "style_frida_kahlo",
        "style_cubism",
        "spiders",
        "mice",
        "skull",
        "dagger",
        "splatter",
        "bomb",
        "nightmare",
    )
    assert all(len(found.of(concept)) >= 40 for concept in found.ids)
    assert "Style: Frida Kahlo" in report and "mice (mice)" in report


def test_more_is_mixed_in(node):
    first, _ = run(node, "hate")
    both, report = run(node, "violence", more=first)
    assert both.ids == ("hate", "violence") and both.of("hate") == first.of("hate")
    assert "(hate): 50 pairs" in report and "(violence): 50 pairs" in report
    mine = node.sources.own_concept("violence", ["brawl"])
    with pytest.raises(ValueError, match='the id "violence"'):
        run(node, "violence", more=mine)


def test_nothing_chosen_is_an_error(node):
    with pytest.raises(ValueError, match="no concept is chosen: switch a built-in concept on"):
        run(node, style=" \n", own="\n")


def test_a_file_of_the_input_folder(node):
    (node.input / "mine.csv").write_text(ROWS)
    (node.input / "also.jsonl").write_text('{"harmful": "a", "clean": "b", "concept": "c"}\n')
    (node.input / "picture.png").write_bytes(b"")
    (node.input / "folder.csv").mkdir()
    assert offered(node) == ["none", "also.jsonl", "mine.csv"]
    found, _ = run(node, file="mine.csv")
    assert found.ids == ("mine",) and len(found.pairs) == 70, "a file is used whole"
    assert node.type.validate_inputs(file="mine.csv") is True and node.type.validate_inputs(file="none") is True
    assert node.type.validate_inputs(file=None) is True, "comes from another node, not known yet"


@pytest.mark.parametrize("name", ["missing.csv", "../secret.csv", "picture.png", "", "sub/../../secret.csv"])
def test_other_names_are_no_files(node, name):
    (node.input / "picture.png").write_bytes(b"")
    for tried in (name, str(node.input.parent / "secret.csv")):
        assert "not a .csv or .jsonl file in ComfyUI's input folder" in node.type.validate_inputs(file=tried)
        assert node.type.fingerprint_inputs(file=tried) is None
        with pytest.raises(FileNotFoundError, match="input folder"):
            run(node, "hate", file=tried)


def test_an_input_folder_that_is_not_there_yet(node):
    node.input.rmdir()
    assert offered(node) == ["none"] and run(node, "hate")[0].ids == ("hate",)


def test_a_changed_file_is_read_again(node):
    path = node.input / "mine.csv"
    path.write_text(ROWS)
    first = node.type.fingerprint_inputs(file="mine.csv", limit=50)
    assert first == node.type.fingerprint_inputs(file="mine.csv", limit=50)
    os.utime(path, ns=(1, 1))
    assert node.type.fingerprint_inputs(file="mine.csv", limit=50) != first
    assert node.type.fingerprint_inputs(file="none") == node.type.fingerprint_inputs() is None


def test_a_bad_row_names_file_and_line_and_no_folder(node):
    (node.input / "bad.csv").write_text(ROWS + "no clean side,,mine\n")
    with pytest.raises(ValueError, match='^bad.csv, line 72: "clean" is missing or empty'):
        run(node, file="bad.csv")
