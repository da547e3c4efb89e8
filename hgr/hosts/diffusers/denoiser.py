"""A diffusers pipeline's denoiser as training and detection use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...core.denoiser import Denoiser, Predict

_BATCH = 8
_STEPS = 12  # of sampling; fine detail does not matter, as the pictures are used under noise


@torch.no_grad()
def denoiser_of(pipe: Any, seed: int = 0) -> Denoiser:
    """The denoiser of a diffusers pipeline. seed: for painting pictures."""
    unet, scheduler = pipe.unet, pipe.scheduler
    unet.requires_grad_(False)
    last = scheduler.config.num_train_timesteps - 1
    kind = scheduler.config.get("prediction_type", "epsilon")

    def at(latents: Tensor, percent: Tensor, noise: Tensor) -> Predict:
        t = ((1 - percent) * last).round().long()
        noisy = scheduler.add_noise(latents, noise, t)
        truth = (
            {"epsilon": noise, "sample": latents}[kind]
            if kind != "v_prediction"
            else scheduler.get_velocity(latents, noise, t)
        )

        def error(features: Tensor, pooled: Tensor | None) -> Tensor:
            device = unet.device
            added = {}
            if pooled is not None:  # SDXL also takes the picture's size: its own, not cropped
                size = [n * 2 ** (len(pipe.vae.config.block_out_channels) - 1) for n in latents.shape[-2:]]
                sizes = torch.tensor([[*size, 0, 0, *size]], device=device, dtype=unet.dtype).expand(len(latents), -1)
                added = {"added_cond_kwargs": {"text_embeds": pooled.to(device, unet.dtype), "time_ids": sizes}}
            z = noisy.to(device, unet.dtype)
            return unet(z, t.to(device), features.to(device, unet.dtype), **added).sample.float() - truth.to(device)

        return error

    noise = torch.Generator()

    def paint(prompts: list[str], first: int) -> Iterator[Tensor]:
        if not first:
            noise.manual_seed(seed)
        pipe.set_progress_bar_config(disable=True)
        for start in range(first, len(prompts), _BATCH):
            part = prompts[start : start + _BATCH]
            with torch.no_grad():
                found = pipe(part, num_inference_steps=_STEPS, output_type="latent", generator=noise)
            yield found.images.float().cpu()

    return Denoiser(unet, at, paint, _BATCH, noise)
