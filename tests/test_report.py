"""The report: verdicts by the evidence that speaks loudest, thresholds by sensitivity, and reading it back."""

import dataclasses
import json

import pytest
import torch
from helpers import small_hgr

from hgr.core.hgr import Concept, HGRError, Probe
from hgr.core.options import SENSITIVITIES
from hgr.detection.report import BOTH, PICTURE, PROMPT, VERSION, Evidence, ReportError, build, flags, to_json

LEVELS = (0.9, 0.8, 0.6, 0.5, 0.3)


def concepts(*thresholds):
    return [Concept(f"c{k}", f"Concept {k}", "", threshold, levels=LEVELS) for k, threshold in enumerate(thresholds)]


def evidence(kind, rows, *thresholds):
    return Evidence(kind, torch.tensor(rows), concepts(*thresholds or (0.6, 0.6)))


def hgr(**training):
    made = small_hgr()
    return dataclasses.replace(made, concepts=concepts(0.6, 0.6), training=training, name="mine")


def report(*found, on=(True, True), sensitivity="normal", words=(), of=None):
    return build(of or hgr(false_positive_rate=0.01), found, on, sensitivity=sensitivity, words=words)


def one(k, score, flagged):
    """Of a concept of which the prompt alone is known, with a threshold of 0.6."""
    return {
        "label": f"Concept {k}",
        "score": score,
        "threshold": 0.6,
        "flagged": flagged,
        "evidence": "prompt",
        "all": {"prompt": [score, 0.6]},
    }


def test_of_prompts():
    made = report(evidence(PROMPT, [[0.9, 0.1], [0.2, 0.3]]), words=[[("a", 0.0), ("skull", 0.9)], [("b", 0.1)]])
    assert (
        json.loads(to_json(made))
        == made
        == {
            "version": VERSION,
            "hgr": "mine",
            "encoder": "a test encoder",
            "sensitivity": "normal",
            "false_positive_rate": 0.01,
            "about": "prompts",
            "flagged": True,
            "score": 0.9,
            "items": [
                {
                    "flagged": True,
                    "score": 0.9,
                    "concepts": {"c0": one(0, 0.9, True), "c1": one(1, 0.1, False)},
                    "words": [["a", 0.0], ["skull", 0.9]],
                },
                {
                    "flagged": False,
                    "score": 0.3,
                    "concepts": {"c0": one(0, 0.2, False), "c1": one(1, 0.3, False)},
                    "words": [["b", 0.1]],
                },
            ],
        }
    )


def test_the_evidence_that_is_furthest_above_its_threshold_decides_whatever_the_higher_score():
    both, alone = evidence(BOTH, [[0.4, 0.7]], 0.3, 0.3), evidence(PICTURE, [[0.8, 0.1]], 0.9, 0.9)
    made = report(both, alone)
    first, second = made["items"][0]["concepts"].values()
    assert made["about"] == "pictures" and made["flagged"]
    assert (first["evidence"], first["score"], first["flagged"]) == (BOTH, 0.4, True)
    assert first["all"] == {BOTH: [0.4, 0.3], PICTURE: [0.8, 0.9]}
    assert (second["evidence"], made["score"]) == (BOTH, 0.7)


def test_at_its_threshold_a_concept_is_flagged_and_certainty_is_no_overflow():
    made = report(
        Evidence(
            PROMPT,
            torch.tensor([[0.6, 1.0], [0.0, 0.0]]),
            [dataclasses.replace(c, threshold=torch.tensor(0.6).item()) for c in concepts(0.6, 0.6)],
        )
    )
    assert [concept["flagged"] for concept in made["items"][0]["concepts"].values()] == [True, True]
    assert not made["items"][1]["flagged"]


def test_sensitivity_takes_the_threshold_of_its_level_and_scales_the_stated_rate():
    found = evidence(PROMPT, [[0.55, 0.1]])
    seen = {name: report(found, sensitivity=name) for name in SENSITIVITIES}
    assert [made["items"][0]["concepts"]["c0"]["threshold"] for made in seen.values()] == list(LEVELS)
    assert [made["flagged"] for made in seen.values()] == [False, False, False, True, True]
    assert [made["false_positive_rate"] for made in seen.values()] == pytest.approx([0.0025, 0.005, 0.01, 0.02, 0.05])
    bare = Evidence(PROMPT, found.scores, [dataclasses.replace(c, levels=()) for c in found.concepts])
    assert not report(bare)["flagged"]
    with pytest.raises(HGRError, match="mine has no thresholds for a sensitivity other than"):
        report(bare, sensitivity="high")


def test_a_concept_that_is_off_is_left_out():
    made = report(evidence(PROMPT, [[0.9, 0.2]]), on=(False, True))
    assert list(made["items"][0]["concepts"]) == ["c1"] and not made["flagged"] and made["score"] == 0.2
    none = report(evidence(PROMPT, [[0.9, 0.9]]), on=(False, False))
    assert (none["flagged"], none["score"], none["items"]) == (
        False,
        0.0,
        [{"flagged": False, "score": 0.0, "concepts": {}}],
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_an_error_and_never_clean(bad):
    with pytest.raises(HGRError, match="mine gives NaN \\(picture\\)"):
        report(evidence(PROMPT, [[0.1, 0.1]]), evidence(PICTURE, [[0.1, bad]]))
    with pytest.raises(ValueError, match="nothing to evaluate"):
        report()


def test_the_stated_rate_is_the_probes_for_pictures_the_sum_of_what_was_merged_and_unknown_where_one_is():
    prompts, pictures = evidence(PROMPT, [[0.1, 0.1]]), evidence(PICTURE, [[0.1, 0.1]])
    probe = Probe(
        (0.5,),
        torch.zeros(1, 1),
        torch.ones(1, 1),
        torch.zeros(2, 1, 1),
        torch.zeros(2),
        (),
        (),
        {"false_positive_rate": 0.05},
    )
    one = dataclasses.replace(hgr(false_positive_rate=0.01), probe=probe)
    assert (
        report(prompts, of=one)["false_positive_rate"] == 0.01
        and report(pictures, of=one)["false_positive_rate"] == 0.05
    )
    merged = hgr(merged=[{"false_positive_rate": 0.01}, {"false_positive_rate": 0.02}])
    assert report(prompts, of=merged)["false_positive_rate"] == pytest.approx(0.03)
    for unknown in ({}, {"false_positive_rate": "1 %"}, {"merged": [{"false_positive_rate": 0.01}, {}]}):
        assert report(prompts, of=hgr(**unknown))["false_positive_rate"] is None


def test_read_back():
    prompts, pictures = (to_json(report(evidence(kind, [[0.9, 0.1], [0.2, 0.3]]))) for kind in (PROMPT, PICTURE))
    assert flags(prompts) == flags(pictures, 2) == [True, False]
    single, picture = (to_json(report(evidence(kind, [[0.9, 0.1]]))) for kind in (PROMPT, PICTURE))
    assert flags(single, 3) == [True] * 3 and flags(picture, 1) == [True]
    with pytest.raises(ReportError, match="about 1 pictures, but there are 3"):
        flags(picture, 3)
    with pytest.raises(ReportError, match="about 2 prompts, but there are 3"):
        flags(prompts, 3)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no",
        "null",
        "3",
        "[]",
        "{}",
        '{"version": 1, "items": []}',
        "[" * 10**5,
        '{"version": 1, "about": "prompts", "items": [1]}',
        '{"version": 1, "about": "prompts", "items": 1}',
        '{"version": 1, "about": "prompts", "items": [{"flagged": 1}]}',
        '{"version": 1, "about": "prompts", "items": [{"score": 1}]}',
        '{"version": 1, "about": "prompts", "items": {"flagged": true}}',
        '{"version": 1, "about": "prompts", "items": "flagged"}',
        '{"version": 1, "about": "prompts", "items": [{"flagged": NaN}]}',
        '{"version": 1, "about": ["prompts"], "items": [{"flagged": true}]}',
        '{"version": 1, "about": "' + "x" * 10**5 + '", "items": [{"flagged": true}]}',
        '{"version": "' + "1" * 10**5 + '", "about": "prompts", "items": []}',
        '{"version": 1' + "0" * 400 + ', "about": "prompts", "items": []}',
        '{"version": 1' + "0" * 5000 + ', "about": "prompts", "items": []}',
        '{"version": NaN, "about": "prompts", "items": []}',
        '{"version": true, "about": "prompts", "items": []}',
        '{"version": ' + "[" * 400 + "]" * 400 + ', "about": "prompts", "items": []}',
        '{"version": 1, "about": "prompts", "items": ' + '[{"flagged": ' * 300 + "true" + "}]" * 300 + "}",
        '{"version": 1, "version": 1, "about": "prompts", "items": [{"flagged": true}]}',
    ],
)
def test_what_is_no_report_is_an_error(text):
    with pytest.raises(ReportError, match="not the report of a Harmfulness Detector") as error:
        flags(text)
    assert len(str(error.value)) < 300 and str(error.value).isprintable()


def test_a_report_of_more_items_than_a_batch_can_have_is_an_error():
    """The filter makes a picture for each."""

    def said(count):
        return json.dumps({"version": 1, "about": "prompts", "items": [{"flagged": True}] * count})

    assert flags(said(1000)) == [True] * 1000
    with pytest.raises(ReportError, match="about 100000 prompts; at most 10000 can be filtered at once"):
        flags(said(100_000))


@pytest.mark.parametrize(
    "rate", [float("nan"), float("inf"), pytest.param(10**400, id="huge"), -0.1, 1.5, True, "1 %", None, [0.1]]
)
def test_a_stated_rate_that_is_no_share_is_unknown(rate):
    for training in (
        {"false_positive_rate": rate},
        {"merged": [{"false_positive_rate": 0.1}, {"false_positive_rate": rate}]},
    ):
        made = report(evidence(PROMPT, [[0.9, 0.1]]), of=hgr(**training))
        assert made["false_positive_rate"] is None and '"false_positive_rate": null' in to_json(made)
    made = report(evidence(PROMPT, [[0.9, 0.1]]), of=hgr(false_positive_rate=0.4), sensitivity="highest")
    assert made["false_positive_rate"] == 1.0, "no rate is above 1"


def test_a_report_is_json_for_every_reader():
    made = report(evidence(PROMPT, [[0.9, 0.1]]), words=[[("caf\u00e9", 0.5), ("half \ud800", 0.5)]])
    text = to_json(made)
    assert "caf\u00e9" in text and text.encode() and flags(text) == [True]
    made["items"][0]["score"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        to_json(made)


def test_another_version_and_no_items_are_errors():
    with pytest.raises(ReportError, match="version 2; this SafeCFG reads version 1"):
        flags('{"version": 2, "about": "prompts", "items": []}')
    with pytest.raises(ReportError, match="about 0 prompts"):
        flags('{"version": 1, "about": "prompts", "items": []}')
