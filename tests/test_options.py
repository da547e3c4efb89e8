"""The strengths of concepts as users write them: what is understood, refused in one sentence, or warned of."""

from __future__ import annotations

import json

import pytest

from hgr.core.excerpt import excerpt
from hgr.core.options import concept_strengths

IDS = ["skull", "Red Flag", "bomb"]


@pytest.mark.parametrize("key", ["skull", "Skull", " SKULL\t", "red flag", "Red Flag ", "BOMB"])
def test_case_and_surrounding_spaces_of_an_id_do_not_matter(key, caplog):
    found = dict(zip(IDS, concept_strengths(json.dumps({key: 0}), IDS), strict=True))
    assert [id for id, strength in found.items() if strength == 0] == [
        id for id in IDS if id.casefold() == key.strip().casefold()
    ]
    assert not caplog.records


def test_what_is_written_exactly_counts_and_the_other_key_is_named(caplog):
    """The editor writes the HGR's own ids beside what the text says already."""
    for text in ('{"Skull": 2, "skull": 0}', '{"skull": 0, "Skull": 2}'):
        assert concept_strengths(text, IDS) == [0.0, 1.0, 1.0]
    assert [record.getMessage()[:60] for record in caplog.records] == [
        "concepts: this HGR does not know Skull; ignored (did you mea"
    ] * 2


def test_ids_that_differ_only_in_case_must_be_written_as_they_are():
    assert concept_strengths('{"Skull": 0, "skull": 2}', ["skull", "Skull"]) == [2.0, 0.0]
    with pytest.raises(ValueError, match='^concepts: "SKULL" may be skull or Skull; write one of them.$'):
        concept_strengths('{"SKULL": 0}', ["skull", "Skull"])


@pytest.mark.parametrize("text", ['{"skull": 0, "skull": 1}', '{"SKULL": 1, " Skull": 0}', '{"x": 0, "x": 0}'])
def test_a_concept_that_is_named_twice_is_an_error(text):
    with pytest.raises(ValueError, match='^concepts.*"(skull|x)" (is there twice|has two strengths)'):
        concept_strengths(text, IDS)


@pytest.mark.parametrize(
    ("key", "meant"), [("skul", "skull"), ("SCULL", "skull"), ("redflag", "Red Flag"), ("violence", None)]
)
def test_an_unknown_id_changes_nothing_and_one_warning_names_the_most_similar(key, meant, caplog):
    assert concept_strengths(json.dumps({key: 0}), IDS) == [1.0, 1.0, 1.0], "a guess must never switch a concept off"
    (record,) = caplog.records
    assert f"does not know {key}; ignored" in record.getMessage()
    assert (f"(did you mean {meant}?)" in record.getMessage()) if meant else "did you mean" not in record.getMessage()


@pytest.mark.parametrize(
    "text",
    [
        '{"skull": ' * 1000 + "1" + "}" * 1000,
        '{"skull": ' * 300 + "1" + "}" * 300,
        "[" * 100_000,
        '{"skull": [' + "[" * 200 + "]" * 200 + "]}",
        '{"skull": ' + "9" * 5000 + "}",
        '{"skull": -' + "9" * 5000 + "}",
        '{"skull": 1e400}',
        '{"skull": NaN}',
        '{"skull": Infinity}',
        '{"' + "x" * 100_000 + '": -1}',
        '{"skull": "' + "on\\n" * 1000 + '"}',
        '{"line\\nbreak": 3}',
        '{"' + "x" * 1000 + '": 1, "' + "x" * 1000 + '": 1}',
    ],
)
def test_hostile_concepts_are_one_short_sentence(text):
    with pytest.raises(ValueError, match="^concepts") as error:
        concept_strengths(text, IDS)
    assert type(error.value) is ValueError and len(str(error.value)) < 300 and str(error.value).isprintable()


def test_a_warning_of_many_long_unknown_ids_is_short(caplog):
    given = {"line\n" + "x" * 1000 + str(i): 1 for i in range(1000)}
    assert concept_strengths(json.dumps(given), IDS) == [1.0, 1.0, 1.0]
    (record,) = caplog.records
    assert len(record.getMessage()) < 300 and record.getMessage().isprintable()


def test_an_excerpt_keeps_short_text_and_both_ends_of_a_long_one_on_one_line():
    assert excerpt("café") == "café" and excerpt("a" * 80) == "a" * 80 and excerpt(3) == "3"
    cut = excerpt("/home" + "x" * 5000 + "/mine.csv")
    assert len(cut) == 80 and cut.startswith("/home") and cut.endswith("/mine.csv") and "…" in cut
    assert excerpt("a\nb\x1b[31m\ud800") == "a�b�[31m�"
    assert len(excerpt("a" * 1000, 7)) == 7
