"""Turns logits into probabilities, and finds thresholds on these for a stated false-positive rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.hgr import Concept, calibrated
from ..core.options import DEFAULT_SENSITIVITY, SENSITIVITIES

LOW = 0.3  # the lowest threshold, except for sensitivities above "normal"


def platt(logits: Tensor, labels: Tensor, steps: int = 200) -> tuple[float, float]:
    """Scale and bias for which `sigmoid(scale * logit + bias)` is calibrated (Platt 1999). logits, labels (N,).

    Platt's smoothed targets keep both finite for separable data.
    """
    logits, labels = logits.double(), labels.double()
    prior = torch.stack([labels.sum() + 1, (1 - labels).sum() + 1])
    smooth = labels * (prior[0] / (prior[0] + 1)) + (1 - labels) / (prior[1] + 1)
    fit = torch.tensor([1.0, 0.0], dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([fit], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(fit[0] * logits + fit[1], smooth)
        loss.backward()
        return loss

    optimizer.step(closure)
    return tuple(fit.tolist())


def thresholds(
    clean: Tensor, rate: float, none: Tensor | None = None, *, low: float = LOW, high: float = 0.95
) -> list[float]:
    """One threshold per concept, such that at most a share of `rate` of clean prompts is expected to have any gate at
    or above its threshold: the false-positive rate of all concepts together.

    clean (N, K): gates of clean prompts that were not trained on.
    none (M, K): gates of all prompts without a concept, these among them; `clean` by default.
    low, high: the range that each threshold is kept in.

    Each concept's logits are standardised to mean 0 and standard deviation 1 on `none`, and one limit applies to a
    prompt's highest: at most `rate * (N + 1) - 1` of N prompts may reach it, because one more than was seen must be
    expected among new prompts, as in split conformal prediction (Vovk et al. 2005). A separate limit for each concept
    would rest on its few highest prompts, which are chance, and hold less well. A rate below 1 / (N + 1) cannot be
    measured: below it, the odds of the threshold grow as the rate falls. If the classes are separated, the rate would
    allow thresholds close to 0; `low` keeps clean wordings that were never seen from firing on weak evidence.

    Raises ValueError for a rate outside (0, 1).
    """
    if not 0 < rate < 1:
        raise ValueError(f"the false-positive rate is {rate}; it must lie between 0 and 1.")
    logits, spread = (torch.logit(x.double(), 1e-9) for x in (clean, clean if none is None else none))
    mean, std = spread.mean(0), spread.std(0).clamp(min=1e-6)
    seen = max(rate, 1 / (len(clean) + 1))
    highest = ((logits - mean) / std).amax(1).sort(descending=True).values
    limit = highest[int(seen * (len(clean) + 1) + 1e-9) - 1]
    odds = mean + std * limit + 1e-6 + math.log(seen / rate)
    return odds.sigmoid().clamp(low, high).tolist()


def calibrate(
    concepts: Sequence[Concept], scores: Tensor, labels: Tensor, *, judged: Tensor, clean: Tensor, rate: float
) -> list[Concept]:
    """Concepts with the calibration and the thresholds of a score, from its logits on held-out data.

    scores (N, K): the logits, with labels (N, K).
    judged (N, K): where the label is reliable.
    clean (L, K): scores of items without a concept, which the stated false-positive rate refers to.
    """
    fits = [platt(scores[judged[:, k], k], labels[judged[:, k], k]) for k in range(labels.shape[1])]
    fitted = [replace(c, scale=scale, bias=bias) for c, (scale, bias) in zip(concepts, fits, strict=True)]
    probabilities, none = (calibrated(x, fitted) for x in (clean, scores[~labels.any(1)]))
    # a sensitivity multiplies the false-positive rate; where only `LOW` keeps a threshold up, it divides its odds
    levels = [
        thresholds(probabilities, min(rate * factor, 0.5), none, low=1 / (1 + (1 / LOW - 1) * factor))
        for factor in SENSITIVITIES.values()
    ]
    normal = levels[list(SENSITIVITIES).index(DEFAULT_SENSITIVITY)]
    return [
        replace(concept, threshold=threshold, levels=level)
        for concept, threshold, level in zip(fitted, normal, zip(*levels, strict=True), strict=True)
    ]
