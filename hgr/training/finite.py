"""The check that what a training made can be used."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..core.hgr import Concept


def check_finite(what: str, values: Iterable[Tensor | float], *, remedy: str = "try a lower learning rate") -> None:
    """Raise FloatingPointError if a value is NaN or infinite, as float32. what: the values' name, in the plural."""
    if not all(torch.as_tensor(value).isfinite().all() for value in values):
        raise FloatingPointError(f"{what} are not finite, so nothing is written: {remedy}.")


def numbers(concepts: Iterable[Concept]) -> list[float]:
    """All that a calibration gives concepts."""
    return [x for c in concepts for x in (c.scale, c.bias, c.threshold, *c.levels)]
