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
from ...probe import calibrated, empty_prompt, features, logits
from ...redirector import HGR, HGRError
from ...report import BOTH, PICTURE, PROMPT, Evidence, build
from ...safecfg import Prompt
from ...views import views
from ...words import split_words, word_heat
from .denoiser import denoiser
from .guidance import prompt_of
from .training import encoder

_LARGEST = 1024  # side of a latent


@torch.inference_mode()
def detect(hgr: HGR, concepts: str, sensitivity: str, conditioning: list | None = None, image: Tensor | None = None,
           latent: dict[str, Any] | None = None, model: comfy.model_patcher.ModelPatcher | None = None, vae: comfy.sd.VAE | None = None,
           clip: comfy.sd.CLIP | None = None, text: str = "", timesteps: int = 2, samples: int = 1, seed: int = 0) -> dict[str, Any]:
    """The report (`hgr.report`) of prompts, of pictures with their prompts, or of pictures alone.

    conditioning: a CONDITIONING, whose batch is one prompt for all pictures or one for each; in its place `text`, encoded by `clip`,
    which also tell which words. image: an IMAGE (B, H, W, C), or latent: a LATENT; both need model and vae, but not vae a latent of the
    size that the probe was trained at. timesteps: noise levels at which pictures are looked at with their prompts. samples: draws of
    noise at each level. seed: of the noise.

    Raises ValueError for inputs that do not fit together, HGRError for an HGR that cannot say.
    """
    on = [strength > 0 for strength in concept_strengths(concepts, hgr.ids)]
    if text.strip() and clip is None:
        raise ValueError("text must be encoded: wire in clip, the one of the model.")
    pictures, words = image is not None or latent is not None, []
    if conditioning is not None:
        prompts = [prompt_of(hgr, found, extra) for found, extra in conditioning if found is not None]
    elif clip is not None and (text.strip() or not pictures):
        prompts = encoder(clip)([text])
    else:
        prompts = []
    if pictures:
        evidence = _pictures(hgr, prompts, image, latent, model, vae, spread(timesteps), samples, seed)
    elif prompts:
        evidence = [Evidence(PROMPT, _highest([hgr.read(*prompt).prompt_gates.cpu() for prompt in prompts]), hgr.concepts)]
    else:
        raise ValueError("nothing to look at: wire in a conditioning, clip and text, or pictures.")
    if text.strip():
        words = _words(hgr, clip, text, on)
    return build(hgr, evidence, on, sensitivity, [words] * len(evidence[0].scores) if words else ())


def _pictures(hgr: HGR, prompts: list[Prompt], image: Tensor | None, latent: dict[str, Any] | None,
              model: comfy.model_patcher.ModelPatcher | None, vae: comfy.sd.VAE | None, percents: tuple[float, ...],
              samples: int, seed: int) -> list[Evidence]:
    probe = hgr.probe
    if image is not None and latent is not None:
        raise ValueError("there are pictures in image and in latent: wire in one of them.")
    if probe is None:
        raise HGRError(f"{hgr.name} has no picture probe, so it can judge prompts alone: train an HGR with the model wired in.")
    if model is None:
        raise ValueError("pictures are looked at through the model: wire in model, the one that the HGR was trained for.")
    width = model.model.model_config.unet_config.get("context_dim", hgr.network.text_dim)
    if width != hgr.network.text_dim:
        raise HGRError(f"{hgr.name} was made for {hgr.encoder.family} with text features of width {hgr.network.text_dim}, but this model "
                       f"takes width {width}: load the HGR that was trained for this model.")
    seen = _views(image, latent, vae, _trained_size(hgr))
    count, parts = seen.shape[:2]
    if any(len(prompt.features) not in (1, count) for prompt in prompts):
        rows = ", ".join(str(len(prompt.features)) for prompt in prompts)
        raise ValueError(f"the conditioning has {rows} prompts, but there are {count} pictures: give one prompt for all, or one for each.")
    looker = denoiser(model, seen[:1, 0].shape)
    bar = comfy.utils.ProgressBar(count * (parts + len(prompts)))
    evidence = []
    if prompts:
        found = []
        for prompt in prompts:
            scores = []
            for rows in torch.arange(count).split(looker.batch):
                part = Prompt(*(None if x is None else x[rows] if len(x) == count else x.expand(len(rows), *x.shape[1:]) for x in prompt))
                scores.append(hed_picture(hgr, looker, seen[rows, 0], part, percents, samples, seed).per_concept)
                bar.update(len(rows))
            found.append(torch.cat(scores))
        evidence.append(Evidence(BOTH, calibrated(_highest(found), probe.hed), probe.hed))
    x = features(looker, seen.flatten(0, 1), empty_prompt(hgr), probe.percents, samples, seed, bar.update)
    scores = calibrated(logits(probe, x, hgr.name), probe.heads)
    evidence.append(Evidence(PICTURE, scores.unflatten(0, (count, parts)).amax(1), probe.heads))
    return evidence


def _highest(parts: list[Tensor]) -> Tensor:
    """Of several prompts that act together, rows (B, K) or (1, K) each, the highest score."""
    rows = max(len(part) for part in parts)
    if any(len(part) not in (1, rows) for part in parts):
        raise ValueError(f"the combined prompts have batches of {', '.join(str(len(part)) for part in parts)}: they must be of one size.")
    return torch.stack([part.expand(rows, -1) for part in parts]).amax(0)


def _trained_size(hgr: HGR) -> tuple[int, ...]:
    """(C, H, W), of video models (C, 1, H, W): of the latents that the probe was trained on. It knows features of no other size."""
    size = hgr.probe.training.get("latent")
    known = isinstance(size, list) and all(type(n) is int and 1 <= n <= _LARGEST for n in size)
    if not known or len(size) not in (3, 4) or (len(size) == 4 and size[1] != 1):
        raise HGRError(f"{hgr.name}'s picture probe was made for latents of size {size!r}, which are not those of pictures.")
    return tuple(size)


def _views(image: Tensor | None, latent: dict[str, Any] | None, vae: comfy.sd.VAE | None, size: tuple[int, ...]) -> Tensor:
    """(B, 1 + N, *size) latents on the CPU: each picture as a whole, scaled to the size that the probe was trained at; one of
    another shape also in N overlapping parts (`hgr.views`)."""
    if image is None:
        samples = latent["samples"]
        if samples.is_nested or samples.dim() not in (4, 5) or (samples.dim() == 5 and samples.shape[2] > 1):
            raise ValueError("latent: these are not pictures but a video or sound, which cannot be judged: give its frames as images.")
        if samples.shape[1:] == size:
            return samples.float().cpu()[:, None]
        if vae is None:
            raise ValueError(f"latent: its size is {_size(samples.shape[1:])}, and the HGR knows {_size(size)}: wire in vae too, "
                             "so that it can be scaled.")
        image = vae.decode(samples)
        image = image.reshape(-1, *image.shape[-3:])
    if vae is None:
        raise ValueError("pictures must be encoded: wire in vae, the one of the model.")
    if image.dim() != 4 or min(image.shape) == 0:
        raise ValueError(f"image: expected pictures (batch, height, width, channels), got shape {tuple(image.shape)}.")
    pixels = image[..., :3]  # alpha is no part of what a picture shows
    if not pixels.isfinite().all():
        raise ValueError("image: it holds NaN or infinity, so nobody can say whether it is harmful.")
    cell = vae.spacial_compression_encode()
    height, width = (side * cell for side in size[-2:])
    return torch.stack([torch.stack([_encode(vae, view, size) for view in views(one.movedim(-1, 1).float(), height, width)])
                        for one in pixels.split(1)])


def _encode(vae: comfy.sd.VAE, picture: Tensor, size: tuple[int, ...]) -> Tensor:
    """(*size): the latents of one picture (1, C, H, W); of several, a video's VAE would make one video."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    found = vae.encode(picture.movedim(1, -1)).float().cpu()[0]
    if found.shape != size:
        raise ValueError(f"vae: it gives latents of size {_size(found.shape)}, and the HGR knows {_size(size)}: wire in the VAE of the "
                         "model that the HGR was trained for.")
    return found


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


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
