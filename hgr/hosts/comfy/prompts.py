"""ComfyUI's CONDITIONING and CLIP as the HGR reads them."""

from __future__ import annotations

from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import torch
from torch import Tensor

from ...core.hgr import HGR
from ...core.prompt import Encode, Prompt


def encoder_family(clip: comfy.sd.CLIP) -> str:
    """The text encoder's name, for people."""
    return type(clip.cond_stage_model).__name__.strip("_").removesuffix("_").removesuffix("Model")


def encoder_of(clip: comfy.sd.CLIP) -> Encode:
    """The host's text encoder, called for one prompt at a time as its own Text Encode nodes do."""
    with_pooled = _uses_pooled(clip)

    def encode(texts: list[str]) -> list[Prompt]:
        with torch.inference_mode():
            return [_prompt(*clip.encode_from_tokens_scheduled(clip.tokenize(text))[0], with_pooled) for text in texts]

    return encode


def prompt_of(hgr: HGR, features: Tensor, extra: dict[str, Any]) -> Prompt:
    """An entry of a CONDITIONING as the HGR reads it."""
    return _prompt(features, extra, hgr.network.pooled_dim > 0)


def _prompt(features: Tensor, extra: dict[str, Any], with_pooled: bool) -> Prompt:
    mask = extra.get("attention_mask")
    if mask is not None and mask.shape != features.shape[:2]:
        mask = None  # some models use this name for something other than a token mask
    return Prompt(features, extra.get("pooled_output") if with_pooled else None, mask)


def _uses_pooled(clip: comfy.sd.CLIP) -> bool:
    """Whether the model uses the pooled output. That of single encoders is unused, except for these two."""
    exceptions = (comfy.sdxl_clip.SDXLRefinerClipModel, comfy.sdxl_clip.StableCascadeClipModel)
    return isinstance(clip.cond_stage_model, exceptions) or not isinstance(
        clip.cond_stage_model, comfy.sd1_clip.SD1ClipModel
    )
