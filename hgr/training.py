"""Training an HGR from batches of text features with true labels: gates, displacements, calibration, thresholds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .calibration import platt, threshold
from .losses import attention_loss, gate_loss, score_loss, text_loss
from .network import HGRNetwork
from .redirector import HGR

log = logging.getLogger("safecfg")


@dataclass(frozen=True)
class Batch:
    """One training step's prompts as text features (B, T, D).

    harmful: with labels (B, K). target: the same captions without the `removed` (B, K) concepts, a subset of the labels.
    clean: prompts without any concept.
    """

    harmful: Tensor
    labels: Tensor
    target: Tensor
    removed: Tensor
    clean: Tensor


@dataclass(frozen=True)
class Weights:
    """How much each loss counts; a loss with weight 0 is not computed.

    still: displacements on clean prompts, in units of the features' spread, so that a false alarm changes little.
    """

    gate: float = 1.0
    text: float = 0.0
    attention: float = 1.0
    score: float = 0.0
    still: float = 0.05


def step_loss(network: HGRNetwork, batch: Batch, weights: Weights, layers: Sequence[Callable[[Tensor], Tensor]] = (),
              denoise: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """The loss of one step. layers: for the attention loss. denoise: for the score loss.

    Raises ValueError if a loss that counts lacks what it needs.
    """
    if (weights.attention and not layers) or (weights.score and denoise is None):
        raise ValueError("the attention loss needs layers and the score loss needs denoise: give them, or set their weights to 0.")
    encoding = network.encode(batch.harmful)
    labels, removed = batch.labels.to(batch.harmful), batch.removed.to(batch.harmful)
    target_logits, _ = network.gate_logits(network.encode(batch.target))
    clean_encoding = network.encode(batch.clean)
    clean_logits, _ = network.gate_logits(clean_encoding)
    total = weights.gate * (gate_loss(network.gate_logits(encoding)[0], labels) + gate_loss(target_logits, labels - removed)
                            + gate_loss(clean_logits, torch.zeros_like(clean_logits)))
    safe = batch.harmful + network.displacement(encoding, removed)[0]
    if weights.text:
        total = total + weights.text * text_loss(safe, batch.target, network.std)
    if weights.attention:
        total = total + weights.attention * attention_loss(layers, safe, batch.target, batch.harmful)
    if weights.score:
        total = total + weights.score * score_loss(denoise, safe, batch.target, batch.harmful)
    if weights.still:
        every = torch.ones_like(clean_logits)
        moved = network.displacement(clean_encoding, every)[0]
        total = total + weights.still * text_loss(moved, torch.zeros_like(moved), network.std)
    return total


@torch.no_grad()
def calibrate(hgr: HGR, harmful: Tensor, labels: Tensor, clean: Tensor, false_positive_rate: float) -> HGR:
    """Fit each concept's calibration and threshold on prompts that were not trained on.

    harmful (N, T, D) with labels (N, K); clean (M, T, D).
    """
    logits = torch.cat([hgr.network.gate_logits(hgr.network.encode(part))[0]
                        for part in torch.cat([harmful, clean]).split(256)])
    truth = torch.cat([labels.to(logits), logits.new_zeros(len(clean), labels.shape[1])])
    concepts = []
    for k, concept in enumerate(hgr.concepts):
        with torch.enable_grad():
            scale, bias = platt(logits[:, k], truth[:, k])
        gates = (scale * logits[len(harmful):, k] + bias).sigmoid()
        concepts.append(replace(concept, scale=scale, bias=bias, threshold=threshold(gates, false_positive_rate)))
        log.info("%s: scale %.2f, bias %.2f, threshold %.3f", concept.id, scale, bias, concepts[-1].threshold)
    return replace(hgr, concepts=concepts)
