"""Safe Latent Diffusion (Schramowski et al., CVPR 2023, arXiv 2211.05105)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hgr.demo.captions import Caption

from .method import PUBLISHED_STEPS, Guide, Method, predictions


class Preset(NamedTuple):
    """warmup: steps of 50 in which the momentum builds up but nothing is guided yet. scale S, threshold lambda,
    momentum s_m and beta beta_m: see `safety`."""

    warmup: int
    scale: float
    threshold: float
    momentum: float
    beta: float


PRESETS = {
    "weak": Preset(15, 200, 0.0, 0.0, 0.0),
    "medium": Preset(10, 1000, 0.01, 0.3, 0.4),
    "strong": Preset(7, 2000, 0.025, 0.5, 0.7),
    "max": Preset(0, 5000, 1.0, 0.5, 0.7),
}


def safety(p: Tensor, u: Tensor, s: Tensor, *, preset: Preset, nu: Tensor) -> tuple[Tensor, Tensor]:
    """The safety guidance gamma and the next momentum; all (B, ...). Equations 5 to 7:

    mu = min(1, S |p - s|), 0 where p - s >= lambda
    gamma = mu (s - u) + s_m nu
    nu' = beta_m nu + (1 - beta_m) gamma
    """
    mu = (preset.scale * (p - s).abs()).clamp(max=1) * (p - s < preset.threshold)
    gamma = mu * (s - u) + preset.momentum * nu
    return gamma, preset.beta * nu + (1 - preset.beta) * gamma


class SLD(Method):
    """`u + g ((p - u) - gamma)` after the warm-up, which is scaled from 50 steps; s is for all words at once."""

    label = "SLD"
    preset = PRESETS["medium"]

    def unsafe(self) -> list[Tensor]:
        """Features (1, T, D) of what to stay away from."""
        return [self.encode([self.given.list])]

    def choose(self, p: Tensor, u: Tensor, unsafe: tuple[Tensor, ...]) -> Tensor:
        """s (B, ...) from the predictions for each of `unsafe`."""
        (s,) = unsafe
        return s

    def guide(self, captions: list[Caption]) -> Guide:
        features = [self.encode([""]), self.encode([c.text for c in captions]), *self.unsafe()]
        warmup = round(self.preset.warmup * self.given.steps / PUBLISHED_STEPS)
        nu = torch.zeros(())

        def guide(latents: Tensor, t: Tensor, step: int) -> tuple[Tensor, Tensor]:
            nonlocal nu
            u, p, *unsafe = predictions(self.pipe, latents, t, *features)
            s = self.choose(p, u, tuple(unsafe))
            gamma, nu = safety(p, u, s, preset=self.preset, nu=nu.to(p))
            return latents, u + self.given.cfg * (p - u - (gamma if step >= warmup else 0))

        return guide
