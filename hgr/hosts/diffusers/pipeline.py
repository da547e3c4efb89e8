"""SafeCFG on diffusers' pipelines."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ...core.file import load
from ...core.hgr import HGR
from ...core.options import DEFAULT_MODE, DEFAULT_SENSITIVITY, SENSITIVITIES, concept_strengths, known_mode
from ...core.redirect import redirect
from .prompts import check_pipeline, encode
from .sampling import SafeSampling


class SafeCFG:
    """A diffusers pipeline whose classifier-free guidance is safe.

        safe = SafeCFG(StableDiffusionPipeline.from_pretrained(...), "my.safetensors")
        images = safe(["a prompt", ...], guidance_scale=7.5, mode="redirect").images

    The pipeline encodes, samples and decodes as usual. Mode "redirect" changes the text features; "dynamic" mixes the
    denoiser's predictions with those for the changed features, at a third evaluation per step. A prompt in which no
    concept fires keeps its latents bit for bit.

    pipe: a pipeline of Stable Diffusion 1.x to 3.x or XL, Flux.1, Qwen-Image, PixArt, Sana or Wan that makes pictures
    or videos from text, also with a picture, a mask or a ControlNet.
    hgr: the redirector made for the pipeline's text encoders, or its file.
    strength: of all concepts, from 0 (off) to about 2; 1 is what the HGR was trained for. A call's own `strength`
    belongs to the pipeline: how far it changes a picture that it starts from.

    Raises TypeError for another kind of pipeline, HGRError for a file that cannot be used, ValueError for a strength
    out of range.
    """

    def __init__(self, pipe: DiffusionPipeline, hgr: HGR | str | Path, *, strength: float = 1.0):
        check_pipeline(pipe)
        if not 0 <= strength < float("inf"):
            raise ValueError(f"strength: {strength!r} must be a number of 0 or more.")
        self.pipe: Any = pipe  # diffusers declares neither its call nor its parts
        self.hgr = hgr if isinstance(hgr, HGR) else load(hgr)
        self.strength = strength

    def gates(self, texts: list[str]) -> Tensor:
        """How sure the HGR is of each concept in each prompt: (B, K) in [0, 1], columns as in `hgr.ids`."""
        with torch.no_grad():
            return self.hgr.read(*encode(self.pipe, texts)).prompt_gates

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        mode: str = DEFAULT_MODE,
        concepts: str | Mapping[str, float] = "",
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        sensitivity: str = DEFAULT_SENSITIVITY,
        **options: Any,
    ) -> Any:
        """Sample. `options`: the pipeline's own arguments. Returns what the pipeline returns.

        mode: one of `hgr.core.options.MODES`. Without a negative prompt (a guidance scale of 1 or less, or a distilled
        model such as Flux without `true_cfg_scale` and `negative_prompt`), "dynamic" has no effect. A ControlNet reads
        the safe prompt in "redirect"; in "dynamic" it is evaluated once, with the prompt as written, for both
        predictions.
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
        if not 0 <= start_percent < end_percent <= 1:
            raise ValueError(
                f"start_percent ({start_percent!r}) must be below end_percent ({end_percent!r}), both in [0, 1]."
            )
        if "strength" in options and "strength" not in inspect.signature(self.pipe.__call__).parameters:
            raise TypeError(f"{type(self.pipe).__name__} takes no strength; SafeCFG's is given to SafeCFG(pipe, hgr).")
        text = concepts if isinstance(concepts, str) else json.dumps(dict(concepts))
        strengths = [self.strength * s for s in concept_strengths(text, self.hgr.ids)]
        change = partial(redirect, self.hgr.at(sensitivity), strengths=strengths)
        window = (start_percent, end_percent)
        with SafeSampling(self.pipe, change, mode=mode, window=window, options=options).running():
            return self.pipe(prompt=prompt, **options)
