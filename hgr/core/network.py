"""The HGR network: a small transformer over a prompt's tokens with one learned query per concept.

The architecture is this project's own; the paper (arXiv 2412.16039) publishes none.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

_NO_EVIDENCE = -3.0  # of a token, in an untrained network: the many tokens of a prompt add up
# The share of a prompt's evidence from which a concept's gate opens as far as all of it allows: that something is
# harmful is often known more surely than what kind of harm it is.
_SHARE = 0.1


class Encoding(NamedTuple):
    """A prompt as the network sees it: what gates and displacements are read from.

    tokens: (B, T, H). pooled: (B, H), or None for an encoder without pooled output. mask: (B, T) bool, or None.
    """

    tokens: Tensor
    pooled: Tensor | None
    mask: Tensor | None


class _Block(nn.Module):
    """A bidirectional pre-norm transformer block."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm1(x)), "b t (n h d) -> n b h t d", n=3, h=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None])
        x = x + self.out(rearrange(attended, "b h t d -> b t (h d)"))
        return x + self.mlp(self.norm2(x))


class HGRNetwork(nn.Module):
    """Gates and displacements of K concepts for text features of one encoder.

    text_dim: D.
    pooled_dim: P, 0 for an encoder without pooled output.
    concepts: K.
    width: H, a multiple of heads.

    The statistics of the features (`set_statistics`) are part of the weights: inputs are standardised by them,
    displacements are given in their units.
    """

    mean: Tensor  # (D,), of the features
    std: Tensor
    pooled_mean: Tensor  # (P,), of the pooled output, where there is one
    pooled_std: Tensor

    def __init__(
        self, text_dim: int, pooled_dim: int, concepts: int, *, width: int = 128, depth: int = 2, heads: int = 4
    ):
        super().__init__()
        self.text_dim, self.pooled_dim, self.width, self.depth, self.heads = text_dim, pooled_dim, width, depth, heads
        self.register_buffer("mean", torch.zeros(text_dim))
        self.register_buffer("std", torch.ones(text_dim))
        self.into = nn.Linear(text_dim, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.anchors = nn.Parameter(torch.randn(concepts, width) * width**-0.5)
        self.gate_in, self.gate_out = nn.Linear(width, width), nn.Linear(width, concepts)
        nn.init.constant_(self.gate_out.bias, _NO_EVIDENCE)
        self.move_in = nn.Linear(2 * width, 2 * width)
        self.move_out = nn.Linear(2 * width, text_dim)
        nn.init.zeros_(self.move_out.weight)  # an untrained network displaces nothing
        nn.init.zeros_(self.move_out.bias)
        if pooled_dim:
            self.register_buffer("pooled_mean", torch.zeros(pooled_dim))
            self.register_buffer("pooled_std", torch.ones(pooled_dim))
            self.pooled_into = nn.Linear(pooled_dim, width)
            self.pooled_out = nn.Linear(2 * width, pooled_dim)
            nn.init.zeros_(self.pooled_out.weight)
            nn.init.zeros_(self.pooled_out.bias)

    @torch.no_grad()
    def set_statistics(self, features: Tensor, pooled: Tensor | None, mask: Tensor | None = None) -> None:
        """Take the mean and the standard deviation of each dimension from features (N, T, D) and pooled (N, P); with a
        mask (N, T), only from the tokens that it marks."""
        tokens = features.flatten(0, 1) if mask is None else features[mask]
        self.mean.copy_(tokens.mean(0))
        self.std.copy_(tokens.std(0).clamp(min=1e-4))
        if pooled is not None:
            self.pooled_mean.copy_(pooled.mean(0))
            self.pooled_std.copy_(pooled.std(0).clamp(min=1e-4))

    def encode(self, features: Tensor, pooled: Tensor | None = None, mask: Tensor | None = None) -> Encoding:
        """features (B, T, D), pooled (B, P) or None, mask (B, T) bool, True where there is a token."""
        x = self.into((features - self.mean) / self.std)
        if not self.pooled_dim:
            pooled = None
        if pooled is not None:
            extra = self.pooled_into((pooled - self.pooled_mean) / self.pooled_std)
            x = torch.cat([x, extra[:, None]], 1)
        attend = None if mask is None else F.pad(mask, (0, x.shape[1] - mask.shape[1]), value=True)
        for block in self.blocks:
            x = block(x, attend)
        x = self.norm(x)
        return Encoding(x, None, mask) if pooled is None else Encoding(x[:, :-1], x[:, -1], mask)

    def evidence(self, encoding: Encoding) -> Tensor:
        """(B, K): the evidence for each concept in the prompt, as logits; what the gates are trained on.

        A soft maximum (logsumexp) over the evidence of the tokens. In a mean, even a weighted one, many harmless words
        outvote a harmful clause.
        """
        tokens = encoding.tokens if encoding.pooled is None else encoding.tokens + encoding.pooled[:, None]
        evidence = self.gate_out(F.gelu(self.gate_in(tokens)))
        if encoding.mask is not None:
            evidence = evidence.masked_fill(~encoding.mask[..., None], -torch.inf)
        return evidence.logsumexp(1)

    def gate_logits(self, encoding: Encoding) -> Tensor:
        """(B, K): the gates as logits before calibration, from the evidence e of all concepts,
        `min(logsumexp_j e_j, e_k - log s)`.

        A concept with a share s (`_SHARE`) of the evidence has a gate as open as all of the evidence would open one.
        The formula is this project's own.
        """
        own = self.evidence(encoding)
        return own.logsumexp(1, keepdim=True).minimum(own - math.log(_SHARE))

    def displacement(self, encoding: Encoding, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """`sum_k weights_k D_k` for the features (B, T, D) and for the pooled vector (B, P) or None. weights (B, K)."""
        # `move_in` of a token beside an anchor: the token's half of the product is the same for all anchors
        token_half, anchor_half = self.move_in.weight.split(self.width, 1)
        anchors = F.linear(self.anchors, anchor_half, self.move_in.bias)
        tokens = F.linear(encoding.tokens, token_half)
        pooled = None if encoding.pooled is None else F.linear(encoding.pooled, token_half)
        total: Tensor = tokens.new_zeros(())
        total_pooled: Tensor | None = None
        for k in range(weights.shape[1]):  # one concept at a time: memory for one displacement is enough
            w = weights[:, k, None]
            total = total + w[..., None] * F.gelu(tokens + anchors[k])
            if pooled is not None:
                hidden = w * F.gelu(pooled + anchors[k])
                total_pooled = hidden if total_pooled is None else total_pooled + hidden
        strength = weights.sum(1)[:, None]
        delta = (F.linear(total, self.move_out.weight) + self.move_out.bias * strength[..., None]) * self.std
        if encoding.mask is not None:
            delta = delta * encoding.mask[..., None]
        if total_pooled is None:
            return delta, None
        moved = F.linear(total_pooled, self.pooled_out.weight) + self.pooled_out.bias * strength
        return delta, moved * self.pooled_std


class HGRUnion(nn.Module):
    """Several networks for one encoder, used as one: their concepts follow each other in order."""

    def __init__(self, parts: list[HGRNetwork]):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.networks = parts
        self.sizes = [len(part.anchors) for part in parts]

    @property
    def text_dim(self) -> int:
        return self.networks[0].text_dim

    @property
    def pooled_dim(self) -> int:
        return self.networks[0].pooled_dim

    @property
    def mean(self) -> Tensor:
        return self.networks[0].mean

    @property
    def std(self) -> Tensor:
        return self.networks[0].std

    def encode(
        self, features: Tensor, pooled: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Encoding, ...]:
        return tuple(part.encode(features, pooled, mask) for part in self.networks)

    def gate_logits(self, encoding: tuple[Encoding, ...]) -> Tensor:
        return torch.cat([part.gate_logits(own) for part, own in zip(self.networks, encoding, strict=True)], -1)

    def displacement(self, encoding: tuple[Encoding, ...], weights: Tensor) -> tuple[Tensor, Tensor | None]:
        moved = [
            part.displacement(own, w)
            for part, own, w in zip(self.networks, encoding, weights.split(self.sizes, 1), strict=True)
        ]
        pooled = [part for _, part in moved if part is not None]
        return torch.stack([part for part, _ in moved]).sum(0), torch.stack(pooled).sum(0) if pooled else None


def parts_of(network: HGRNetwork | HGRUnion) -> list[HGRNetwork]:
    """The networks of a union; a single network is a list of one."""
    return list(network.networks) if isinstance(network, HGRUnion) else [network]
