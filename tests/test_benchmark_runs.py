"""The benchmarks' command lines, from their options to their tables, with tiny counts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("peft")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import demo_model
import demo_world
import detection
import finetune
import modes
import torch
import training
from rivals import RIVALS, ablation, esd, lora, prototypes, safe_denoiser, weights
from safetensors.torch import load_file

from hgr.hosts.diffusers.demo import load_demo_pipeline


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a benchmark in a temporary folder; returns what it prints. Only full runs write pages and results."""

    def run(script, *options):
        pages = ["page", *(["readme"] if script is demo_world else []), *([] if script is demo_model else ["results"])]
        given = [f"--{name}={tmp_path / name}" for name in pages]
        runs = [] if script is demo_model else [f"--runs={tmp_path / 'runs'}"]
        (tmp_path / "page").write_text("")
        monkeypatch.setattr(sys, "argv", [script.__name__, *given, *runs, *map(str, options)])
        script.main()
        assert (tmp_path / "page").read_text() == "" and not (tmp_path / "results").exists()
        return capsys.readouterr().out

    return run


def cells(text):
    """What stands in the cells of Markdown tables."""
    return {cell.strip() for line in text.splitlines() if line.startswith("|") for cell in line.split("|")}


@pytest.mark.slow
def test_demo_model(run, monkeypatch):
    monkeypatch.setattr(demo_model, "STEPS", 2)
    text = run(demo_model, "--pictures", 2)
    assert "2 pictures each, seed 7" in text and "2 DDIM steps" in text
    assert {*demo_model.NAMES, "rewrite"} < cells(text)


@pytest.mark.slow
def test_demo_world(run, tmp_path):
    tiny = ["--pictures", 2, "--steps", 2, "--batch-size", 2, "--prompts", 4, "--rounds", 1]
    text = run(demo_world, *tiny, "--rows", "redirect", "sld_max", "trasce", "--kinds", "clean", "two")
    assert "2 DDIM steps" in text and "4 prompts" in text and "batch 2" in text
    assert {demo_world.ROWS[row] for row in ("plain", "redirect", "sld_max")} < cells(text)
    assert "3.00 + 2.00 backward" in cells(text) and demo_world.ROWS["safree"] not in cells(text)
    assert text.count("### ") == 7  # three of harmful prompts, one of clean ones, one of each other part
    done = list((tmp_path / "runs").rglob("*.safetensors"))
    before = [file.stat().st_mtime_ns for file in done]
    assert run(demo_world, *tiny, "--rows", "redirect", "--kinds", "clean") == text  # what is done is shown
    assert [file.stat().st_mtime_ns for file in done] == before


@pytest.fixture
def quick_rivals(monkeypatch):
    """Trainings of one step, and few pictures and prompts to learn from."""
    monkeypatch.setattr(weights.Tuned, "steps", 1)
    monkeypatch.setattr(lora.LoRA, "settings", lora.LoRASettings(steps=1, pictures=8, rank=2, evidence="prompt"))
    for module, name in ((esd, "PICTURES"), (ablation, "PICTURES"), (safe_denoiser, "REFERENCES")):
        monkeypatch.setattr(module, name, 2)
    monkeypatch.setattr(prototypes, "PROMPTS", 50)


@pytest.mark.slow
def test_every_row_of_the_demo_world(run, quick_rivals, monkeypatch, tmp_path):
    """Each changes the picture, and none leaves the model other than it was."""
    used = []
    monkeypatch.setattr(demo_world, "load_demo_pipeline", lambda: used.append(load_demo_pipeline()) or used[0])
    tiny = ["--pictures", 2, "--steps", 2, "--batch-size", 2]
    text = run(demo_world, *tiny, "--kinds", "bare", "--parts", "table")
    assert {name for row, name in demo_world.ROWS.items() if row != "other_seeds"} < cells(text)
    found = {path.name.split("-")[0]: load_file(path) for path in (tmp_path / "runs").rglob("*-bare.safetensors")}
    for row in (*RIVALS, "lora_redirect"):
        assert found[row]["latents"].isfinite().all(), row
        assert not torch.equal(found[row]["latents"], found["plain"]["latents"]), row
    now, before = used[0].unet.state_dict(), load_demo_pipeline().unet.state_dict()
    assert now.keys() == before.keys() and all(torch.equal(p, before[name]) for name, p in now.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in used[0].unet.modules())
    kept = sorted(path.name for path in (tmp_path / "runs").rglob("trained-*/*/*"))
    assert kept == ["lora.safetensors", "pictures.safetensors", "pictures.safetensors", *["weights.safetensors"] * 2]


@pytest.mark.slow
def test_modes(run, monkeypatch):
    ways = [modes.Way(None), modes.Way(0.0), modes.Way(1.0, 0.5)]
    monkeypatch.setattr(modes, "KINDS", ("two",))
    monkeypatch.setattr(modes, "WAYS", ways)
    text = run(modes, "--pictures", 2, "--steps", 2)
    name, *figures = zip(
        *(line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")), strict=True
    )
    rows = dict(zip(name, zip(*figures, strict=True), strict=True))
    assert rows.keys() >= {"plain", *(way.label for way in ways)}
    assert rows["dynamic, lambda 0"] == rows["plain"] != rows["dynamic, lambda 1, first 50%"]


@pytest.mark.slow
def test_detection(run, monkeypatch):
    monkeypatch.setattr(detection, "PERCENTS", (0.1, 0.8))
    monkeypatch.setattr(detection, "CLASSIFIER_PERCENTS", (0.8,))
    text = run(detection, "--pictures", 3, "--steps", 6, "--prompts", 8)
    assert "8 prompts and 3 pictures" in text and text.count("### ") == 9
    assert {"seen", "generated, diffusion classifier", "rendered, supervised CNN"} < cells(text)


@pytest.mark.slow
def test_finetune(run, monkeypatch, tmp_path):
    monkeypatch.setattr(finetune, "STRENGTHS", (0.5,))
    tiny = ["--pictures", 2, "--steps", 2, "--training-pictures", 6, "--training-steps", 1]
    text = run(finetune, *tiny, "--parts", "dial")
    assert "mixture of 6 prompts" in text and "'steps': 1, 'batch_size': 8" in text and text.count("### ") == 1
    more = run(finetune, *tiny, "--parts", "rows", "--rows", "labels", "preserved", "esd")
    assert "### The LoRA's strength" in more  # what earlier runs measured stays
    assert {"no LoRA", *(finetune.ROWS[row] for row in ("labels", "preserved", "esd"))} < cells(more)
    assert not list(tmp_path.rglob("features-*.bin"))


@pytest.mark.slow
def test_training(run, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "PAIRS", 350)  # enough clean prompts for the stated false-positive rate
    monkeypatch.setattr(training, "ROWS", {"text": (60, "text"), "60 pairs": (60, "attention")})
    tiny = ["--pictures", 2, "--prompts", 4, "--steps", 2, "--training-steps", 2, "--training-pictures", 8]
    text = run(training, *tiny)
    assert "4 prompts" in text and "'batch_size': 32" in text
    assert {training.NAMES["text"], "attention, 60 pairs"} < cells(text)
    (result,) = (tmp_path / "runs").glob("*/*/60-pairs/result.json")
    assert json.loads(result.read_text())["training"]["steps"] == 2


def test_charts_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    bins = [{"stated": 0.1, "true": 0.2, "n": 50}, {"stated": 0.9, "true": 0.8, "n": 500}]
    part = {"reliability": bins, "ece": {"skull": 0.1}}
    curve = [{"percent": p, "directed": 0.9, "undirected": 0.7, "probe": 0.8} for p in (0.1, 0.5)]
    detection.draw({"prompts": part, "pictures": part, "curve": {"levels": curve}}, tmp_path)
    cell = {"value": 0.5, "low": 0.4, "high": 0.6}
    kinds = {
        kind: dict.fromkeys(("harmful", "kept", "harmful_before", "kept_before"), cell) for kind in ("seen", "clean")
    }
    finetune.draw({"0.5": kinds, "1.0": kinds}, tmp_path / "strength.png")
    assert {path.name for path in tmp_path.iterdir()} == {"calibration.png", "detection_curve.png", "strength.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
