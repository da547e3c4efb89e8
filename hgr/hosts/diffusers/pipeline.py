"""SafeCFG on diffusers' pipelines. The only file that knows diffusers' samplers."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ...core.file import load
from ...core.guidance import kept_share
from ...core.hgr import HGR
from ...core.options import DEFAULT_MODE, DEFAULT_SENSITIVITY, SENSITIVITIES, concept_strengths, known_mode
from ...core.prompt import Prompt
from ...core.redirect import redirect
from .mixing import mixed
from .prompts import ENCODING, encode, encode_call

log = logging.getLogger("safecfg")


class SafeCFG:
    """A diffusers pipeline whose classifier-free guidance is safe.

        safe = SafeCFG(StableDiffusionPipeline.from_pretrained(...), "my.safetensors")
        images = safe(["a prompt", ...], guidance_scale=7.5, mode="redirect").images

    The pipeline encodes, samples and decodes as usual. Mode "redirect" changes the text features; "dynamic" mixes the
    denoiser's predictions with those for the changed features, at a third evaluation per step. A prompt in which no
    concept fires keeps its latents bit for bit.

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

        guidance_scale: the pipeline's own by default; at 1 or less there is no negative side, and mode "dynamic" has no
        effect.
        strength: of all concepts, from 0 (off) to about 2; 1 is what the HGR was trained for.
        mode: one of `hgr.core.options.MODES`. A ControlNet reads the safe prompt in "redirect"; in "dynamic" it is
        evaluated once, with the prompt as written, for both predictions.
        concepts: strength by concept id, from 0 (off) to 2, as a mapping or as JSON; a missing id means 1.
        start_percent, end_percent: the part of the steps with safe guidance, in [0, 1]; it includes step i of n if
        `start_percent <= i / n < end_percent`.
        sensitivity: one of `hgr.core.options.SENSITIVITIES`.

        Raises ValueError for an argument out of range, HGRError if the HGR was made for another text encoder or has no
        thresholds for this sensitivity.
        """
        mode = known_mode(mode)
        if sensitivity not in SENSITIVITIES:
            raise ValueError(f"sensitivity: {sensitivity!r} is unknown; it must be one of {', '.join(SENSITIVITIES)}.")
        if not 0 <= strength < float("inf"):
            raise ValueError(f"strength: {strength!r} must be a number of 0 or more.")
        if not 0 <= start_percent < end_percent <= 1:
            raise ValueError(
                f"start_percent ({start_percent!r}) must be below end_percent ({end_percent!r}), both in [0, 1]."
            )
        scale = guidance_scale
        if scale is None:
            scale = inspect.signature(self.pipe.__call__).parameters["guidance_scale"].default
        guided = scale > 1 and self.pipe.unet.config.time_cond_proj_dim is None
        if mode == "dynamic" and not guided:
            log.warning('mode "dynamic" acts on the negative side, so it has no effect without one: use "redirect".')

        plain = encode_call(self.pipe, prompt, negative_prompt, guided=guided, options=options)
        options = {key: value for key, value in options.items() if key not in ENCODING}
        options |= {"guidance_scale": scale, "num_images_per_prompt": num_images_per_prompt}
        text = concepts if isinstance(concepts, str) else json.dumps(dict(concepts))
        strengths = [strength * s for s in concept_strengths(text, self.hgr.ids)]
        found = redirect(self.hgr.at(sensitivity), plain[0], strengths=strengths)
        window = (start_percent, end_percent)
        if mode == "dynamic":
            share = _per_picture(kept_share(found.harm, scale if guided else 1.0), num_images_per_prompt)
            safe = found.safe.map(lambda rows: _per_picture(rows, num_images_per_prompt))
            with mixed(self.pipe, safe, share, window=window) if (share < 1).any() else nullcontext():
                return self.pipe(**_arguments(plain), **options)
        return self._redirected(plain, [found.safe, *plain[1:]], options, window=window)

    def _redirected(
        self, plain: list[Prompt], safe: list[Prompt], options: dict[str, Any], *, window: tuple[float, float]
    ) -> Any:
        """Sample with the safe prompts in the window, with the plain ones outside."""
        start, end = window
        if window != (0, 1):
            if options.get("callback_on_step_end"):
                raise ValueError(
                    "start_percent and end_percent use the pipeline's callback_on_step_end: give either, not both."
                )
            inside, outside = (_in_loop(prompts, options["num_images_per_prompt"]) for prompts in (safe, plain))

            def exchange(
                pipe: DiffusionPipeline, step: int, timestep: int, tensors: dict[str, Tensor]
            ) -> dict[str, Tensor]:
                return dict(inside if start <= (step + 1) / pipe.num_timesteps < end else outside)

            options = options | {"callback_on_step_end": exchange}
        return self.pipe(**_arguments(safe if start == 0 else plain), **options)


def _arguments(prompts: list[Prompt]) -> dict[str, Tensor]:
    """The positive and, if there is one, the negative prompt as arguments of the pipeline's call."""
    arguments = {}
    for prefix, prompt in zip(("", "negative_"), prompts, strict=False):
        arguments[prefix + "prompt_embeds"] = prompt.features
        if prompt.pooled is not None:
            arguments[prefix + "pooled_prompt_embeds"] = prompt.pooled
    return arguments


def _per_picture(rows: Tensor, copies: int) -> Tensor:
    """One row per picture, of one per prompt, in the pipelines' order."""
    return rows.repeat_interleave(copies, 0)


def _in_loop(prompts: list[Prompt], copies: int) -> dict[str, Tensor]:
    """The same prompts as variables of the pipeline's sampling loop: negative first, one row per picture."""

    def joined(parts: list[Tensor]) -> Tensor:
        return torch.cat([_per_picture(part, copies) for part in reversed(parts)])

    variables = {"prompt_embeds": joined([p.features for p in prompts])}
    pooled = [p.pooled for p in prompts if p.pooled is not None]
    if pooled:
        variables["add_text_embeds"] = joined(pooled)
    return variables
