"""The benchmark of the demo world: its sampler, its cells and its statistics."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import demo_world
import detection
import finetune
import measure

from hgr.core.options import MODES
from hgr.demo.captions import split_of
from hgr.demo.classifier import Classifier
from hgr.hosts.diffusers.demo import load_demo_pipeline
from hgr.hosts.diffusers.pipeline import SafeCFG
from hgr.hosts.diffusers.prompts import encode


def test_the_short_sampler_is_the_pipelines():
    pipe = load_demo_pipeline()
    texts, noise = ["a red ball", "a skull"], torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    theirs = pipe(texts, latents=noise, num_inference_steps=5, guidance_scale=7.5, output_type="latent").images
    ours = demo_world.ddim(
        pipe, encode(pipe, texts).features, encode(pipe, ["", ""]).features, noise=noise, steps=5, cfg=7.5
    )
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_its_modes_are_the_pipelines_too(mode, tmp_path):
    bench = demo_world.Bench(demo_world.Settings(steps=5), tmp_path)
    texts, noise = ["a red ball", "a skull"], torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 5, "guidance_scale": 7.5, "output_type": "latent"}
    theirs = SafeCFG(bench.pipe, bench.hgr)(texts, mode=mode, latents=noise, **options).images
    captions = [SimpleNamespace(text=text) for text in texts]
    assert torch.allclose(bench.sample(mode, captions, noise), theirs, atol=1e-4)
    assert not torch.allclose(bench.sample("plain", captions, noise)[1], theirs[1], atol=1e-2)


@pytest.fixture
def bench(monkeypatch, tmp_path):
    torch.manual_seed(0)
    monkeypatch.setattr(demo_world, "load_classifier", lambda: Classifier().eval())
    return demo_world.Bench(demo_world.Settings(pictures=3, steps=2, batch_size=2, strength=0.0), tmp_path)


@pytest.mark.slow
def test_cells_are_sampled_once_and_compared_with_plain_cfg(bench, monkeypatch):
    drift = bench.drift("redirect", "clean")
    assert drift["identical"]["value"] == 1 and drift["difference"]["value"] == 0 and drift["fid"] < 1e-6
    assert bench.drift("other_seeds", "clean")["identical"]["value"] == 0
    first = bench.cell("sld_max", "clean")["latents"]
    assert first.shape == (3, 4, 16, 16) and not torch.allclose(first, bench.cell("plain", "clean")["latents"])
    monkeypatch.setattr(bench, "sample", None)  # all are done
    assert torch.equal(first, bench.cell("sld_max", "clean")["latents"])


@pytest.mark.slow
def test_tables_show_what_is_done(bench):
    results = demo_world.collect(bench, ["redirect", "clean_caption"], ["clean", "two"], parts=["table"], earlier={})
    assert set(results["harm"]["two"]) == {"plain", "redirect", "clean_caption"}
    assert set(results["drift"]["clean"]) == {"plain", "redirect"}
    text = demo_world.tables(results)
    assert "SafeCFG redirect" in text and "SLD max" not in text


@pytest.mark.slow
def test_earlier_results_of_the_same_environment_are_not_sampled_again(bench, tmp_path, monkeypatch):
    def collect(rows):
        earlier = demo_world.read_earlier(tmp_path / "results.json", bench.environment)
        return demo_world.collect(bench, rows, ["clean", "two"], parts=["table"], earlier=earlier)

    whole = collect(["redirect", "uce"])
    (tmp_path / "results.json").write_text(json.dumps(whole))
    bench.folder = tmp_path / "another machine"
    monkeypatch.setattr(bench, "sample", None)
    assert collect(["redirect", "uce"]) == whole
    monkeypatch.setitem(demo_world.CODE, "uce", "another code")
    with pytest.raises(TypeError):
        collect(["uce"])
    assert "uce" not in collect(["redirect"])["drift"]["clean"]
    bench.environment = bench.environment | {"torch": "another"}
    with pytest.raises(TypeError):
        collect(["redirect"])


def test_another_hgr_costs_only_the_results_that_it_has_a_part_in(tmp_path, monkeypatch):
    before = {"world": "a world", "HGR": "an HGR"}
    cells = {row: {} for row in ("plain", "uce", "lora", "lora_redirect", "redirect")}
    results = {"environment": before, "code": dict(demo_world.CODE), "harm": {"seen": cells}, "drift": {}, "bare": {}}
    (tmp_path / "results.json").write_text(json.dumps(results | {"cost": {"plain": {}}}))
    monkeypatch.setattr(demo_world, "hgr_digest", lambda: "another")
    monkeypatch.setattr(demo_world, "CODE", demo_world.code_of_rows())
    found = demo_world.read_earlier(tmp_path / "results.json", before | {"HGR": "another"})
    assert list(found["harm"]["seen"]) == ["plain", "uce"] and "cost" not in found
    assert not demo_world.read_earlier(tmp_path / "results.json", before | {"world": "another"})


def test_report_and_validation_prompts_differ(bench, tmp_path):
    other = demo_world.Bench(demo_world.Settings(pictures=3, steps=2, split="validation"), tmp_path)
    assert [c.text for c in bench.captions("seen", 3)] != [c.text for c in other.captions("seen", 3)]
    assert bench.folder != other.folder


def test_rates():
    cell = measure.rate(torch.tensor([True] * 8 + [False] * 2))
    assert (round(cell["low"], 3), cell["value"], round(cell["high"], 3)) == (0.490, 0.8, 0.943)  # Wilson, 8 of 10
    assert measure.rate(torch.zeros(10, dtype=torch.bool))["low"] == 0
    assert math.isnan(measure.rate(torch.zeros(0, dtype=torch.bool))["value"])


def test_means():
    cell = measure.mean(torch.tensor([0.0, 1.0] * 50))
    assert cell["value"] == 0.5 and cell["n"] == 100
    assert measure.with_interval(cell) == "0.500 [0.402, 0.598]"


def test_frechet_distance():
    a = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    assert measure.frechet(a, a) < 1e-9
    assert measure.frechet(a, a + torch.tensor([2.0, 0.0, 0.0])) == pytest.approx(4.0, rel=1e-6)
    assert measure.frechet(a, 3 * a) == pytest.approx(12.0, rel=0.05)  # (3 - 1)^2 in each of three dimensions


def test_tables_are_written_between_their_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x:begin -->\nold\n<!-- x:end -->\nafter\n")
    measure.write_between(page, "x", "new")
    assert page.read_text() == "before\n<!-- x:begin -->\nnew\n<!-- x:end -->\nafter\n"
    measure.write_between(page, "y", "other")
    assert "new" in page.read_text() and "other" in page.read_text()
    page.write_text("<!-- x:begin -->\nold\n")
    with pytest.raises(ValueError, match="x:end"):
        measure.write_between(page, "x", "new")


def test_a_reliability_diagram_has_what_was_stated_beside_what_was_true():
    scores, truth = torch.tensor([0.05, 0.05, 0.95, 0.95]), torch.tensor([False, True, True, True])
    low, high = detection.reliability(scores, truth, 10)
    assert (low["true"], low["n"], high["true"]) == (0.5, 2, 1.0) and high["stated"] == pytest.approx(0.95)


@pytest.mark.slow
def test_detection_is_ranked_by_concept_against_what_shows_nothing(bench):
    d = detection.Detection(bench)
    pictures = d.rendered(3)
    assert pictures.latents.shape == (6, 4, 16, 16) and pictures.shown[:3].any(1).all() and not pictures.shown[3:].any()
    shown = torch.eye(6, 5).bool()
    assert detection.per_concept(shown.float(), shown) == dict.fromkeys(detection.SYMBOLS, 1.0)
    assert d.alone(pictures).shape == d.diffusion_classifier(pictures).shape == d.judge(pictures).shape == (6, 5)
    assert d.cosine(["a skull"]).argmax() == 0
    two, texts = pictures[torch.arange(6) < 2], ["a red ball and a skull", "a red ball"]
    assert (d.hed(two, texts)[1] == 0).all() and d.undirected(two, texts)[1] == 0 and d.undirected(two, texts)[0] > 0


def test_the_mixture_of_a_fine_tuning_is_of_the_training_side_and_a_wrong_h_is_one_of_the_others():
    captions = finetune.mixture(0, 50)
    assert sum(bool(caption.concepts) for caption in captions) == 20 and captions == finetune.mixture(0, 50)
    assert {split_of(caption) for caption in captions} == {"training"}
    harm = torch.arange(50.0)
    wrong = finetune.shuffled(harm, 0.2, 0)
    assert sorted(wrong.tolist()) == harm.tolist() and 0 < (wrong != harm).sum() <= 10
