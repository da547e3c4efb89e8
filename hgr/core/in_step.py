"""Text features that show up only inside a sampling step, moved without waiting for the device."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .guidance import ramp
from .hgr import FINGERPRINT_TOLERANCE, HGR, SCORE_TOLERANCE, is_given


class InStep:
    """An HGR on the sampling device. What `redirect` decides before a run it does with tensors alone: nothing branches
    on data, and the results are read when the run is over.

    strengths (K,): of each concept, multiplied by the global one.

    highest (K,): the highest gate of each concept so far. seen, unread: 0-dim bools, whether there were features to
    read, and whether there were some that this encoder did not make, so that they stayed as they were.
    """

    def __init__(self, hgr: HGR, strengths: list[float], device: torch.device):
        self.hgr, self.network = hgr, copy.deepcopy(hgr.network).to(device)
        concepts, encoder = hgr.concepts, hgr.encoder
        self.scale = torch.tensor([c.scale for c in concepts], device=device)
        self.bias = torch.tensor([c.bias for c in concepts], device=device)
        self.thresholds = torch.tensor([c.threshold for c in concepts], device=device)
        self.strengths = torch.tensor(strengths, device=device)
        self.first = encoder.first.to(device)
        # such features come without the pooled output of their prompt
        self.pooled = None if encoder.empty_pooled is None else encoder.empty_pooled.to(device)
        self.weights: dict[int, Tensor] = {}  # of `marks`, by their number
        self.highest = torch.zeros(len(concepts), device=device)
        self.seen = self.unread = torch.zeros((), dtype=torch.bool, device=device)

    def cut(self, features: Tensor, length: int) -> Tensor:
        """(B * N, t, D): features (B, T, D) in the parts in which the network reads `length` tokens."""
        part = self.hgr.part_length(length)
        over = -features.shape[1] % part
        return rearrange(F.pad(features, (0, 0, 0, over)), "b (n t) d -> (b n) t d", t=part)

    def marks(self, parts: Tensor) -> Tensor:
        """(P,) int64: a number for each of the parts (P, t, D) that `cut` gives, the same for parts that are equal bit
        for bit."""
        bits = parts.flatten(1)
        bits = bits.view(torch.int16 if bits.element_size() == 2 else torch.int32).long()
        size = bits.shape[1]
        if size not in self.weights:
            generator = torch.Generator(bits.device).manual_seed(0)
            drawn = torch.randint(-(2**62), 2**62, (size,), generator=generator, device=bits.device)
            self.weights[size] = 2 * drawn + 1
        return (bits * self.weights[size]).sum(1)  # whole numbers: the order of summing does not matter

    def move(self, features: Tensor, known: Tensor, movable: Tensor) -> Tensor:
        """features (B, T, D), with the parts in which a concept fires moved and all others equal bit for bit.

        known (P,): the marks of parts that stay as they are, as the run's own conditionings.
        movable (B,) bool: rows that may move.
        """
        count, length, _ = features.shape
        parts = self.cut(features, length)
        n = len(parts) // count
        x = parts.float()
        mask = None
        if over := n * parts.shape[1] - length:
            mask = F.pad(torch.ones(count, length, dtype=torch.bool, device=x.device), (0, over))
            mask = rearrange(mask, "b (n t) -> (b n) t", n=n)
        given = is_given(parts) & movable.repeat_interleave(n, output_size=len(parts))
        foreign = given & ~(self.marks(parts)[:, None] == known).any(1)
        readable = self._is_readable(x)
        pooled = None if self.pooled is None else self.pooled.expand(len(x), -1)
        encoding = self.network.encode(x, pooled, mask)  # type: ignore[reportArgumentType] (each network takes its own)
        logits = self.network.gate_logits(encoding)  # type: ignore[reportArgumentType]
        gates = (self.scale * logits + self.bias).sigmoid()
        weights = ramp(gates, self.thresholds) * self.strengths
        delta = self.network.displacement(encoding, weights)[0]  # type: ignore[reportArgumentType]
        moved = (x + self.hgr.with_start(delta, n)).to(parts)
        readable = readable & (logits.isfinite() & gates.isfinite()).all(1) & moved.isfinite().flatten(1).all(1)
        self.seen = self.seen | foreign.any()
        self.unread = self.unread | (foreign & ~readable).any()
        self.highest = self.highest.maximum(gates.masked_fill(~(foreign & readable)[:, None], 0.0).amax(0))
        fires = foreign & readable & weights.any(1)
        result = torch.where(fires[:, None, None], moved, parts)
        return rearrange(result, "(b n) t d -> b (n t) d", n=n)[:, :length]

    def _is_readable(self, x: Tensor) -> Tensor:
        """(B,) bool: the rows of features (B, T, D) that this HGR's encoder may have made (as `HGR.check` decides)."""
        if self.hgr.encoder.fixed_start:
            return (x[:, 0] - self.first).norm(dim=-1) <= FINGERPRINT_TOLERANCE * self.first.norm()
        scores = (x - self.network.mean) / self.network.std
        return scores.square().mean((1, 2)) <= SCORE_TOLERANCE
