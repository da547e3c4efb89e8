"""Detects concepts in ComfyUI's prompts and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ...core.errors import EncoderMismatch
from ...core.hgr import HGR
from ...core.options import concept_strengths
from ...core.progress import Progress
from ...detection.crops import crops
from ...detection.hed import spread
from ...detection.judge import judge_pictures, judge_prompts, probe_of, trained_size
from ...detection.pictures import colours
from ...detection.report import build
from ...detection.word_heat import split_words, word_heat
from . import runs
from .denoiser import denoiser_of
from .progress import NodeProgress
from .prompts import encoder_of, prompt_of, unread_text


@torch.inference_mode()
def detect(
    hgr: HGR,
    concepts: str,
    sensitivity: str,
    *,
    conditioning: list | None = None,
    image: Tensor | None = None,
    latent: dict[str, Any] | None = None,
    model: comfy.model_patcher.ModelPatcher | None = None,
    vae: comfy.sd.VAE | None = None,
    clip: comfy.sd.CLIP | None = None,
    text: str = "",
    timesteps: int = 2,
    samples: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The report (`hgr.detection.report`) of prompts, of pictures with their prompts, or of pictures alone.

    conditioning: a CONDITIONING with one prompt for all pictures, or a batch with one for each.
    text, clip: a prompt and its encoder, instead of a conditioning; they also give the words' heat.
    image, latent: an IMAGE (B, H, W, C) or a LATENT; both need model and vae, except that a latent of the size that the
    probe was trained on needs no vae.
    timesteps: noise levels at which pictures are evaluated with their prompts.
    samples: draws of noise at each level.
    progress: the node's own by default.

    Raises ValueError for inputs that do not fit together, HGRError for an HGR that cannot judge them.
    """
    on = [strength > 0 for strength in concept_strengths(concepts, hgr.ids)]
    if text.strip() and clip is None:
        raise ValueError("text must be encoded: wire in clip, that of the model.")
    pictures = image is not None or latent is not None
    if conditioning is not None:
        prompts = [prompt_of(hgr, found, extra) for found, extra in conditioning if found is not None]
        runs.note(list(dict.fromkeys(note for _, extra in conditioning for note in unread_text(extra))))
    elif clip is not None and (text.strip() or not pictures):
        prompts = encoder_of(clip)([text])
    else:
        prompts = []
    if pictures:
        checked = _check_model(hgr, model)
        crops = _crops(image, latent, vae, size=trained_size(hgr))
        evidence = judge_pictures(
            hgr,
            denoiser_of(checked, crops[:1, 0].shape),
            crops,
            prompts=prompts,
            percents=spread(timesteps),
            samples=samples,
            seed=seed,
            progress=progress or NodeProgress(),
        )
    elif prompts:
        evidence = [judge_prompts(hgr, prompts)]
    else:
        raise ValueError("there is nothing to judge: wire in a conditioning, clip and text, or pictures.")
    words = _words(hgr, clip, text, on=on) if text.strip() and clip is not None else []
    return build(hgr, evidence, on, sensitivity=sensitivity, words=[words] * len(evidence[0].scores) if words else ())


def _check_model(hgr: HGR, model: comfy.model_patcher.ModelPatcher | None) -> comfy.model_patcher.ModelPatcher:
    """The model, if it can judge pictures for this HGR."""
    probe_of(hgr)
    if model is None:
        raise ValueError("pictures are judged by the model: wire in model, the one that the HGR was trained for.")
    width = model.model.model_config.unet_config.get("context_dim", hgr.network.text_dim)
    if width != hgr.network.text_dim:
        raise EncoderMismatch(
            f"{hgr.name} was made for {hgr.encoder.family} with text features of width {hgr.network.text_dim}, "
            f"but this model takes width {width}: load the HGR that was trained for this model."
        )
    return model


def _crops(
    image: Tensor | None, latent: dict[str, Any] | None, vae: comfy.sd.VAE | None, *, size: tuple[int, ...]
) -> Tensor:
    """(B, 1 + N, *size) latents on the CPU: each whole picture, scaled to the size that the probe was trained on; if it
    has another shape, also N overlapping parts (`hgr.detection.crops`)."""
    if image is not None and latent is not None:
        raise ValueError("there are pictures in image and in latent: wire in only one of them.")
    if latent is not None:
        samples = latent["samples"]
        if samples.is_nested or samples.dim() not in (4, 5) or (samples.dim() == 5 and samples.shape[2] > 1):
            raise ValueError("latent: this is a video or sound, which cannot be judged: give its frames as images.")
        if samples.shape[1:] == size:
            return samples.float().cpu()[:, None]
        if vae is None:
            raise ValueError(
                f"latent: its size is {_text(samples.shape[1:])}, but the HGR was trained with {_text(size)}: "
                "wire in vae too, so that it can be scaled."
            )
        decoded: Tensor = vae.decode(samples)
        image = decoded.reshape(-1, *decoded.shape[-3:])
    if vae is None or image is None:
        raise ValueError("pictures must be encoded: wire in vae, that of the model.")
    pixels = colours(image)  # alpha is not part of what a picture shows
    if not pixels.isfinite().all():
        raise ValueError("image: it holds NaN or infinity, so it cannot be judged.")
    cell: Any = vae.spacial_compression_encode()
    height, width = (side * cell for side in size[-2:])
    return torch.stack(
        [
            torch.stack([_encode(vae, crop, size) for crop in crops(one.movedim(-1, 1).float(), height, width)])
            for one in pixels.split(1)
        ]
    )


def _encode(vae: comfy.sd.VAE, picture: Tensor, size: tuple[int, ...]) -> Tensor:
    """(*size): the latents of one picture (1, C, H, W). From several, a video model's VAE would make one video."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    found = vae.encode(picture.movedim(1, -1)).float().cpu()[0]
    if found.shape != size:
        raise ValueError(
            f"vae: it gives latents of size {_text(found.shape)}, but the HGR was trained with {_text(size)}: "
            "wire in the VAE of the model that the HGR was trained for."
        )
    return found


def _text(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _words(hgr: HGR, clip: comfy.sd.CLIP, text: str, *, on: list[bool]) -> list[tuple[str, float]]:
    """Each word, with the most by which it raises any gate that counts."""
    encode = encoder_of(clip)

    def gates(texts: list[str]) -> Tensor:
        rows = []
        for one in texts:
            comfy.model_management.throw_exception_if_processing_interrupted()
            rows.append(hgr.read(*encode([one])[0]).prompt_gates.cpu())
        return torch.cat(rows)

    words = split_words(text)
    heat = word_heat(gates, words)[:, torch.tensor(on)]
    return list(zip(words, (heat.amax(1) if heat.shape[1] else torch.zeros(len(words))).tolist(), strict=True))
