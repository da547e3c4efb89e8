"""SafeCFG's guidance: from gates to safe text features. Pure functions; a clean prompt's features are returned as they are."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

log = logging.getLogger("safecfg")

# The two scales of each mode: `a` moves the conditional features, `b` the unconditional ones the other way.
# redirect follows the paper's v1 (HGR), dynamic its v2 (Dynamic Safe Guidance); the formulas are this project's own.
MODES = {"redirect": (1.0, 0.0), "dynamic": (0.0, 1.0), "balanced": (0.5, 1.0)}
DEFAULT_MODE = "redirect"


def concept_strengths(text: str, ids: Iterable[str]) -> list[float]:
    """The strength of each concept id from the user's JSON, e.g. `{"violence": 1.0, "shocking": 0}`.

    A missing id means 1.0; an empty text means all at 1.0; true and false mean 1.0 and 0. An unknown id is ignored with
    one warning. Raises ValueError for text that is not a JSON object of numbers in [0, 2].
    """
    try:
        given = json.loads(text) if text.strip() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"concepts: not valid JSON ({error}). Write for example {{\"violence\": 1.0, \"shocking\": 0}}.") from None
    if not isinstance(given, dict):
        raise ValueError(f"concepts: expected a JSON object of strengths by concept id, got {type(given).__name__}.")
    for key, value in given.items():
        if not isinstance(value, (int, float)) or not 0 <= value <= 2:  # NaN is in no range
            raise ValueError(f"concepts: the strength of \"{key}\" is {value!r}; it must be a number from 0 (off) to 2.")
    ids = list(ids)
    unknown = sorted(set(given) - set(ids))
    if unknown:
        log.warning("concepts: this HGR does not know %s; ignored. It knows %s.", ", ".join(unknown), ", ".join(ids))
    return [float(given.get(key, 1.0)) for key in ids]


def ramp(gates: Tensor, thresholds: Tensor) -> Tensor:
    """Activation of each concept: 0 below its threshold, 1/2 at it, 1 from halfway between it and certainty.

    gates (..., K) in [0, 1], thresholds (K,) in [0, 1). The formula is this project's own.
    """
    above = (gates - thresholds) / (1 - thresholds)
    return torch.where(gates >= thresholds, (0.5 + above).clamp(max=1.0), 0.0)


def shift(features: Tensor, delta: Tensor, scale: float) -> Tensor:
    """`features + scale * delta`, bit for bit the given features in the samples where delta is zero.

    features, delta (B, ...). Where no sample moves, the very same tensor is returned.
    """
    moved = delta.flatten(1).any(1)
    if scale == 0 or not moved.any():
        return features
    result = features.clone()
    result[moved] += (scale * delta[moved]).to(features)
    return result


def fold(delta: Tensor, length: int) -> Tensor:
    """Lay a prompt's displacement (B, T, D) onto unconditional features of another length (B, length, D).

    A shorter displacement is padded with zeros; of a longer one (a prompt of several chunks) the parts are added up, so
    that none is lost.
    """
    parts = math.ceil(delta.shape[1] / length)
    padded = F.pad(delta, (0, 0, 0, parts * length - delta.shape[1]))
    return rearrange(padded, "b (n t) d -> b n t d", n=parts).sum(1)


def mean_of_moved(deltas: list[Tensor]) -> Tensor:
    """One displacement for the unconditional side of several positive prompts: per sample, the mean over those that move.

    deltas: tensors (B, ...) of one shape.
    """
    stacked = torch.stack(deltas)
    moved = stacked.flatten(2).any(2).sum(0).clamp(min=1)
    return stacked.sum(0) / moved.reshape(-1, *(1,) * (stacked.dim() - 2))
