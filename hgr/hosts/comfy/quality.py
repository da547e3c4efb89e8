"""How good an HGR's training was, as its file records it."""

from __future__ import annotations

from typing import Any

from ...core.hgr import HGR
from ...training.settings import QUALITIES

QUALITY = "quality"  # in the record of a training by HGR for this Model: one of `QUALITIES`


def trainings(hgr: HGR) -> list[dict[str, Any]]:
    """The records of the trainings that an HGR comes from: several if it was merged. Files say what they like there."""
    parts = hgr.training.get("merged")
    parts = parts if isinstance(parts, list) and parts else [hgr.training]
    return [part if isinstance(part, dict) else {} for part in parts]


def rank(hgr: HGR) -> int:
    """The place in `QUALITIES` of the least of an HGR's trainings."""
    return min(map(_rank, trainings(hgr)))


def _rank(training: dict[str, Any]) -> int:
    """Of a training that HGR for this Model did not make: what its losses come to."""
    names = list(QUALITIES)
    if (made := training.get(QUALITY)) in names:
        return names.index(made)
    return names.index("quick" if training.get("losses", "text") == "text" else "full")
