"""SafeCFG's guidance: from gates to safe text features. Pure functions; a clean prompt's features stay the same."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .errors import HGRError


def ramp(gates: Tensor, thresholds: Tensor) -> Tensor:
    """Activation of each concept: 0 below its threshold, 1/2 at it, 1 from halfway between it and certainty.

    gates (..., K) in [0, 1], thresholds (K,) in [0, 1). The formula is this project's own.
    """
    above = (gates - thresholds) / (1 - thresholds)
    return torch.where(gates >= thresholds, (0.5 + above).clamp(max=1.0), 0.0)


def shift(features: Tensor, delta: Tensor, scale: float) -> Tensor:
    """`features + scale * delta`. Samples whose delta is zero keep their features bit for bit.

    features, delta (B, ...). If no sample moves, the given tensor itself is returned. Raises HGRError if a sample that
    moves is not finite in the features' type.
    """
    moved = delta.flatten(1).any(1)
    if scale == 0 or not moved.any():
        return features
    safe = features[moved] + (scale * delta[moved]).to(features)
    if not safe.isfinite().all():
        raise HGRError(
            f"the moved text features do not fit {str(features.dtype).removeprefix('torch.')}: lower the strength, run "
            "the text encoder in float32, or use another HGR, because this one may be damaged."
        )
    result = features.clone()
    result[moved] = safe
    return result


def fold(delta: Tensor, length: int) -> Tensor:
    """Lay a prompt's displacement (B, T, D) onto unconditional features of another length (B, length, D).

    A shorter displacement is padded with zeros. A longer one (a prompt of several chunks) is cut into parts that are
    added up, so that none is lost.
    """
    parts = math.ceil(delta.shape[1] / length)
    padded = F.pad(delta, (0, 0, 0, parts * length - delta.shape[1]))
    return rearrange(padded, "b (n t) d -> b n t d", n=parts).sum(1)


def mean_of_moved(deltas: list[Tensor]) -> Tensor:
    """One displacement from those of several positive prompts: per sample, the mean over the prompts that move.

    deltas: tensors (B, ...) of one shape.
    """
    stacked = torch.stack(deltas)
    moved = stacked.flatten(2).any(2).sum(0).clamp(min=1)
    return stacked.sum(0) / moved.reshape(-1, *(1,) * (stacked.dim() - 2))
