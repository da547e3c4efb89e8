"""The losses that train an HGR: one for the gates, and three that make safe features act like the clean caption's.

Each is a mean over the batch's samples, so a batch may be divided among processes. The formulas are this project's
own (the paper publishes none).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.denoiser import Predict
from ..core.network import HGRNetwork
from ..core.prompt import Prompt
from .batches import Batch
from .settings import Weights

# Weight of the twins' gates. Twins differ by a word or two, people's harmful and clean prompts by much more: in full,
# the twins make the gates doubt everything.
TWINS = 0.4
# Weight of the zeros of other concepts on a harmful prompt: an act of violence is often shocking too, and pairs seldom
# say so.
OTHER = 0.3
SCORED = 4  # samples of a batch that the score loss evaluates: denoisers are large


def gate_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy, mean over concepts, plus that of "any concept at all" by noisy-or. logits, labels (B, K).

    Zeros on a harmful prompt weigh `OTHER`, those on a clean prompt count in full.
    """
    labels = labels.to(logits)
    harmful = labels.amax(1) > 0
    weight = torch.where(harmful[:, None] & (labels == 0), OTHER, 1.0)
    each = (F.binary_cross_entropy_with_logits(logits, labels, reduction="none") * weight).mean()
    log_none = -F.softplus(logits).sum(1)  # no concept: the product of 1 - g_k
    log_any = torch.log(-torch.expm1(log_none.clamp(max=-1e-6)))
    return each - torch.where(harmful, log_any, log_none).mean() / logits.shape[1]


def text_loss(safe: Tensor, target: Tensor, std: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Squared error in units of the features' standard deviation.

    safe, target (B, ..., D), std (D,). mask (B, ...): what counts.
    """
    error = ((safe - target) / std).square().mean(-1)
    return error.mean() if mask is None else (error * mask).sum() / mask.sum().clamp(min=1)


def attention_distances(layers: Sequence[Callable[[Tensor], Tensor]], harmful: Tensor, clean: Tensor) -> list[float]:
    """For each layer, the mean squared distance of its outputs for harmful features (B, T, D) and for their twins."""
    with torch.no_grad():
        return [max((attend(harmful) - attend(clean)).square().mean().item(), 1e-8) for attend in layers]


def attention_loss(
    layers: Sequence[Callable[[Tensor], Tensor]], safe: Tensor, target: Tensor, *, distances: Sequence[float]
) -> Tensor:
    """How far the denoiser's cross-attention outputs under `safe` are from those under `target`, as a share of the
    harmful prompts' distance (`attention_distances`): 0 is perfect, 1 is no change at all.

    layers: each maps features (B, T, D) to its outputs (B, Q, C) for a fixed bank of Q queries, without the denoiser.
    """
    shares = []
    for attend, distance in zip(layers, distances, strict=True):
        with torch.no_grad():
            goal = attend(target)
        shares.append((attend(safe) - goal).square().mean() / distance)
    return torch.stack(shares).mean()


def score_loss(safe: Tensor, target: Tensor, original: Tensor) -> Tensor:
    """The distance of predictions (B, ...) under safe features from those under target ones, as a share of that under
    the original ones, all at the same z_t and t."""
    distance = (original - target).flatten(1).square().mean(1)
    # a pair that the denoiser hardly tells apart at this t must not dominate the others
    return ((safe - target).flatten(1).square().mean(1) / distance.clamp(min=distance.mean().clamp(min=1e-8))).mean()


def step_loss(
    network: HGRNetwork,
    batch: Batch,
    weights: Weights,
    *,
    layers: Sequence[Callable[[Tensor], Tensor]] = (),
    distances: Sequence[float] = (),
    predict: Predict | None = None,
) -> Tensor:
    """The loss of one step: the losses above, weighted by `weights`.

    layers, distances: for the attention loss.
    predict: for the score loss, the errors for `SCORED` samples.

    Raises ValueError if a loss with a weight lacks what it needs.
    """
    if weights.attention and not layers:
        raise ValueError("the attention loss needs layers: give them, or set its weight to 0.")
    harmful, target = batch.harmful, batch.target
    encoding, clean_encoding = network.encode(*harmful), network.encode(*batch.clean)
    clean_logits = network.evidence(clean_encoding)
    total = weights.gate * (
        gate_loss(network.evidence(encoding), batch.labels)
        + TWINS * gate_loss(network.evidence(network.encode(*target)), batch.target_labels)
        + gate_loss(clean_logits, torch.zeros_like(clean_logits))
    )
    delta, pooled_delta = network.displacement(encoding, batch.switched.to(harmful.features))
    safe = harmful.features + delta
    pooled = None
    if pooled_delta is not None and harmful.pooled is not None and target.pooled is not None:
        pooled = harmful.pooled + pooled_delta
        total = total + max(weights.text, weights.attention) * text_loss(pooled, target.pooled, network.pooled_std)
    if weights.text:
        both = None if harmful.mask is None or target.mask is None else harmful.mask & target.mask
        total = total + weights.text * text_loss(safe, target.features, network.std, mask=both)
    if weights.attention:
        total = total + weights.attention * attention_loss(layers, safe, target.features, distances=distances)
    if weights.score:
        total = total + weights.score * _score_loss_of(Prompt(safe, pooled), target, harmful, predict=predict)
    if weights.still:
        moved, moved_pooled = network.displacement(clean_encoding, torch.ones_like(clean_logits))
        total = total + weights.still * text_loss(moved, torch.zeros_like(moved), network.std, mask=batch.clean.mask)
        if moved_pooled is not None:
            still = text_loss(moved_pooled, torch.zeros_like(moved_pooled), network.pooled_std)
            total = total + weights.still * still
    return total


def _score_loss_of(safe: Prompt, target: Prompt, harmful: Prompt, *, predict: Predict | None) -> Tensor:
    """`score_loss` on the batch's first `SCORED` samples."""
    if predict is None:
        raise ValueError("the score loss needs predict: give it, or set its weight to 0.")
    first = slice(SCORED)
    with torch.no_grad():
        goal, start = (predict(*part.rows(first)[:2]) for part in (target, harmful))
    return score_loss(predict(*safe.rows(first)[:2]), goal, start)
