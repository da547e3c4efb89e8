"""The losses that train an HGR: gates, and three ways to say that safe features act like the clean caption's.

The formulas are this project's own (the paper publishes none).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def gate_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy, mean over concepts. logits, labels (B, K)."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits))


def text_loss(safe: Tensor, target: Tensor, std: Tensor) -> Tensor:
    """Squared error in units of the features' own spread. safe, target (B, T, D), std (D,)."""
    return ((safe - target) / std).square().mean()


def attention_loss(layers: Sequence[Callable[[Tensor], Tensor]], safe: Tensor, target: Tensor, original: Tensor) -> Tensor:
    """How far the denoiser's cross-attention outputs under `safe` are from those under `target`, as a share of how far
    the original prompt's are: 0 is perfect, 1 is no change at all.

    layers: each maps features (B, T, D) to its outputs (B, Q, C) for a fixed bank of Q queries. No denoiser pass is needed.
    """
    shares = []
    for attend in layers:
        with torch.no_grad():
            goal = attend(target)
            distance = (attend(original) - goal).square().mean()
        shares.append((attend(safe) - goal).square().mean() / distance.clamp(min=1e-8))
    return torch.stack(shares).mean()


def score_loss(denoise: Callable[[Tensor], Tensor], safe: Tensor, target: Tensor, original: Tensor) -> Tensor:
    """The same share for the denoiser's predictions. denoise: features (B, T, D) to eps (B, ...) at fixed z_t and t."""
    with torch.no_grad():
        goal = denoise(target)
        distance = (denoise(original) - goal).square().mean()
    return (denoise(safe) - goal).square().mean() / distance.clamp(min=1e-8)
