"""Makes all files of the demo world from a seed: tokenizer, text encoder, autoencoder, UNet, classifier, HGR."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from hgr.core import file
from hgr.core.tensor_file import save_tensors
from hgr.data.sources import demo_world
from hgr.demo import assets, classifier
from hgr.demo.tokenizer import load_tokenizer
from hgr.hosts.diffusers.denoiser import denoiser_of
from hgr.hosts.diffusers.prompts import encoder_of
from hgr.training.settings import HGRSettings
from hgr.training.train_hgr import train_hgr

from .train_classifier import train_classifier
from .train_text_encoder import train_text_encoder
from .train_tokenizer import train_tokenizer
from .train_unet import new_scheduler, train_unet
from .train_vae import refine_decoder, train_vae

log = logging.getLogger("safecfg")
FAMILY = "the SafeCFG demo model (SD 1.5 family)"
PAIRS = 1500  # per concept


@dataclass(frozen=True)
class Steps:
    """Training steps of each stage; `pictures` that the UNet is trained on, and those it makes for the HGR, `probe`.
    The defaults take about two hours on two CPU cores."""

    vae: int = 2400
    vae_full: int = 2000
    vae_decoder: int = 500
    text: int = 1500
    unet: int = 6000
    classifier: int = 1000
    hgr: int = 800
    pictures: int = 32_000
    probe: int = 768


def train_all(
    work: Path, *, seed: int = 0, device: str = "cpu", steps: Steps = Steps(), output: Path = assets.MODEL.parent
) -> None:
    """Train what is missing in `work`, resuming each stage from its last checkpoint, and write the result to `output`.

    To train a stage again, delete its folder (or file) and its checkpoint in `work`. Another seed needs another `work`.
    """
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer.json").exists():
        train_tokenizer(work / "tokenizer.json", seed=seed)
    tokenizer = load_tokenizer(work / "tokenizer.json")

    def stage(name: str, kind: type, make):
        """A finished stage's model from `work`, or a new one, which is saved in a folder of its own when it is done."""
        folder, start = work / name, time.monotonic()
        if not (folder / "config.json").exists():
            model = make()
            part = folder.with_name(name + ".part")  # renamed when complete, so an interruption leaves no partial model
            model.save_pretrained(part)
            part.rename(folder)
            log.info("%s: done in %.1f minutes", name, (time.monotonic() - start) / 60)
        return kind.from_pretrained(folder).to(device).eval().requires_grad_(False)

    common = {"seed": seed, "device": device}
    first = stage("vae", AutoencoderKL, lambda: train_vae(work, steps=steps.vae, full_steps=steps.vae_full, **common))
    encoder = stage(
        "text_encoder", CLIPTextModel, lambda: train_text_encoder(work, tokenizer, steps=steps.text, **common)
    )
    denoiser = stage(
        "unet",
        UNet2DConditionModel,
        lambda: train_unet(
            work, first, encoder, tokenizer=tokenizer, steps=steps.unet, pictures=steps.pictures, **common
        ),
    )
    decoder = stage("vae_final", AutoencoderKL, lambda: refine_decoder(work, first, steps=steps.vae_decoder, **common))
    judge_file = work / "classifier.safetensors"
    if not judge_file.exists():
        model = train_classifier(work, decoder, steps=steps.classifier, **common)
        save_tensors({key: value.half() for key, value in model.state_dict().items()}, judge_file)
    judge = classifier.load_classifier(judge_file)
    log.info("classifier on rendered pictures: %s", classifier.accuracy(judge, seed, 600))
    log.info("classifier through the autoencoder: %s", classifier.accuracy(judge, seed, 600, vae=decoder.cpu()))

    pipeline = assembled(decoder, encoder, denoiser, tokenizer=tokenizer)
    write_model(pipeline, output / assets.MODEL.name)
    save_tensors(load_file(judge_file), output / assets.CLASSIFIER.name)
    # The HGR is trained on the weights as shipped, rounded to half precision.
    train_demo_hgr(pipeline.to("cpu", torch.float32), work, seed=seed, steps=steps, output=output)


def assembled(
    vae: AutoencoderKL, encoder: CLIPTextModel, unet: UNet2DConditionModel, *, tokenizer: PreTrainedTokenizerFast
) -> StableDiffusionPipeline:
    """The parts as a pipeline in half precision."""
    return StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=encoder.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write_model(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Save a pipeline without a trace of the machine that made it."""
    pipeline.save_pretrained(folder)
    for config in folder.glob("*/config.json"):
        described = json.loads(config.read_text())
        described.pop("_name_or_path", None)  # a folder on that machine
        config.write_text(json.dumps(described, indent=2) + "\n")
    index = folder / "model_index.json"
    described = json.loads(index.read_text())
    # the class name that every transformers release knows
    described["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
    index.write_text(json.dumps(described, indent=2) + "\n")


def train_demo_hgr(
    pipeline: StableDiffusionPipeline,
    work: Path,
    *,
    seed: int = 0,
    steps: Steps = Steps(),
    output: Path = assets.MODEL.parent,
) -> None:
    """Train the HGR of a finished model, resuming it from `work`, and write it to `output`. It takes a quarter of an
    hour on two CPU cores."""
    hgr = train_hgr(
        demo_world(PAIRS, seed),
        encoder_of(pipeline),
        HGRSettings(steps=steps.hgr, seed=seed, width=96, pictures=steps.probe),
        family=FAMILY,
        work=work,
        denoiser=lambda: denoiser_of(pipeline, seed),
    )
    output.mkdir(parents=True, exist_ok=True)
    file.save(hgr, output / assets.HGR_FILE.name)
