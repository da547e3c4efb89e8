"""What a way of sampling safely is to the benchmark: one interface, so that one loop runs them all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from hgr.core.hgr import HGR
from hgr.demo.captions import Caption
from hgr.hosts.diffusers.prompts import encode

# Takes latents z_t (B, C, H, W), the timestep and the number of the step; returns the latents to step from, which are
# the given ones for all methods but one, and the guided prediction of the noise.
Guide = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]

PUBLISHED_STEPS = 50  # of sampling, in which papers count their steps
PUBLISHED_LATENT = (
    4 * 64 * 64
)  # elements of Stable Diffusion's latents, for constants that are compared with their norms
_ROWS = 256  # prompts encoded at once


@dataclass(frozen=True)
class Given:
    """What a method is made from.

    words: for each concept, what it is called, a list with commas. anchor: what may be there instead of a concept.
    steps, cfg: of sampling. folder: the method's own, where it keeps weights that it trained.
    """

    pipe: StableDiffusionPipeline
    hgr: HGR
    words: dict[str, str]
    anchor: str
    steps: int
    cfg: float
    seed: int
    folder: Path

    @property
    def list(self) -> str:
        """All words, for methods that are told all concepts at once."""
        return ", ".join(self.words.values())

    @property
    def phrases(self) -> list[str]:
        return self.list.split(", ")


class Method:
    """Classifier-free guidance `u + g (p - u)`, and what the other methods change of it.

    `guide` is called once for each batch of prompts; while it is used, `edited` is entered.
    """

    label = "plain CFG"

    def __init__(self, given: Given):
        self.given, self.pipe = given, given.pipe

    def edited(self) -> AbstractContextManager[None]:
        """A context in which the model has the method's weights; after it, its own again, bit for bit."""
        return nullcontext()

    def guide(self, captions: list[Caption]) -> Guide:
        return guided(self.pipe, self.encode([c.text for c in captions]), self.encode([""]), cfg=self.given.cfg)

    def encode(self, texts: list[str]) -> Tensor:
        """Text features (B, T, D)."""
        return encode(self.pipe, texts).features


def guided(pipe: StableDiffusionPipeline, positive: Tensor, negative: Tensor, *, cfg: float) -> Guide:
    """`n + g (p - n)`; positive (B, T, D), negative (B or 1, T, D)."""
    negative = negative.expand_as(positive)

    def guide(latents: Tensor, t: Tensor, step: int) -> tuple[Tensor, Tensor]:
        n, p = predictions(pipe, latents, t, negative, positive)
        return latents, n + cfg * (p - n)

    return guide


def predictions(pipe: StableDiffusionPipeline, latents: Tensor, t: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
    """The denoiser's prediction for each of several text features (B or 1, T, D), in one batch."""
    rows = torch.cat([x.expand(len(latents), -1, -1) for x in features])
    return pipe.unet(torch.cat([latents] * len(features)), t, rows).sample.chunk(len(features))


def token_ids(pipe: StableDiffusionPipeline, texts: list[str]) -> Tensor:
    """(B, T), padded as the pipeline does."""
    length = pipe.tokenizer.model_max_length
    padded = pipe.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return padded.input_ids.to(pipe.device)


def pooled(pipe: StableDiffusionPipeline, ids: Tensor, *, without: Tensor | None = None) -> Tensor:
    """Pooled text features (B, D) of token ids (B, T); `without` (B,) is a position in each that no other attends
    to."""
    seen = torch.ones_like(ids)
    if without is not None:
        seen[torch.arange(len(ids)), without] = 0
    parts = zip(ids.split(_ROWS), seen.split(_ROWS), strict=True)
    return torch.cat([pipe.text_encoder(*part).pooler_output for part in parts])
