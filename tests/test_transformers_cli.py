"""`python -m hgr` on models whose denoiser is a transformer: what only needs text encoders and sampling works, anything
else is one sentence."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny
from cli_kit import CLEAN, HARMFUL, command

from hgr.core import file
from hgr.data.pair_file import write_pairs
from hgr.data.sources import demo_world
from hgr.hosts.diffusers.loading import load_pipeline
from hgr.hosts.diffusers.pipeline import SafeCFG


@pytest.fixture
def few(tmp_path):
    """A file of pairs for one concept."""
    demo, path = demo_world(50), tmp_path / "few.csv"
    write_pairs(dataclasses.replace(demo, topics=demo.topics[:1], pairs=demo.of("skull"), clean=demo.clean[:50]), path)
    return path


def test_train_with_the_text_loss_makes_an_hgr_that_guides_the_model(models, few, tmp_path):
    output = tmp_path / "out.safetensors"
    options = ["--steps", 3, "--batch-size", 8, "--width", 32, "--depth", 1, "--false-positive-rate", 10]
    options += ["--model", models / "sd3", "--file", few, "--work", tmp_path / "work", "--output", output]
    assert command("train", *options, "--losses", "text") == 0
    safe = SafeCFG(load_pipeline(models / "sd3", torch.device("cpu"), for_people=True), output)
    assert safe.hgr.network.text_dim == 32 and safe.hgr.network.pooled_dim == 32
    assert safe.hgr.encoder.family == (
        "CLIPTextModelWithProjection and CLIPTextModelWithProjection and T5EncoderModel (32)"
    )
    # three steps teach the gates nothing: they are opened by hand
    safe.hgr.concepts[:] = [dataclasses.replace(concept, scale=0.0, bias=5.0) for concept in safe.hgr.concepts]
    plain, guided = (
        call(
            HARMFUL,
            height=32,
            width=32,
            num_inference_steps=2,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images
        for call in (safe.pipe, safe)
    )
    assert guided.isfinite().all() and not torch.equal(plain, guided)


def test_detect_judges_prompts(models, tmp_path):
    prompts, output = tmp_path / "prompts.txt", tmp_path / "out.json"
    prompts.write_text(f"{CLEAN}\n{HARMFUL} {'and a house ' * 60}\n")
    hgr = models / "sd3.safetensors"
    assert command("detect", "--model", models / "sd3", "--hgr", hgr, "--prompts", prompts, "--output", output) == 0
    found = [row["concepts"] for row in json.loads(output.read_text())]
    assert [(item["on"]["flagged"], item["off"]["flagged"]) for item in found] == [(True, False)] * 2


def test_sample_writes_a_picture_by_the_pipelines_own_guidance_scale(models, tmp_path, capsys):
    options = ["--model", models / "sd3", "--prompt", HARMFUL, "--steps", 2]
    pictures = {}
    for name, more in {
        "plain": ["--plain"],
        "same": ["--plain", "--cfg", 7.0],
        "safe": ["--hgr", models / "sd3.safetensors"],
        "dynamic": ["--hgr", models / "sd3.safetensors", "--mode", "dynamic"],
    }.items():
        assert command("sample", *options, *more, "--output", tmp_path / f"{name}.png") == 0
        pictures[name] = (tmp_path / f"{name}.png").read_bytes()
    assert pictures["plain"] == pictures["same"] and len(set(pictures.values())) == 3
    assert "present" in capsys.readouterr().out


def test_what_needs_a_unet_is_one_sentence(models, few, tmp_path, capsys):
    prompts, model = tmp_path / "prompts.txt", ["--model", models / "sd3"]
    prompts.write_text(f"{HARMFUL}\n" * 10)
    hgr = ["--hgr", models / "sd3.safetensors"]
    new = ["--output", tmp_path / "new.safetensors"]
    for words in (
        ["train", *model, "--file", few, "--work", tmp_path / "work", *new, "--false-positive-rate", 10],
        ["finetune", *model, *hgr, "--prompts", prompts, "--evidence", "prompt", "--work", tmp_path / "work", *new],
    ):
        assert command(*words) == 2, words
        error = capsys.readouterr().err.splitlines()[-1]
        assert "StableDiffusion3Pipeline, whose denoiser is no UNet" in error and "--losses text" in error, words
    assert not (tmp_path / "new.safetensors").exists()


def test_sample_of_a_video_model_is_one_sentence(demo_pipe, models, tmp_path, capsys):
    tiny.wan(demo_pipe).save_pretrained(tmp_path / "wan")
    file.save(file.load(models / "sd3.safetensors"), tmp_path / "any.safetensors")
    options = ["--model", tmp_path / "wan", "--hgr", tmp_path / "any.safetensors", "--output", tmp_path / "x.png"]
    assert command("sample", "--prompt", CLEAN, *options) == 2
    assert "makes videos; use SafeCFG in Python" in capsys.readouterr().err.splitlines()[-1]
