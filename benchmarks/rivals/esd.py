"""Erased Stable Diffusion, ESD-x (Gandikota et al., ICCV 2023, arXiv 2303.07345)."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor

from hgr.training.train_lora import Adapted

from .weights import Tuned, noised

PICTURES = 48


def away(u: Tensor, c: Tensor, eta: float = 1.0) -> Tensor:
    """Equation 6, the target `u - eta (c - u)`, from the frozen model's predictions without and with the concept."""
    return u - eta * (c - u)


def erasing(
    adapted: Adapted, latents: Tensor, named: Tensor, *, empty: Tensor, batch: int
) -> Callable[[random.Random, torch.Generator], Tensor]:
    """The loss `||eps_theta(z_t, c) - target||^2` on noisy latents (N, C, H, W) of pictures of a concept, named (N, T,
    D); empty (1, T, D)."""

    def loss(rng: random.Random, generator: torch.Generator) -> Tensor:
        rows = [rng.randrange(len(latents)) for _ in range(batch)]
        error, c_features = noised(adapted, latents[rows], generator), named[rows]
        with torch.no_grad(), adapted.frozen():
            u, c = error(empty.expand_as(c_features), None), error(c_features, None)
        return (error(c_features, None) - away(u, c)).square().mean()

    return loss


class ESD(Tuned):
    """All weights of the cross-attention, trained on the concepts' words alone, eta = 1.

    Scaled to this model: 300 steps of 8 at 2e-4, for the paper's 1,000 of one at 1e-5; z_t is a picture of the frozen
    model under noise, for one that is sampled halfway by the model in training.
    """

    label = "ESD-x"
    stage, learning_rate = "esd", 2e-4
    parts = ("to_q", "to_k", "to_v", "to_out")

    def loss(self, adapted: Adapted) -> Callable[[random.Random, torch.Generator], Tensor]:
        phrases = self.given.phrases
        texts = [phrases[i % len(phrases)] for i in range(PICTURES)]
        latents = self.painted(adapted, texts)
        return erasing(adapted, latents, self.encode(texts), empty=self.encode([""]), batch=self.batch)
