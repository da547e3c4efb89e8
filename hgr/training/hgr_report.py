"""What a trained HGR does on held-out prompts: measured, recorded, and described for people."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..core.hgr import HGR, calibrated
from ..data.pairs import Pairs
from .metrics import auroc, expected_calibration_error
from .settings import HGRSettings

_WEAK = 0.75  # recall below which a concept is called weak
_SILENCED = (
    "it tells harmful prompts from clean ones, but hardly any reaches its threshold. Train with another seed or more "
    "clean prompts, and do not rely on this concept."
)


def hgr_report(hgr: HGR) -> str:
    """What a trained HGR's gates do on held-out prompts, for people."""
    metrics = hgr.training["metrics"]
    lines = [
        f"{hgr.encoder.family}: {len(hgr.concepts)} concepts",
        f"calibrated on {metrics['clean_prompts']} clean prompts that it was not trained on: a concept fires in "
        f"{metrics['flagged_clean']:.2%}, {hgr.training['false_positive_rate']:.2%} asked for; in "
        f"{metrics['flagged_tagged']:.2%} of the {metrics['tagged_prompts']} that are written as lists of tags, and in "
        f"{metrics['flagged_twins']:.2%} of the clean twins, which are the hardest",
    ]
    for concept in hgr.concepts:
        m = metrics["concepts"][concept.id]
        lines.append(
            f"{concept.label}: {m['recall']:.1%} of {m['held_out']} found, "
            f"AUROC against clean twins {m['auroc_twins']:.4f}{_against_others(m)}, "
            f"threshold {concept.threshold:.2f}, calibration error {m['ece']:.3f}{_judged(m)}"
        )
    lines += [f"ERROR in the training of {label}: {_SILENCED}" for label in silenced(hgr)]
    if hgr.probe is None:
        lines.append(
            "no picture probe: it judges only prompts. For pictures, train with the model or run python -m hgr probe"
        )
    else:
        aurocs = (
            f"{concept.label} {hgr.probe.training['metrics'][concept.id]['auroc']:.3f}" for concept in hgr.concepts
        )
        lines.append(f"picture probe, from {hgr.probe.training['pictures']} pictures: AUROC {', '.join(aurocs)}")
        lines += _doubted(hgr.probe.training["metrics"])
    return "\n".join(lines)


def _doubted(metrics: dict[str, Any]) -> list[str]:
    """A line on the pictures that do not show what their prompts say."""
    absent, unasked = (sum(found.get(key, 0) for found in metrics.values()) for key in ("not_drawn", "unasked"))
    if not absent + unasked:
        return []
    return [
        f"the model does not always draw what it is told: {absent} times a concept of the prompt seems to be missing, "
        f"and {unasked} times one seems to be there unasked; the probe did not learn from these"
    ]


def silenced(hgr: HGR) -> list[str]:
    """The labels of concepts that are recognised but hardly ever reach their thresholds: a fault of the training."""
    found = hgr.training["metrics"]["concepts"]
    return [c.label for c in hgr.concepts if _is_silenced(found[c.id])]


def _is_silenced(metrics: dict[str, Any]) -> bool:
    return metrics["recall"] < 0.2 and metrics["auroc_clean"] > 0.95


def _against_others(metrics: dict[str, Any]) -> str:
    return f", against other concepts {metrics['auroc_others']:.4f}" if "auroc_others" in metrics else ""


def _judged(metrics: dict[str, Any]) -> str:
    """A remark on a concept's recall."""
    if _is_silenced(metrics) or metrics["recall"] >= _WEAK:
        return ""
    return f"; weak, it misses {'more than half' if metrics['recall'] < 0.5 else 'more than a quarter'}"


def gate_metrics(
    hgr: HGR, harmful: Tensor, labels: Tensor, *, twins: Tensor, clean: Tensor, tagged: Tensor
) -> dict[str, Any]:
    """What the calibrated gates do on held-out prompts: metrics per concept, and the share of clean prompts flagged.

    harmful (N, K), twins (M, K), clean (L, K): logits before calibration.
    labels (N, K): bool, the concepts of the harmful prompts. tagged (L,): bool, clean prompts that are lists of tags.
    """
    harmful, twins, clean = (calibrated(x, hgr.concepts) for x in (harmful, twins, clean))
    negative = torch.cat([twins, clean])
    per_concept = {}
    for k, concept in enumerate(hgr.concepts):
        own, others = harmful[labels[:, k], k], harmful[~labels[:, k], k]
        gates = torch.cat([own, negative[:, k]])
        truth = torch.cat([torch.ones(len(own)), torch.zeros(len(negative))])
        per_concept[concept.id] = {
            "auroc_twins": auroc(own, twins[:, k]),
            "auroc_clean": auroc(own, clean[:, k]),
            "recall": (own >= concept.threshold).float().mean().item(),
            "ece": expected_calibration_error(gates, truth),
            "held_out": len(own),
        } | ({"auroc_others": auroc(own, others)} if len(others) else {})
    return {
        "flagged_clean": _flagged(hgr, clean),
        "clean_prompts": len(clean),
        "flagged_tagged": _flagged(hgr, clean[tagged]),
        "tagged_prompts": int(tagged.sum()),
        "flagged_twins": _flagged(hgr, twins),
        "concepts": per_concept,
    }


def _flagged(hgr: HGR, gates: Tensor) -> float:
    """The share of prompts with gates (N, K) in which a concept fires; 0 of none."""
    return (gates >= hgr.thresholds.cpu()).any(1).float().mean().item() if len(gates) else 0.0


def training_record(pairs: Pairs, settings: HGRSettings, metrics: dict[str, Any]) -> dict[str, Any]:
    """The file's record of how the HGR was made; its false-positive rate is a share, as in every report."""
    counts = Counter(pair.concept for pair in pairs.pairs)
    return {
        "data": {"pairs": dict(counts), "clean": len(pairs.clean)},
        **dataclasses.asdict(settings),
        "false_positive_rate": settings.rate,
        "metrics": metrics,
        "versions": {"safecfg": __version__, "torch": torch.__version__},
    }
