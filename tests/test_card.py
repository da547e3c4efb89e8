"""The report card below the hosts: what is kept and resumed, what another judge adds, and what the sheet shows."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from helpers import small_hgr

from hgr.core.hgr import HGRError
from hgr.core.json_text import json_text
from hgr.core.progress import SILENT
from hgr.detection import card, sheet
from hgr.detection.report import ReportError

SETTINGS = {"strength": 1.0, "mode": "redirect", "concepts": "", "sensitivity": "normal"}
PROMPTS = {"a meadow": False, "a skull": True, "a lake": False}
RED = tuple(int(sheet.RED[i : i + 2], 16) for i in (1, 3, 5))


@pytest.fixture
def hgr():
    """Its first concept fires in the second prompt of PROMPTS; its probe is asked through `probe` only."""
    made = small_hgr()
    made.probe = object()
    return made


@pytest.fixture
def make(hgr, tmp_path):
    """Makes a card of invented pictures; `make.painted` lists what was painted."""

    def make(probe=lambda painted: False, prompts=PROMPTS, stop_after=None, pictures=2, **changes):
        painted = make.painted = []

        def paint(text, method, number):
            if len(painted) == stop_after:
                raise KeyboardInterrupt
            painted.append((text, method, number))
            moved = 0.0 if text != "a skull" or method == card.PLAIN else 1.0 + (method == card.SAFE)
            generator = torch.Generator().manual_seed(number)
            latent = torch.randn(1, 4, 8, 8, generator=generator) + moved
            pixels = torch.rand(600, 300, 3, generator=generator)
            return card.Painted(latent, pixels, 2.0, 0.5 + len(painted))

        gates = torch.tensor([[0.9 if text == "a skull" else 0.1, 0.1] for text in prompts])
        given = dict(
            gates=gates,
            settings=SETTINGS | changes,
            sampling={"pictures": pictures, "steps": 4, "cfg": 7.5, "sampler_name": "euler"},
            size=(4, 8, 8),
            paint=paint,
            probe=probe,
            folder=tmp_path,
            progress=SILENT,
        )
        return card.make_card(hgr, prompts, **given)

    return make


def test_methods_share_the_noise_and_the_report_says_how_far_they_move(make):
    report, pictures = make()
    numbers = {}
    for text, _, number in make.painted:
        numbers.setdefault(text, set()).add(number)
    assert list(numbers.values()) == [{0, 1}, {2, 3}, {4, 5}] and len(make.painted) == 18
    clean, harmful, _ = report["prompts"]
    assert [item["fired"] for item in report["prompts"]] == [[], ["c0"], []]
    assert clean["methods"]["SafeCFG"]["identical"] == [True, True]
    assert harmful["methods"]["SafeCFG"]["moved"][0] == pytest.approx(2, rel=0.1)
    assert harmful["methods"]["negative prompt"]["moved"][0] == pytest.approx(1, rel=0.1)
    assert len(pictures) == 18 and all(picture.shape == (512, 256, 3) for picture in pictures)
    json.loads(json_text(report))


def test_an_interrupted_card_resumes_and_is_the_same_as_one_that_was_not(make, tmp_path):
    whole, pictures = make()
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(KeyboardInterrupt):
        make(stop_after=7)
    first = make.painted
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 7
    (tmp_path / names[3]).write_bytes(b"damaged")
    resumed, again = make()
    assert len(make.painted) == 18 - 7 + 1 and make.painted[0] in first
    for report in (whole, resumed):
        for item in report["prompts"]:
            for about in item["methods"].values():
                del about["seconds"]
        for about in report["summary"]["methods"].values():
            del about["time"]
    assert resumed == whole and all(map(torch.equal, pictures, again))


def test_why_the_probe_cannot_say_outlives_an_interruption_and_it_is_asked_once(make):
    asked = []

    def probe(painted):
        asked.append(1)
        raise HGRError("made for another model.")

    first, _ = make(probe)
    again, _ = make(probe)
    assert len(asked) == 1 and not make.painted
    for report in (first, again):
        assert report["judge"] is None and report["judge_fault"] == "made for another model."
        assert report["prompts"][1]["methods"]["plain"]["harmful"] == [None, None]
        assert "cannot judge the pictures: made for another model. moved" in card.summary_text(report)


def test_an_interruption_is_no_fault_of_the_probe(make):
    def probe(painted):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(probe)


def test_another_judge_says_what_it_sees_in_the_pictures_order(make):
    report, _ = make()
    flags = [False] * 18
    flags[6] = flags[7] = flags[8] = True  # both plain ones of the second prompt, and one with a negative prompt
    judged = card.with_judge(card.read_card(json_text(report)), "Stranger", flags)
    methods = judged["prompts"][1]["methods"]
    assert [methods[name]["outside"] for name in card.METHODS] == [[True, True], [True, False], [False, False]]
    shares = [judged["summary"]["methods"][name]["outside_where_a_concept_fires"] for name in card.METHODS]
    assert shares == [1, 0.5, 0]
    assert "plain: harmful 0%; by Stranger 100%;" in card.summary_text(judged)
    assert "by Stranger" not in card.summary_text(report) and report["outside"] is None
    with pytest.raises(ReportError, match="has 18 pictures, but 17 are judged"):
        card.with_judge(report, "Stranger", flags[1:])
    card.read_card(json_text(judged))  # a judged card may be judged again


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda report: "{", "not the report of a SafeCFG Report Card"),
        (lambda report: "[]", "not the report of a SafeCFG Report Card"),
        (lambda report: '{"version": 1, "items": []}', "not the report of a SafeCFG Report Card"),
        (lambda report: json_text(report | {"version": 2}), "has version 2; this SafeCFG reads version 1"),
        (lambda report: json_text(report | {"prompts": report["prompts"][0]}), "not the report"),
        (lambda report: json_text(report | {"sampling": {"pictures": 3}}), "not the report"),
        (lambda report: json_text(report | {"settings": None}), "not the report"),
        (lambda report: json_text(report | {"prompts": [report["prompts"][0] | {"prompt": 3}]}), "not the report"),
        (lambda report: json_text(report | {"prompts": []}), "not the report"),
    ],
)
def test_text_that_is_no_card_is_one_sentence(make, damage, why):
    report, _ = make()
    with pytest.raises(ReportError, match=why) as caught:
        card.read_card(damage(report))
    assert len(str(caught.value)) < 400


def test_the_held_out_figures_of_the_gates_are_in_the_table(make, hgr):
    hgr.training["metrics"] = {"concepts": {"c0": {"auroc_twins": 0.91}, "c1": {"auroc_twins": None}, "odd": 3}}
    assert "training held out, AUROC: c0 0.910\n" in card.summary_text(make()[0])
    hgr.training["metrics"] = "?"
    assert "AUROC" not in card.summary_text(make()[0])


def shown(report, pictures, **options):
    """What the sheet says on each picture, by prompt and method: the first of each."""
    return [[cells[0].says for cells in row.cells] for row in sheet.card_rows(report, pictures, **options)]


def test_what_any_judge_flags_or_nobody_judges_is_blurred(make):
    report, pictures = make()
    assert shown(report, pictures, blur=True)[:2] == [["", "identical", "identical"], ["blurred", "blurred", ""]]
    assert shown(report, pictures, blur=False)[1] == ["", "", ""]
    stranger = card.with_judge(report, "x", [i == 10 for i in range(18)])  # SafeCFG's first of the second prompt
    assert shown(stranger, pictures, blur=True)[1] == ["blurred"] * 3
    (cell, *_) = sheet.card_rows(stranger, pictures, blur=True)[1].cells[2]
    assert cell.outside and not cell.harmful and cell.picture.float().std() < pictures[10].float().std() / 2


def test_without_a_probe_another_judge_clears_safecfgs_picture(make, hgr):
    hgr.probe = None
    report, pictures = make()
    assert shown(report, pictures, blur=True)[1] == ["blurred"] * 3
    cleared = card.with_judge(report, "x", [False] * 18)
    assert shown(cleared, pictures, blur=True)[1] == ["blurred", "blurred", ""]


def test_the_sheet_marks_what_each_judge_sees(make):
    report, pictures = make(lambda painted: False, pictures=1)
    red = [
        (np.asarray(sheet.draw_card(each, pictures, blur=False)[0]) == RED).all(-1).sum()
        for each in (
            report,
            card.with_judge(report, "x", [False] * 9),
            card.with_judge(report, "x", [True] + [False] * 8),
        )
    ]
    assert red[0] == red[1] and red[2] > red[1] + 200
    report["prompts"][0]["methods"]["plain"]["harmful"] = [True]
    assert (np.asarray(sheet.draw_card(report, pictures, blur=False)[0]) == RED).all(-1).sum() > red[0] + 1000


def test_many_prompts_give_pages_of_one_size(make):
    report, pictures = make(prompts={f"prompt {i}": False for i in range(30)}, pictures=1)
    pages = sheet.draw_card(report, pictures, blur=True)
    assert len(pages) == 2 and pages[0].size == pages[1].size


def test_a_card_says_for_which_sensitivity_there_are_no_thresholds_before_it_paints(make, hgr):
    hgr.concepts = [dataclasses.replace(concept) for concept in hgr.concepts]
    with pytest.raises(HGRError, match="sensitivity"):
        make(sensitivity="high")
    assert make.painted == []
