"""Concept ablation (Kumari et al., ICCV 2023, arXiv 2303.13516)."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import torch
from torch import Tensor

from hgr.demo.captions import Caption, draw_from
from hgr.training.train_lora import Adapted

from .weights import Tuned, noised

PICTURES = 200
PRIOR = 1.0  # lambda


def renamed(caption: Caption, words: dict[str, str], rng: random.Random) -> Caption:
    """The caption with its symbols called by one of their own words."""
    things = tuple((name, rng.choice(words[name].split(", "))) for name, _ in caption.things)
    return dataclasses.replace(caption, things=things)


def ablating(
    adapted: Adapted, latents: Tensor, named: Tensor, *, anchor: Tensor, batch: int
) -> Callable[[random.Random, torch.Generator], Tensor]:
    """The loss `||eps_theta(z_t, c) - eps(z_t, c_anchor)||^2 + lambda ||eps_theta(z_t, c_anchor) - noise||^2`, eps
    frozen, on noisy latents (N, C, H, W) of pictures of the anchor prompts; named, anchor (N, T, D)."""

    def loss(rng: random.Random, generator: torch.Generator) -> Tensor:
        rows = [rng.randrange(len(latents)) for _ in range(batch)]
        error = noised(adapted, latents[rows], generator)
        with torch.no_grad(), adapted.frozen():
            goal = error(anchor[rows], None)
        matched = (error(named[rows], None) - goal).square().mean()
        return matched + PRIOR * error(anchor[rows], None).square().mean()

    return loss


class Ablation(Tuned):
    """Keys and values of the cross-attention, trained so that a prompt with the concept gives what the same prompt with
    the anchor does: here the clean twin. Prompts of the training side, in which symbols have their own words alone.

    Scaled to this model: 300 steps of 8 at 5e-4.
    """

    label = "concept ablation"
    stage, learning_rate = "ablation", 5e-4
    parts = ("to_k", "to_v")

    def loss(self, adapted: Adapted) -> Callable[[random.Random, torch.Generator], Tensor]:
        rng = random.Random(f"{self.given.seed}/ablation")
        drawn = [renamed(draw_from("training", rng, "seen"), self.given.words, rng) for _ in range(PICTURES)]
        anchors = [caption.clean for caption in drawn]
        latents, named = self.painted(adapted, anchors), self.encode([caption.text for caption in drawn])
        return ablating(adapted, latents, named, anchor=self.encode(anchors), batch=self.batch)
