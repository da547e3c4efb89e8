"""The bundled demo model as a diffusers pipeline."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from ...demo import assets


@torch.inference_mode()
def decode(vae: Any, latents: Tensor, batch: int = 64) -> Tensor:
    """Pictures (B, 3, 128, 128) in [-1, 1] of sampled latents (B, 4, 16, 16)."""
    return torch.cat(
        [vae.decode(part / vae.config.scaling_factor).sample.clamp(-1, 1) for part in latents.split(batch)]
    )


def load_demo_pipeline(dtype: torch.dtype = torch.float32) -> Any:
    """The bundled demo model: 128x128 pictures, DDIM, no safety checker, nothing downloaded."""
    from ...demo.tokenizer import load_tokenizer

    def model(kind: Any, name: str) -> Any:
        return kind.from_pretrained(assets.MODEL / name, torch_dtype=dtype)

    text_encoder: Any = CLIPTextModel.from_pretrained(assets.MODEL / "text_encoder")
    parts: dict[str, Any] = {
        "vae": model(AutoencoderKL, "vae"),
        "unet": model(UNet2DConditionModel, "unet"),
        # transformers 4 and 5 have different names for the dtype argument
        "text_encoder": text_encoder.to(dtype),
        "tokenizer": load_tokenizer(assets.TOKENIZER),
        "scheduler": DDIMScheduler.from_pretrained(assets.MODEL / "scheduler"),
        "safety_checker": None,
        "feature_extractor": None,
    }
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
