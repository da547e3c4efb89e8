"""What training an HGR asks of a diffusers pipeline: prompts encoded, and the denoiser on pictures that the model made itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ...features import Encode, split
from ...safecfg import Prompt
from ...training import Denoiser
from . import encode

_BATCH = 8
_STEPS = 12  # of sampling; the pictures are looked at through noise


def encoder(pipe: DiffusionPipeline) -> Encode:
    """The pipeline's text encoders."""
    def rows(texts: list[str]) -> list[Prompt]:
        return split(encode(pipe, texts), [1] * len(texts))

    return rows


def family(pipe: DiffusionPipeline) -> str:
    """A name of the pipeline's text encoders."""
    width = encode(pipe, [""]).features.shape[-1]
    parts = (getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2"))
    kinds = [type(part).__name__ for part in parts if part is not None]
    return f"{' and '.join(kinds)} ({width})"


@torch.no_grad()
def denoiser(pipe: DiffusionPipeline, prompts: list[str], seed: int, latents: Tensor | None = None) -> Denoiser:
    """The pipeline's denoiser, on `latents` (N, C, H, W) or, without them, on pictures that it samples for `prompts`."""
    if latents is None:
        generator = torch.Generator().manual_seed(seed)
        pipe.set_progress_bar_config(disable=True)
        latents = torch.cat([
            pipe(prompts[at:at + _BATCH], num_inference_steps=_STEPS, output_type="latent", generator=generator).images.float().cpu()
            for at in range(0, len(prompts), _BATCH)])
    unet, scheduler = pipe.unet, pipe.scheduler
    unet.requires_grad_(False)
    steps = scheduler.config.num_train_timesteps

    def predict(count: int, generator: torch.Generator) -> Callable[[Tensor, Tensor | None], Tensor]:
        clean = latents[torch.randint(len(latents), (count,), generator=generator)]
        t = torch.randint(steps, (count,), generator=generator)
        noisy = scheduler.add_noise(clean, torch.randn(clean.shape, generator=generator), t)

        def at(features: Tensor, pooled: Tensor | None) -> Tensor:
            added = {}
            if pooled is not None:  # SDXL also takes the picture's size: as it was made, not cropped
                size = [n * 2 ** (len(pipe.vae.config.block_out_channels) - 1) for n in clean.shape[-2:]]
                sizes = torch.tensor([[*size, 0, 0, *size]], device=features.device, dtype=unet.dtype).expand(count, -1)
                added = {"added_cond_kwargs": {"text_embeds": pooled.to(unet.dtype), "time_ids": sizes}}
            z = noisy.to(features.device, unet.dtype)
            return unet(z, t.to(features.device), features.to(unet.dtype), **added).sample.float()

        return at

    return Denoiser(unet, predict)
