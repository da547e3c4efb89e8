"""A text encoder's output for prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Prompt(NamedTuple):
    """A text encoder's output for B prompts: features (B, T, D), pooled (B, P) or None, mask (B, T) or None."""

    features: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Prompt:
        """The prompt with `change` applied to each of its tensors."""
        pooled, mask = (None if x is None else change(x) for x in self[1:])
        return Prompt(change(self.features), pooled, mask)

    def to(self, device: torch.device | str) -> Prompt:
        return self.map(lambda x: x.to(device))

    def rows(self, index: Tensor | slice) -> Prompt:
        """Some of the B prompts. index: on any device."""
        return self.map(lambda x: x[index if isinstance(index, slice) else index.to(x.device)])

    def expand(self, count: int) -> Prompt:
        """`count` rows that are views of the only one; a batch that has `count` rows already stays as it is."""
        return self.map(lambda x: x.expand(count, *x.shape[1:]))

    def split(self, sizes: Sequence[int]) -> list[Prompt]:
        """The B prompts in parts of these sizes, which add up to B."""
        ends = list(accumulate(sizes))
        if not ends or ends[-1] != len(self.features):
            raise ValueError(f"{len(self.features)} prompts cannot be split into parts of {list(sizes)}.")
        return [self.rows(slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


# Encodes texts with the model's text encoder, each to a Prompt of one row: features (1, T, D).
Encode = Callable[[list[str]], list[Prompt]]
