"""A diffusers pipeline's text encoders as the HGR reads them."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ...core.prompt import Encode, Prompt

# What `encode_prompt` returns, by the beginning of the pipeline's class name. A pipeline with a UNet returns the first.
# A cycled mask has its rows in another order than the features: all prompts in turn, as often as each has copies.
_BOTH = ("features", "negative", "pooled", "negative_pooled")
_MASKED = ("features", "mask", "negative", "negative_mask")
_RETURNED = {
    "StableDiffusion": _BOTH,
    "Wan": _BOTH,
    "Flux(?!2)": ("features", "pooled", "text_ids"),
    "QwenImage(?!2|Edit)": ("features", "cycled_mask"),
    "PixArt": _MASKED,
    "Sana": ("features", "cycled_mask", "negative", "negative_mask"),
}
SERVED = "Stable Diffusion 1.x to 3.x and XL, Flux.1, Qwen-Image, PixArt, Sana, Wan"


def returned(kind: str, *, unet: bool) -> tuple[str, ...] | None:
    """What a pipeline's `encode_prompt` returns, in order; None if SafeCFG does not know. kind: its class name."""
    return _BOTH if unet else next((names for start, names in _RETURNED.items() if re.match(start, kind)), None)


def check_pipeline(pipe: object) -> None:
    """Raise TypeError for a pipeline whose prompts SafeCFG cannot read."""
    samples = hasattr(pipe, "unet") or hasattr(pipe, "transformer")
    if not (samples and hasattr(pipe, "encode_prompt") and _returned(pipe)):
        raise TypeError(f"{type(pipe).__name__}: SafeCFG serves pipelines of {SERVED}. For other models, use ComfyUI.")


def read(pipe: object, encoded: tuple[Any, ...], copies: int = 1) -> tuple[Prompt, bool]:
    """The positive prompt in the output of `encode_prompt`, and whether there is a negative one too. copies: how many
    rows each prompt has."""
    parts = dict(zip(_returned(pipe) or (), encoded, strict=False))
    features, mask = parts["features"], parts.get("mask")
    if (cycled := parts.get("cycled_mask")) is not None:
        mask = cycled.unflatten(0, (copies, -1)).transpose(0, 1).flatten(0, 1)
    if mask is None:  # where there is none, zeros are padding (Wan; SD 3 without T5)
        given = features.any(-1)
        mask = given if given.any(1).all() and not given.all() else None
    return Prompt(features, parts.get("pooled"), mask), parts.get("negative") is not None


def rewritten(pipe: object, encoded: tuple[Any, ...], prompt: Prompt) -> tuple[Any, ...]:
    """The output of `encode_prompt` with this positive prompt."""
    own = {"features": prompt.features, "pooled": prompt.pooled}
    return tuple(own.get(name, part) for name, part in zip(_returned(pipe) or (), encoded, strict=False))


@torch.no_grad()
def encode(pipe: Any, texts: list[str]) -> Prompt:
    """Positive prompts, one row per text, as a call of the pipeline without options encodes them."""
    call, takes = _parameters(pipe.__call__), _parameters(pipe.encode_prompt)
    options = {name: call[name].default for name in takes.keys() & call.keys()}
    options |= {"prompt": texts, "device": pipe._execution_device, "do_classifier_free_guidance": False}
    given = {name: options[name] for name in takes if name in options and options[name] is not inspect.Parameter.empty}
    return read(pipe, pipe.encode_prompt(**given))[0]


def encoder_of(pipe: DiffusionPipeline) -> Encode:
    """The pipeline's text encoders, for training."""
    return lambda texts: encode(pipe, texts).split([1] * len(texts))


def encoder_family(pipe: DiffusionPipeline) -> str:
    """The name of the pipeline's text encoders, for people."""
    width = encode(pipe, [""]).features.shape[-1]
    parts = (getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3"))
    kinds = [type(part).__name__ for part in parts if part is not None]
    return f"{' and '.join(kinds)} ({width})"


def room(pipe: Any) -> int:
    """How many of a text's tokens the pipeline's text encoders read."""
    longest = _parameters(pipe.__call__).get("max_sequence_length")
    return min(pipe.tokenizer.model_max_length, longest.default if longest else pipe.tokenizer.model_max_length) - 2


def _returned(pipe: object) -> tuple[str, ...] | None:
    return returned(type(pipe).__name__, unet=hasattr(pipe, "unet"))


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)
