"""Conflict-aware adaptive safety guidance, CASG, on SLD."""

from __future__ import annotations

import torch
from torch import Tensor

from .sld import PRESETS, SLD


def most_aligned(p: Tensor, u: Tensor, unsafe: Tensor) -> Tensor:
    """(B,): `argmax_k <s_k - u, p - u> / ||s_k - u||`; p, u (B, ...), unsafe (K, B, ...)."""
    away, along = (unsafe - u).flatten(2), (p - u).flatten(1)
    return ((away * along).sum(2) / away.norm(dim=2)).argmax(0)


class CASG(SLD):
    """SLD with s of the one concept that the prompt's direction is most aligned with, chosen anew for each sample in
    each step. Here among the world's concepts, in place of the paper's seven categories: 2 + K evaluations. On SLD's
    preset medium, its default."""

    label = "CASG on SLD medium"

    def unsafe(self) -> list[Tensor]:
        return [self.encode([words]) for words in self.given.words.values()]

    def choose(self, p: Tensor, u: Tensor, unsafe: tuple[Tensor, ...]) -> Tensor:
        each = torch.stack(unsafe)
        return each[most_aligned(p, u, each), torch.arange(len(p))]


class CASGMax(CASG):
    label, preset = "CASG on SLD max", PRESETS["max"]
