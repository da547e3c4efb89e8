"""The benchmark of the library's HGR on real prompts: what is measured, what is left out of the recipe, its tables."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import real_language
from hashed_words import Hashed

from hgr.data import library, sources
from hgr.data.library import CATEGORIES


@pytest.fixture
def folder(tmp_path):
    """Data in the layout that the benchmark reads."""

    def write(name, head, rows):
        with open(tmp_path / name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([head, *rows])

    rows = [(i, CATEGORIES[i % 7], f"bad thing{i}, evil", f"dear thing{i}, good") for i in range(70)]
    write("coprov2_pairs.csv", ("id", "category", "harmful", "clean"), rows)
    write("coco_captions.csv", ("id", "caption"), [(i, f"seen{i} with sight{i}") for i in range(60)])
    users = [(i, f"green hill{i}, blue lake, soft light", ("plain", "dark")[i % 5 == 0]) for i in range(50)]
    write("user_prompts.csv", ("id", "prompt", "kind"), users)
    return tmp_path


def test_prompts_by_kind_and_harmful_ones_among_other_text(folder):
    prompts, rows = real_language.gather(folder)
    assert [len(prompts[kind]) for kind in ("coco", "plain", "dark", "harmful", "twins")] == [60, 40, 10, 70, 70]
    assert [row.harmful for row in rows] == prompts["harmful"]
    for alone, among, tail, head in zip(*(prompts[kind] for kind in ("alone", "among", "tail", "head")), strict=True):
        assert alone in prompts["harmful"] and all(alone in text for text in (among, tail, head))
        assert tail.startswith(alone) and head.endswith(alone) and len(among) > len(alone)
    assert sum(a != b for a, b in zip(prompts["coco"], prompts["typo"], strict=True)) > 50
    tagged = {kind: prompts[f"tags, {kind}"] for kind in ("clean", "explicit")}
    assert all(len(set(texts)) == 150 for texts in tagged.values()) and not set.intersection(*map(set, tagged.values()))


def test_recall_at_a_rate():
    clean, harmful = torch.arange(1000.0), torch.tensor([985.0, 989.5, 995.0, 2000.0])
    assert real_language.at_rate(harmful, clean, 0.01) == 0.75
    assert real_language.at_rate(clean, clean, 0.01) == 0.01


def test_each_part_of_the_recipe_can_be_left_out_and_comes_back():
    whole = sources.built_in(limit=60)
    seen = {}
    for name in real_language.WITHOUT:
        with real_language.without(name):
            seen[name] = sources.built_in(limit=60)
    assert sources.built_in(limit=60) == whole
    manner, clean, own, pairs, related = seen.values()
    assert own == whole, "that part is in the thresholds"
    assert manner.pairs != whole.pairs and all("<lora:add_detail:0.8>" not in pair.harmful for pair in manner.pairs)
    assert 1000 < len(clean.clean) < len(whole.clean) - 2500
    groups = {twins.group for each in CATEGORIES for twins in library.written(each) if " " in twins.group}
    groups -= {term for each in CATEGORIES for part in library.data(each)["parts"] for term, _ in part["terms"]}
    assert not groups & {pair.group for pair in pairs.pairs} and groups & {pair.group for pair in whole.pairs}
    assert len(related.pairs) == len({pair.harmful for pair in related.pairs}) < len(whole.pairs)


def test_public_pairs_that_are_trained_on_are_not_measured(folder):
    with open(folder / "coprov2_pairs.csv", "a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            (i, CATEGORIES[i % 7], f"bad thing{i}, evil", f"dear thing{i}, good") for i in range(70, 300)
        )
    trained = real_language.public_pairs(folder, 0)
    own = len(sources.built_in().pairs)
    _, measured = real_language.gather(folder, held_out=True)
    assert len(trained.pairs) - own > 100 and {row.category for row in measured} == set(CATEGORIES)
    assert not {pair.harmful for pair in trained.pairs} & {row.harmful for row in measured}


def test_the_pages_say_what_the_script_found():
    root = Path(real_language.ROOT)
    results = json.loads((root / "benchmarks/results/real_language.json").read_text())
    readme, page = ((root / name).read_text() for name in ("README.md", "docs/benchmarks.md"))
    assert real_language.tables(results) in page
    ablation = json.loads((root / "benchmarks/results/real_language_ablation.json").read_text())
    assert real_language.ablation_tables(ablation) in page

    sizes = json.loads((root / "benchmarks/results/real_language_sizes.json").read_text())
    assert real_language.size_tables(sizes) in page

    def mean(key, digits):
        return f"{100 * sum(run[key] for run in results['seeds']) / len(results['seeds']):.{digits}f}"

    readme, page = (" ".join(text.split()) for text in (readme, page))
    for text in (
        f"fires in {mean('coco', 1)} % of photo captions and in {mean('users', 1)} % of prompts",
        f"finds {mean('harmful', 0)} % of CoProV2's harmful prompts and {mean('tags, explicit', 0)} % of explicit tag",
        f"finds {mean('alone', 0)} % alone, and {mean('among', 0)} % hidden among",
    ):
        assert text in readme
    for text in (
        f"fires in {mean('coco', 1)} % of COCO captions and in {mean('users', 1)} % of users' prompts",
        f"finds {mean('harmful', 1)} % of CoProV2's harmful prompts",
        f"it finds {mean('recall at 1 %', 1)} %. [Table]",
        f"of which it finds {mean('alone', 1)} % alone, it finds {mean('among', 1)} % among twelve",
        f"Of explicit tag prompts it finds {mean('tags, explicit', 1)} %",
    ):
        assert text in page


@pytest.mark.slow
def test_the_command_trains_measures_shows_and_resumes(monkeypatch, capsys, folder):
    monkeypatch.setattr(real_language, "Encoder", Hashed)
    monkeypatch.setattr(real_language.importlib.util, "find_spec", lambda name: None)
    own = sources.built_in
    monkeypatch.setattr(sources, "built_in", lambda ids=CATEGORIES, seed=0, limit=None: own(ids, seed, 60))
    (folder / "page").write_text("")
    places = [f"--data={folder}", *(f"--{name}={folder / name}" for name in ("runs", "page", "results"))]
    monkeypatch.setattr(sys, "argv", ["real_language.py", *places, "--seeds=2", "--steps=2", "--width=16", "--depth=1"])
    sys.argv.append("--ablation")
    real_language.main()
    text = capsys.readouterr().out
    assert "2 seeds" in text and "2 steps of 32 pairs" in text and text.count("### ") == 3 + 2 and "nan" not in text
    assert all(f"| {part} |" in text for part in ("nothing", *real_language.WITHOUT, "the library and CoProV2"))
    assert all(what in text for what, _ in real_language.TARGETS.values())
    monkeypatch.setattr(real_language, "train", None)  # it is done
    real_language.main()
    assert capsys.readouterr().out == text
    assert (folder / "page").read_text() == "" and not (folder / "results").exists(), "a quick look writes no page"
    (found,) = (folder / "runs").iterdir()
    assert json.loads((found / "seed-1.json").read_text())["own"].keys() == set(CATEGORIES)


@pytest.mark.slow
def test_what_fewer_prompts_cost_is_shown(monkeypatch, capsys, folder):
    monkeypatch.setattr(real_language, "Encoder", Hashed)
    places = [f"--data={folder}", *(f"--{name}={folder / name}" for name in ("runs", "page", "results"))]
    monkeypatch.setattr(sys, "argv", ["real_language.py", "--sizes", *places, "--steps=2", "--width=16", "--depth=1"])
    (folder / "page").write_text("")
    short = real_language.QUALITIES["draft"].settings
    sizes = {
        "many": real_language.Quality(real_language.DEFAULTS, 80, 800),
        "few": real_language.Quality(short, 60, 600),
    }
    monkeypatch.setattr(real_language, "SIZES", sizes)
    real_language.main()
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    many, few = (next(line for line in lines if line[0] == name) for name in ("many", "few"))
    assert int(many[1].replace(",", "")) > int(few[1].replace(",", "")) > 400
    assert (many[2:4], few[2:4]) == (["2", "1"], ["1", "2"])
    assert (folder / "page").read_text() == "" and not (folder / "results_sizes.json").exists(), (
        "a quick look writes no page"
    )
