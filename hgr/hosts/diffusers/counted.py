"""One picture's latent of a diffusers pipeline, with what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...core.denoiser import evaluations


def sample_counted(
    call: Callable[..., Any], unet: torch.nn.Module, text: str, *, steps: int, cfg: float, seed: int, **options: Any
) -> tuple[Tensor, float, int]:
    """The latent (1, C, H, W) in float32 on the CPU, the seconds and the denoiser's evaluations that it took.

    call: the pipeline, or SafeCFG with it. options: the call's others.
    """
    start = time.perf_counter()
    with evaluations(unet) as counted:
        latent = (
            call(
                [text],
                guidance_scale=cfg,
                num_inference_steps=steps,
                output_type="latent",
                generator=torch.Generator().manual_seed(seed),
                **options,
            )
            .images.float()
            .cpu()
        )
    return latent, time.perf_counter() - start, counted[0]
