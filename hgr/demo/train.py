"""Makes everything that the demo world ships, from a seed: tokenizer, text encoder, autoencoder, UNet, classifier, HGR."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel

from .. import file, training
from ..hosts.diffusers import training as host
from ..pairs import demo_world
from . import assets, classifier, text, unet, vae

log = logging.getLogger("safecfg")

FAMILY = "the SafeCFG demo model (SD 1.5 family)"
PAIRS = 1500  # of a concept
FALSE_POSITIVE_RATE = 0.01


@dataclass(frozen=True)
class Steps:
    """Training steps of each stage; how many pictures the UNet sees, and how many it makes for the HGR's probe. The defaults take
    about an hour and a half on two CPU cores."""

    vae: int = 2400
    vae_full: int = 700
    vae_decoder: int = 500
    text: int = 900
    unet: int = 3000
    classifier: int = 1000
    hgr: int = 800
    pictures: int = 16_000
    probe: int = 768


def train_all(work: Path, seed: int = 0, device: str = "cpu", steps: Steps = Steps(), output: Path = assets.MODEL.parent) -> None:
    """Train what `work` does not hold yet, each stage resumed from its last checkpoint, and write the result to `output`.

    A stage is trained again when its folder (or file) and its checkpoint in `work` are deleted; use another `work` for
    another seed.
    """
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer.json").exists():
        text.train_tokenizer(work / "tokenizer.json", seed)
    tokenizer = text.load_tokenizer(work / "tokenizer.json")

    def stage(name: str, kind: type, make):
        """A finished stage's model from `work`, or a new one. A model is saved in a folder of its own when it is done."""
        folder, start = work / name, time.monotonic()
        if not (folder / "config.json").exists():
            model = make()
            part = folder.with_name(name + ".part")  # renamed when it is whole: an interruption leaves no half model
            model.save_pretrained(part)
            part.rename(folder)
            log.info("%s: done in %.1f minutes", name, (time.monotonic() - start) / 60)
        return kind.from_pretrained(folder).to(device).eval().requires_grad_(False)

    first = stage("vae", AutoencoderKL, lambda: vae.train(work, seed, device, steps.vae, steps.vae_full))
    encoder = stage("text_encoder", CLIPTextModel, lambda: text.train(work, tokenizer, seed, device, steps.text))
    denoiser = stage("unet", UNet2DConditionModel, lambda: unet.train(
        work, first, encoder, tokenizer, seed, device, steps.unet, pictures=steps.pictures))
    decoder = stage("vae_final", AutoencoderKL, lambda: vae.refine_decoder(work, first, seed, device, steps.vae_decoder))
    judge_file = work / "classifier.safetensors"
    if not judge_file.exists():
        model = classifier.train(work, decoder, seed, device, steps.classifier)
        file.save_safely({key: value.half() for key, value in model.state_dict().items()}, judge_file)
    judge = classifier.load_classifier(judge_file)
    log.info("classifier on rendered pictures: %s", classifier.accuracy(judge, seed, 600))
    log.info("classifier through the autoencoder: %s", classifier.accuracy(judge, seed, 600, decoder.cpu()))

    pipeline = StableDiffusionPipeline(vae=decoder.half(), text_encoder=encoder.half(), tokenizer=tokenizer, unet=denoiser.half(),
                                       scheduler=unet.scheduler(), safety_checker=None, feature_extractor=None,
                                       requires_safety_checker=False)
    pipeline.save_pretrained(output / assets.MODEL.name)
    for config in (output / assets.MODEL.name).glob("*/config.json"):
        described = json.loads(config.read_text())
        described.pop("_name_or_path", None)  # a folder of the machine that it was made on
        config.write_text(json.dumps(described, indent=2) + "\n")
    index = output / assets.MODEL.name / "model_index.json"
    described = json.loads(index.read_text())
    described["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]  # the name that every transformers release knows
    index.write_text(json.dumps(described, indent=2) + "\n")
    file.save_safely(load_file(judge_file), output / assets.CLASSIFIER.name)
    # The HGR is trained on the weights as they are shipped, rounded to half precision.
    pipeline.to("cpu", torch.float32)
    latents = load_file(work / "latents.safetensors")["latents"]
    settings = training.Settings(steps=steps.hgr, seed=seed, width=96, false_positive_rate=FALSE_POSITIVE_RATE,
                                 pictures=steps.probe)
    hgr = training.train(demo_world(PAIRS, seed), host.encoder(pipeline), FAMILY, settings, work,
                         denoiser=lambda: host.denoiser(pipeline, seed), latents=latents)
    file.save(hgr, output / assets.HGR_FILE.name)


def main(work: Path, seed: int, output: Path) -> None:
    torch.set_float32_matmul_precision("high")
    train_all(work, seed, "cuda" if torch.cuda.is_available() else "cpu", output=output)
