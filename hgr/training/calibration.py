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
_HIGH = 1 - 1e-6  # a threshold must differ from 1 in single precision
_FOLDS = 10
_FEWEST = 10  # prompts that a concept's tail is fitted to
_LEAST = 0.2  # of the logits' standard deviation: the least spread of a tail


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


def thresholds(clean: Tensor, rate: float, *, low: float = LOW) -> list[float]:
    """One threshold per concept, such that at most a share of `rate` of clean prompts is expected to have any gate at
    or above its threshold: the false-positive rate of all concepts together.

    clean (N, K): gates of clean prompts that were not trained on.
    low: the lowest threshold. If the classes are separated, the rate would allow thresholds close to 0; `low` keeps
        clean wordings that were never seen from firing on weak evidence.

    Each concept gets the same share of false alarms, however far its gates reach: a limit shared by all would let one
    concept with a long tail silence the others. That share is the largest with which at most `rate * (N + 1) - 1` of
    the N prompts fire, because one more than was seen must be expected among new prompts, as in split conformal
    prediction (Vovk et al. 2005). A concept's threshold for a share is read from an exponential distribution that is
    fitted to its highest tenth of logits, as its few highest ones are chance; a rate below 1 / (N + 1), which cannot be
    counted, lies further up on it. The procedure is this project's own.

    Raises ValueError for a rate outside (0, 1).
    """
    if not 0 < rate < 1:
        raise ValueError(f"the false-positive rate is {rate}; it must lie between 0 and 1.")
    logits = torch.logit(clean.double(), 1e-9)
    start, spread = _tail(logits)
    rarity = _rarity(logits).sort(descending=True).values
    seen = max(rate, 1 / (len(clean) + 1))
    limit = rarity[int(seen * (len(clean) + 1) + 1e-9) - 1] + math.log(seen / rate)
    return (start + spread * limit + 1e-6).sigmoid().clamp(low, _HIGH).tolist()


def _rarity(logits: Tensor) -> Tensor:
    """How far the most unusual gate of each prompt (N, K) reaches into the tails, as an exponent (N,). A prompt must
    not shape the tail that it is judged by: each of up to ten parts is judged by the others."""
    part = torch.arange(len(logits)) % _FOLDS
    found = logits.new_empty(len(logits))
    for i in part.unique():
        start, spread = _tail(logits[part != i] if len(logits) > 1 else logits)
        found[part == i] = ((logits[part == i] - start) / spread).amax(1)
    return found


def _tail(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Where the highest tenth of each concept's logits (N, K) starts (K,), and its mean excess (K,). Of few prompts it
    is the highest ten, or half of them."""
    count = max(1, min(len(logits) // 2, max(_FEWEST, len(logits) // 10)))
    highest = logits.sort(0, descending=True).values[: count + 1]
    excess = (highest[:-1] - highest[-1]).mean(0) if len(highest) > 1 else torch.zeros_like(highest[0])
    # a tail of next to nothing would make everything beyond it infinitely rare
    return highest[-1], excess.maximum(_LEAST * (logits - logits.mean(0)).square().mean(0).sqrt()).clamp(min=1e-3)


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
    probabilities = calibrated(clean, fitted)
    # a sensitivity multiplies the false-positive rate; where only `LOW` keeps a threshold up, it divides its odds
    levels = [
        thresholds(probabilities, min(rate * factor, 0.5), low=1 / (1 + (1 / LOW - 1) * factor))
        for factor in SENSITIVITIES.values()
    ]
    normal = levels[list(SENSITIVITIES).index(DEFAULT_SENSITIVITY)]
    return [
        replace(concept, threshold=threshold, levels=level)
        for concept, threshold, level in zip(fitted, normal, zip(*levels, strict=True), strict=True)
    ]
