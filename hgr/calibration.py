"""From logits to probabilities, and from probabilities to thresholds for a stated false-positive rate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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


def threshold(clean_gates: Tensor, false_positive_rate: float, low: float = 0.3, high: float = 0.95) -> float:
    """The threshold that a stated share of held-out clean prompts' gates (N,) reaches, kept within [low, high].

    Where classes are separated, the stated rate would allow a threshold next to 0; `low` keeps clean wordings that were
    never seen from firing on a hint.

    Raises ValueError for a rate outside (0, 1).
    """
    if not 0 < false_positive_rate < 1:
        raise ValueError(f"the false-positive rate is {false_positive_rate}; it must lie between 0 and 1.")
    return min(max(torch.quantile(clean_gates.double(), 1 - false_positive_rate).item() + 1e-6, low), high)
