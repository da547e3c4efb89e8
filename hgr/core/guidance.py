"""SafeCFG's guidance: from gates to safe text features. Pure functions; a clean prompt's features stay the same."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import HGRError


def ramp(gates: Tensor, thresholds: Tensor) -> Tensor:
    """Activation of each concept: 0 below its threshold, 1/2 at it, 1 from halfway between it and certainty. Without a
    threshold, which is one of 0, it is the gate itself.

    gates (..., K) in [0, 1], thresholds (K,) in [0, 1). The formula is this project's own.
    """
    above = (gates - thresholds) / (1 - thresholds)
    return torch.where(thresholds > 0, torch.where(gates >= thresholds, (0.5 + above).clamp(max=1.0), 0.0), gates)


def shift(features: Tensor, delta: Tensor) -> Tensor:
    """`features + delta`. Samples whose delta is zero keep their features bit for bit.

    features, delta (B, ...). If no sample moves, the given tensor itself is returned. Raises HGRError if a sample that
    moves is not finite in the features' type.
    """
    moved = delta.flatten(1).any(1)
    if not moved.any():
        return features
    safe = features[moved] + delta[moved].to(features)
    if not safe.isfinite().all():
        raise HGRError(
            f"the moved text features do not fit {str(features.dtype).removeprefix('torch.')}: lower the strength, run "
            "the text encoder in float32, or use another HGR, because this one may be damaged."
        )
    result = features.clone()
    result[moved] = safe
    return result


LAMBDA = 1.0  # of mode "dynamic": at 1 the harmful direction goes wholly, as far as the prompt is harmful


def kept_share(harm: Tensor, cfg: float) -> Tensor:
    """Mode "dynamic": the share m of the prediction for the prompt as written; the safe prompt's takes the rest.

    Dynamic Safe Guidance (arXiv 2412.16039, version 2) adjusts the unconditional score by the prompt's harmfulness. Its
    equations are not public; this is our reading, and what it comes to where CFG puts both sides together:

        eps_u' = eps(u) + lambda h (eps(c) - eps(c_safe)),    eps = eps_u' + w (eps(c) - eps_u')
               = eps(u) + w (m eps(c) + (1 - m) eps(c_safe) - eps(u)),    m = 1 - lambda h (w - 1) / w

    harm (...), h: in [0, 1]; 0 gives exactly 1. cfg: the scale w. At 1 or less, where the unconditional side has no
    part or changes its sign, m is 1. Infinity gives the limit, 1 - h.
    """
    return 1 - LAMBDA * harm * (1 - 1 / max(cfg, 1.0))
