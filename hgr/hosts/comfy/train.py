"""Trains an HGR inside ComfyUI, with its text encoder and its denoiser under its memory management."""

from __future__ import annotations

from functools import partial
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
from torch import Tensor

from ...core.fingerprint import fingerprint
from ...core.hgr import HGR, MAX_TOKENS
from ...data.pairs import Pairs
from ...training.attention import cross_attention
from ...training.encoded_prompts import encoder_fingerprint
from ...training.settings import HGR_STAGE, HGRSettings, check_pairs
from ...training.train_hgr import train_hgr, training_fingerprint
from .chart import image
from .denoiser import denoiser_of, model_fingerprint
from .latents import given_pictures, picture_size
from .progress import TrainingProgress, gradients
from .prompts import encoder_family, encoder_of
from .work_folder import prompts_kept_for, work_folder


def train_for_clip(
    clip: comfy.sd.CLIP,
    pairs: Pairs,
    settings: HGRSettings,
    *,
    model: comfy.model_patcher.ModelPatcher | None = None,
    latents: dict[str, Any] | None = None,
) -> tuple[HGR, Tensor]:
    """Train an HGR for a CLIP and, unless the losses are "text", for a MODEL. Returns the HGR and the loss chart,
    (1, H, W, 3). An interrupted training resumes from its last step when the same one is run again.

    latents: a LATENT of pictures to learn from; an empty one sets the size of the pictures that the model makes.

    Raises DataError and ValueError as `hgr.training.train_hgr.train_hgr` does, before anything is encoded; what
    `work_folder` does.
    """
    check_pairs(pairs, settings)
    if settings.weights.needs_denoiser and model is not None:
        cross_attention(model.model.diffusion_model)
    family, pictures, size = encoder_family(clip), given_pictures(latents), picture_size(latents)
    # the files that an interruption leaves depend on these; of the encoder, on what it makes and not only its weights
    encode = encoder_of(clip)
    encoder = encoder_fingerprint(encode, MAX_TOKENS)
    made_for = f"{family}, {encoder}"
    if model is not None:
        made_for += f", {model_fingerprint(model)}, {tuple(size)}, {fingerprint(pictures)}"
    identity = training_fingerprint(pairs, made_for, settings)
    progress = TrainingProgress("HGR training", settings.steps)

    denoiser = None
    if model is not None:
        denoiser = partial(denoiser_of, model, size, clip, seed=settings.seed, gradients=settings.weights.score > 0)
    with work_folder("training", identity, HGR_STAGE) as work, prompts_kept_for(encoder, work), gradients():
        hgr = train_hgr(
            pairs,
            encode,
            settings,
            family=family,
            work=work,
            device=comfy.model_management.get_torch_device(),
            denoiser=denoiser,
            latents=pictures,
            progress=progress,
        )
    progress.end()
    return hgr, image(progress.chart())
