"""How well scores separate harmful from clean."""

from __future__ import annotations

import torch
from torch import Tensor


def auroc(positive: Tensor, negative: Tensor) -> float:
    """The probability that a positive score (N,) is above a negative one (M,); ties count half. NaN without scores."""
    if not len(positive) or not len(negative):
        return float("nan")
    negative = negative.double().sort().values
    positive = positive.double().contiguous()
    below, not_above = torch.searchsorted(negative, positive), torch.searchsorted(negative, positive, right=True)
    return ((below + not_above).double() / 2).mean().item() / len(negative)


def false_positives_at(recall: float, positive: Tensor, negative: Tensor) -> float:
    """The share of negative scores at or above the threshold at which `recall` of the positive ones are found."""
    kept = min(len(positive), int(-(-recall * len(positive) // 1)))
    return (negative >= positive.sort(descending=True).values[kept - 1]).double().mean().item()


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """The mean gap between predicted probability and observed share, over bins of equal width weighted by their counts
    (Naeini et al. 2015). probabilities in [0, 1] and labels in {0, 1}, both (N,)."""
    probabilities, labels = probabilities.double(), labels.double()
    index = (probabilities * bins).long().clamp(max=bins - 1)
    gaps = probabilities.new_zeros(bins).index_add_(0, index, labels - probabilities)
    return (gaps.abs().sum() / len(labels)).item()
