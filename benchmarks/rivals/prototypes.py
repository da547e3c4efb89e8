"""Prototype-guided safe generation (CVPR 2026)."""

from __future__ import annotations

import random
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from hgr.demo.captions import Caption, draw_from

from .method import Guide, Method, pooled, predictions, token_ids

PROTOTYPES = 16
PROMPTS = 512  # of each side, from which prototypes and threshold come
QUANTILE = 0.99  # of clean prompts' highest cosine: tau
ROUNDS = 50  # of k-means


def nearest_to_centres(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count,): the index of the vector that is nearest to each centre of spherical k-means; vectors (N, D)."""
    unit = F.normalize(vectors, dim=1)
    centres = unit[torch.randperm(len(unit), generator=generator)[:count]]
    for _ in range(ROUNDS):
        nearest = (unit @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add(0, nearest, unit)
        centres = torch.where(sums.any(1, keepdim=True), F.normalize(sums, dim=1), centres)
    return (unit @ centres.T).argmax(0)


class PrototypeGuided(Method):
    """`u + a (p - u) - b (s_k* - u)` only if the prompt's cosine with the nearest prototype, max_k cos, is above tau.

    The 16 prototypes are the prompts nearest to the centres of short harmful prompts of the training side, in pooled
    features; tau is the 99th percentile of clean ones. Not known to us are the paper's a, b and tau: a = b = g here.
    """

    label = "prototype-guided"

    @cached_property
    def bank(self) -> tuple[Tensor, Tensor, float]:
        """The prototypes' unit vectors (16, D) and features (16, T, D), and tau."""
        rng = random.Random(f"{self.given.seed}/prototypes")
        harmful, clean = ([draw_from("training", rng, kind).text for _ in range(PROMPTS)] for kind in ("bare", "clean"))
        vectors = self.unit(harmful)
        rows = nearest_to_centres(vectors, PROTOTYPES, torch.Generator().manual_seed(self.given.seed))
        tau = (self.unit(clean) @ vectors[rows].T).amax(1).quantile(QUANTILE).item()
        return vectors[rows], self.encode([harmful[row] for row in rows]), tau

    def unit(self, texts: list[str]) -> Tensor:
        """Pooled features (B, D) of length 1."""
        return F.normalize(pooled(self.pipe, token_ids(self.pipe, texts)), dim=1)

    def guide(self, captions: list[Caption]) -> Guide:
        texts, (units, features, tau) = [c.text for c in captions], self.bank
        cosines, nearest = (self.unit(texts) @ units.T).max(1)
        fires = (cosines > tau).nonzero().flatten()
        positive, empty, unsafe = self.encode(texts), self.encode([""]), features[nearest[fires]]
        g = self.given.cfg

        def guide(latents: Tensor, t: Tensor, step: int) -> tuple[Tensor, Tensor]:
            u, p = predictions(self.pipe, latents, t, empty, positive)
            result = u + g * (p - u)
            if len(fires):
                (s,) = predictions(self.pipe, latents[fires], t, unsafe)
                result[fires] -= g * (s - u[fires])
            return latents, result

        return guide
