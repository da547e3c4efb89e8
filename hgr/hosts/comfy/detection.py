"""Detecting concepts in ComfyUI's prompts and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ...detect import hed_picture, spread
from ...guidance import concept_strengths
from ...probe import empty_prompt, features, logits
from ...redirector import HGR, Concept, HGRError
from ...report import BOTH, PICTURE, PROMPT, Evidence, build
from ...safecfg import Prompt
from ...words import split_words, word_heat
from .denoiser import denoiser
from .guidance import prompt_of
from .training import encoder


def detect(hgr: HGR, concepts: str, sensitivity: str, conditioning: list | None = None, image: Tensor | None = None,
           latent: dict[str, Any] | None = None, model: comfy.model_patcher.ModelPatcher | None = None, vae: comfy.sd.VAE | None = None,
           clip: comfy.sd.CLIP | None = None, text: str = "", timesteps: int = 2, samples: int = 1, seed: int = 0) -> dict[str, Any]:
    """The report (`hgr.report`) of prompts, of pictures with their prompts, or of pictures alone.

    conditioning: a CONDITIONING, whose batch is one prompt for all pictures or one for each; in its place `text`, encoded by `clip`,
    which also tell which words. image: an IMAGE (B, H, W, C), which needs model and vae; or latent: a LATENT, which needs model.
    timesteps: noise levels at which pictures are looked at with their prompts. samples: draws of noise at each level. seed: of the noise.

    Raises ValueError for inputs that do not fit together, HGRError for an HGR that cannot say.
    """
    on = [strength > 0 for strength in concept_strengths(concepts, hgr.ids)]
    words, text_prompt = [], None
    # a node's tensors belong to inference mode, which is left where a host calls this from within a training
    with torch.inference_mode():
        if text.strip() and clip is not None:
            text_prompt = encoder(clip)([text])[0]
        prompts = [text_prompt] if text_prompt is not None else []
        if conditioning is not None:
            prompts = [prompt_of(hgr, found, extra) for found, extra in conditioning if found is not None]
        if image is None and latent is None:
            if not prompts:
                raise ValueError("nothing to look at: wire in a conditioning, clip and text, or pictures.")
            evidence = [Evidence(PROMPT, _highest([hgr.read(*prompt).prompt_gates.cpu() for prompt in prompts]), hgr.concepts)]
        else:
            evidence = _pictures(hgr, prompts, image, latent, model, vae, spread(timesteps), samples, seed)
        if text_prompt is not None:
            words = _words(hgr, clip, text, on)
    return build(hgr, evidence, on, sensitivity, [words] * len(evidence[0].scores) if words else ())


def _pictures(hgr: HGR, prompts: list[Prompt], image: Tensor | None, latent: dict[str, Any] | None,
              model: comfy.model_patcher.ModelPatcher | None, vae: comfy.sd.VAE | None, percents: tuple[float, ...],
              samples: int, seed: int) -> list[Evidence]:
    probe = hgr.probe
    if probe is None:
        raise HGRError(f"{hgr.name} has no picture probe, so it can judge prompts alone: train an HGR with the model wired in.")
    if model is None:
        raise ValueError("pictures are looked at through the model: wire in model, the one that the HGR was trained for.")
    latents = _latents(image, latent, vae, probe.training.get("latent"))
    count = len(latents)
    if any(len(prompt.features) not in (1, count) for prompt in prompts):
        rows = ", ".join(str(len(prompt.features)) for prompt in prompts)
        raise ValueError(f"the conditioning has {rows} prompts, but there are {count} pictures: give one prompt for all, or one for each.")
    looker = denoiser(model, latents[:1].shape)
    bar = comfy.utils.ProgressBar(count * (1 + len(prompts)))
    evidence = []
    if prompts:
        found = []
        for prompt in prompts:
            parts = []
            for rows in torch.arange(count).split(looker.batch):
                part = Prompt(*(None if x is None else x[rows] if len(x) == count else x.expand(len(rows), *x.shape[1:]) for x in prompt))
                parts.append(hed_picture(hgr, looker, latents[rows], part, percents, samples, seed).per_concept)
                bar.update(len(rows))
            found.append(torch.cat(parts))
        evidence.append(Evidence(BOTH, _calibrated(_highest(found), probe.hed), probe.hed))
    x = features(looker, latents, empty_prompt(hgr), probe.percents, samples, seed, bar.update)
    evidence.append(Evidence(PICTURE, _calibrated(logits(probe, x, hgr.name), probe.heads), probe.heads))
    return evidence


def _calibrated(scores: Tensor, concepts: Sequence[Concept]) -> Tensor:
    scale, bias = (torch.tensor([getattr(concept, name) for concept in concepts]) for name in ("scale", "bias"))
    return (scale * scores + bias).sigmoid()


def _highest(parts: list[Tensor]) -> Tensor:
    """Of several prompts that act together, rows (B, K) or (1, K) each, the highest score."""
    rows = max(len(part) for part in parts)
    if any(len(part) not in (1, rows) for part in parts):
        raise ValueError(f"the combined prompts have batches of {', '.join(str(len(part)) for part in parts)}: they must be of one size.")
    return torch.stack([part.expand(rows, -1) for part in parts]).amax(0)


def _latents(image: Tensor | None, latent: dict[str, Any] | None, vae: comfy.sd.VAE | None, size: list[int] | None) -> Tensor:
    """(B, C, H, W) on the CPU; pictures at about the size that the probe was trained at, for it knows features of no other."""
    if image is None:
        samples = latent["samples"]
        if samples.is_nested or samples.dim() != 4:
            raise ValueError("latent: these are not pictures but a video or sound, which cannot be judged: give its frames as images.")
        return samples.float().cpu()
    if vae is None:
        raise ValueError("pictures must be encoded: wire in vae, the one of the model.")
    if image.dim() != 4 or min(image.shape) == 0:
        raise ValueError(f"image: expected pictures (batch, height, width, channels), got shape {tuple(image.shape)}.")
    pixels = image[..., :3]  # alpha is no part of what a picture shows
    if not pixels.isfinite().all():
        raise ValueError("image: it holds NaN or infinity, so nobody can say whether it is harmful.")
    cell = vae.spacial_compression_encode()
    height, width = pixels.shape[1:3]
    scale = (size[-1] * size[-2] * cell**2 / (height * width)) ** 0.5 if size else 1.0
    target = [max(2, round(side * scale / cell)) * cell for side in (width, height)]
    if [width, height] != target:
        kind = "area" if scale < 1 else "bicubic"
        pixels = comfy.utils.common_upscale(pixels.movedim(-1, 1), *target, kind, "disabled").movedim(1, -1).clamp(0, 1)
    found = []
    for part in pixels.split(16):
        comfy.model_management.throw_exception_if_processing_interrupted()
        found.append(vae.encode(part).float().cpu())
    return torch.cat(found)


def _words(hgr: HGR, clip: comfy.sd.CLIP, text: str, on: list[bool]) -> list[tuple[str, float]]:
    """Each word with the most that it raises a gate that counts."""
    encode = encoder(clip)

    def gates(texts: list[str]) -> Tensor:
        rows = []
        for one in texts:
            comfy.model_management.throw_exception_if_processing_interrupted()
            rows.append(hgr.read(*encode([one])[0]).prompt_gates.cpu())
        return torch.cat(rows)

    words = split_words(text)
    heat = word_heat(gates, words)[:, torch.tensor(on)]
    return list(zip(words, (heat.amax(1) if heat.shape[1] else torch.zeros(len(words))).tolist(), strict=True))
