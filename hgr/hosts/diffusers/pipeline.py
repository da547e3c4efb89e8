"""SafeCFG on diffusers' pipelines. The only file that knows diffusers' samplers."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ...core.file import load
from ...core.hgr import HGR
from ...core.options import DEFAULT_MODE, DEFAULT_SENSITIVITY, MODES, SENSITIVITIES, concept_strengths
from ...core.prompt import Prompt
from ...core.redirect import redirect
from .prompts import ENCODING, encode, encode_call

log = logging.getLogger("safecfg")


class SafeCFG:
    """A diffusers pipeline whose classifier-free guidance is safe.

        safe = SafeCFG(StableDiffusionPipeline.from_pretrained(...), "my.safetensors")
        images = safe(["a prompt", ...], guidance_scale=7.5, mode="redirect").images

    Only the text features change: the pipeline encodes, samples and decodes as usual. A prompt in which no concept
    fires keeps its features, and so its latents, bit for bit.

    pipe: a text-to-image pipeline of Stable Diffusion 1.x, 2.x or XL, also with ControlNet. Pipelines that start from a
    picture do not work (their own `strength` would be confused with SafeCFG's). For transformer models such as SD 3 and
    Flux, use ComfyUI.
    hgr: the redirector made for the pipeline's text encoder, or its file.

    Raises TypeError for another kind of pipeline, HGRError for a file that cannot be used.
    """

    def __init__(self, pipe: DiffusionPipeline, hgr: HGR | str | Path):
        known = hasattr(pipe, "unet") and hasattr(pipe, "encode_prompt")
        if not known or "strength" in inspect.signature(pipe.__call__).parameters:
            raise TypeError(
                f"SafeCFG needs a text-to-image pipeline of Stable Diffusion 1.x, 2.x or XL, not {type(pipe).__name__}."
            )
        self.pipe: Any = pipe  # diffusers declares neither its call nor its parts
        self.hgr = hgr if isinstance(hgr, HGR) else load(hgr)

    def gates(self, texts: list[str]) -> Tensor:
        """How sure the HGR is of each concept in each prompt: (B, K) in [0, 1], columns as in `hgr.ids`."""
        with torch.no_grad():
            return self.hgr.read(*encode(self.pipe, texts)).prompt_gates

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        strength: float = 1.0,
        mode: str = DEFAULT_MODE,
        concepts: str | Mapping[str, float] = "",
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        sensitivity: str = DEFAULT_SENSITIVITY,
        num_images_per_prompt: int = 1,
        **options: Any,
    ) -> Any:
        """Sample. `options`: the pipeline's other arguments. Returns what the pipeline returns.

        guidance_scale: the pipeline's own by default; at 1 or less there is no unconditional side, and mode "dynamic"
        has no effect.
        strength: of all concepts, from 0 (off) to about 2; 1 is what the HGR was trained for.
        mode: one of `hgr.core.options.MODES`.
        concepts: strength by concept id, from 0 (off) to 2, as a mapping or as JSON; a missing id means 1.
        start_percent, end_percent: the part of the steps with safe guidance, in [0, 1]; it includes step i of n if
        `start_percent <= i / n < end_percent`.
        sensitivity: one of `hgr.core.options.SENSITIVITIES`.

        Raises ValueError for an argument out of range, HGRError if the HGR was made for another text encoder or has no
        thresholds for this sensitivity.
        """
        if mode not in MODES:
            raise ValueError(f"mode: {mode!r} is unknown; it must be one of {', '.join(MODES)}.")
        if sensitivity not in SENSITIVITIES:
            raise ValueError(f"sensitivity: {sensitivity!r} is unknown; it must be one of {', '.join(SENSITIVITIES)}.")
        if not 0 <= strength < float("inf"):
            raise ValueError(f"strength: {strength!r} must be a number of 0 or more.")
        if not 0 <= start_percent < end_percent <= 1:
            raise ValueError(
                f"start_percent ({start_percent!r}) must be below end_percent ({end_percent!r}), both in [0, 1]."
            )
        whole = start_percent == 0 and end_percent == 1
        if not whole and options.get("callback_on_step_end"):
            raise ValueError(
                "start_percent and end_percent use the pipeline's callback_on_step_end: give either, not both."
            )
        scale = guidance_scale
        if scale is None:
            scale = inspect.signature(self.pipe.__call__).parameters["guidance_scale"].default
        guided = scale > 1 and self.pipe.unet.config.time_cond_proj_dim is None
        if not guided and MODES[mode][0] == 0:
            log.warning('mode "%s" has no effect without classifier-free guidance; use "redirect".', mode)

        plain = encode_call(self.pipe, prompt, negative_prompt, guided=guided, options=options)
        options = {key: value for key, value in options.items() if key not in ENCODING}
        text = concepts if isinstance(concepts, str) else json.dumps(dict(concepts))
        strengths = [strength * s for s in concept_strengths(text, self.hgr.ids)]
        moved = redirect(self.hgr.at(sensitivity), plain[:1], plain[1:], strengths=strengths, mode=mode)
        safe = moved.positive + moved.negative

        if not whole:
            inside, outside = (_in_loop(prompts, num_images_per_prompt) for prompts in (safe, plain))

            def exchange(
                pipe: DiffusionPipeline, step: int, timestep: int, tensors: dict[str, Tensor]
            ) -> dict[str, Tensor]:
                return dict(inside if start_percent <= (step + 1) / pipe.num_timesteps < end_percent else outside)

            options["callback_on_step_end"] = exchange
        first = safe if start_percent == 0 else plain
        return self.pipe(
            guidance_scale=scale, num_images_per_prompt=num_images_per_prompt, **_arguments(first), **options
        )


def _arguments(prompts: list[Prompt]) -> dict[str, Tensor]:
    """The positive and, if there is one, the negative prompt as arguments of the pipeline's call."""
    arguments = {}
    for prefix, prompt in zip(("", "negative_"), prompts, strict=False):
        arguments[prefix + "prompt_embeds"] = prompt.features
        if prompt.pooled is not None:
            arguments[prefix + "pooled_prompt_embeds"] = prompt.pooled
    return arguments


def _in_loop(prompts: list[Prompt], copies: int) -> dict[str, Tensor]:
    """The same prompts as variables of the pipeline's sampling loop: negative first, one row per picture."""

    def joined(parts: list[Tensor]) -> Tensor:
        return torch.cat([part.repeat_interleave(copies, 0) for part in reversed(parts)])

    variables = {"prompt_embeds": joined([p.features for p in prompts])}
    pooled = [p.pooled for p in prompts if p.pooled is not None]
    if pooled:
        variables["add_text_embeds"] = joined(pooled)
    return variables
