"""A diffusers pipeline's text encoders as the HGR reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ...core.prompt import Encode, Prompt

# Options of a call that belong to the pipeline's `encode_prompt`.
ENCODING = (
    "prompt_2",
    "negative_prompt_2",
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
    "clip_skip",
)


def encode(pipe: DiffusionPipeline, texts: list[str]) -> Prompt:
    """Positive prompts from the pipeline's own text encoders, one row per text."""
    return encode_call(pipe, texts, guided=False)[0]


@torch.no_grad()
def encode_call(
    pipe: DiffusionPipeline,
    prompt: str | list[str] | None,
    negative: str | list[str] | None = None,
    *,
    guided: bool,
    options: Mapping[str, Any] = {},
) -> list[Prompt]:
    """The positive prompt of a call and, where there is guidance, the negative one.

    options: the call's other arguments; those in `ENCODING` are used, and a LoRA's scale, for the text encoders.
    """
    adapters = options.get("cross_attention_kwargs") or {}
    encoded = pipe.encode_prompt(
        prompt=prompt,
        negative_prompt=negative,
        device=pipe._execution_device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=guided,
        lora_scale=adapters.get("scale"),
        **{key: options[key] for key in ENCODING if key in options},
    )
    pooled = encoded[2:] or (None, None)
    return [Prompt(*pair) for pair in zip(encoded[:2], pooled, strict=True)][: 1 + guided]


def encoder_of(pipe: DiffusionPipeline) -> Encode:
    """The pipeline's text encoders, for training."""
    return lambda texts: encode(pipe, texts).split([1] * len(texts))


def encoder_family(pipe: DiffusionPipeline) -> str:
    """The name of the pipeline's text encoders, for people."""
    width = encode(pipe, [""]).features.shape[-1]
    parts = (getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2"))
    kinds = [type(part).__name__ for part in parts if part is not None]
    return f"{' and '.join(kinds)} ({width})"
