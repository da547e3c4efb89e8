"""Detects concepts in prompts and pictures, with the parts of a diffusers pipeline."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ...core.hgr import HGR
from ...core.options import DEFAULT_SENSITIVITY, concept_strengths
from ...core.prompt import Prompt
from ...detection.crops import crops
from ...detection.hed import spread
from ...detection.judge import judge_pictures, judge_prompts, trained_size
from ...detection.report import Evidence, build
from .denoiser import denoiser_of
from .prompts import encode, room

_OVERLAP = 8  # tokens shared by neighbouring parts of a long prompt: a word cut in one part is whole in the other


class Detector:
    """Judges prompts and pictures one at a time, so that a score does not depend on other items.

    pipe: the model that the HGR was trained for; without denoiser and autoencoder, only for prompts. Its autoencoder is
    set to float32, as SDXL's gives NaN in lower precision.
    concepts: strength by concept id, as JSON; concepts at 0 do not count.
    sensitivity: one of `hgr.core.options.SENSITIVITIES`.
    timesteps: noise levels at which a picture is evaluated with its prompt.
    samples: draws of noise at each level.

    Raises ValueError for concepts that are not a JSON object of strengths, HGRError for an HGR that was made for a
    different text encoder or has no thresholds for this sensitivity.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        hgr: HGR,
        *,
        concepts: str = "",
        sensitivity: str = DEFAULT_SENSITIVITY,
        timesteps: int = 2,
        samples: int = 1,
        seed: int = 0,
    ):
        self.pipe, self.hgr, self.sensitivity = pipe, hgr, sensitivity
        self.percents, self.samples, self.seed = spread(timesteps), samples, seed
        self.on = [strength > 0 for strength in concept_strengths(concepts, hgr.ids)]
        if getattr(pipe, "unet", None) is not None:
            self.denoiser = denoiser_of(pipe)
            pipe.vae.float()
        self("")  # reports an HGR that does not fit now, and not once for every item

    @torch.no_grad()
    def __call__(self, text: str | None = None, pixels: Tensor | None = None) -> dict[str, Any]:
        """The report (`hgr.detection.report`) of a prompt, of a picture (1, 3, H, W) in [0, 1], or of both together.

        Raises HGRError if the HGR cannot judge them, ValueError if neither is given.
        """
        prompts = [] if text is None else self._prompts(text)
        if pixels is not None:
            evidence = judge_pictures(
                self.hgr,
                self.denoiser,
                self._crops(pixels),
                prompts=prompts,
                percents=self.percents,
                samples=self.samples,
                seed=self.seed,
            )
        else:
            evidence: list[Evidence] = [judge_prompts(self.hgr, prompts)] if prompts else []
        return build(self.hgr, evidence, self.on, sensitivity=self.sensitivity)

    def _prompts(self, text: str) -> list[Prompt]:
        """A prompt in parts that fit the text encoders, because what they would cut off may be harmful."""
        tokenizer = self.pipe.tokenizer
        tokens = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        size, parts = room(self.pipe), [text]
        if len(tokens) > size:
            starts = range(0, len(tokens) - _OVERLAP, size - _OVERLAP)
            parts = [tokenizer.decode(tokens[at : at + size]) for at in starts]
        return [encode(self.pipe, [part]) for part in parts]

    def _crops(self, pixels: Tensor) -> Tensor:
        """(1, 1 + N, C, h, w) latents on the CPU, at the size that the probe was trained on: the whole picture and, if
        it has another shape, its parts (`hgr.detection.crops`)."""
        vae, cell = self.pipe.vae, self.pipe.vae_scale_factor
        height, width = (side * cell for side in trained_size(self.hgr)[-2:])
        scale = vae.config.scaling_factor
        found = [
            (vae.encode(2 * crop.to(vae.device) - 1).latent_dist.mode() * scale).cpu()
            for crop in crops(pixels, height, width)
        ]
        return torch.cat(found)[None]
