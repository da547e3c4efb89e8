"""The report of a detection as JSON, for graphs, scripts and the editor: what was found, where, by which evidence.

Version 1 is an object with
- `version`: 1; `hgr`, `encoder`: names; `sensitivity`: one of `SENSITIVITIES`; `false_positive_rate`: the stated rate
  on clean prompts or pictures, null if the HGR does not state one; `about`: "prompts" or "pictures";
- `flagged`, `score`: for the whole batch, whether any item is flagged, and the highest score;
- `items`: for each prompt or picture `flagged`, `score`, `concepts` and, if words were asked for, `words`: [[word,
  heat in [0, 1]], ...].
  `concepts` has by id: `label`, `score` in [0, 1], `threshold`, `flagged`, `evidence`, all for the evidence that is
  furthest above its threshold or closest to it, and `all`: {evidence: [score, threshold]}.

Scores are calibrated probabilities. Evidence is "prompt" (gates), "picture with prompt" (HED) or "picture" (probe).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.excerpt import excerpt
from ..core.hgr import HGR, Concept, HGRError, at_sensitivity
from ..core.json_text import parse_json
from ..core.options import SENSITIVITIES

VERSION = 1
_MOST_ITEMS = 10_000  # that a report is read of: the filter makes a picture for each
PROMPT, BOTH, PICTURE = "prompt", "picture with prompt", "picture"


class ReportError(ValueError):
    """A report that cannot be used, in one sentence that says why."""


@dataclass(frozen=True)
class Evidence:
    """The scores of one kind of evidence.

    kind: PROMPT, BOTH or PICTURE.
    scores (B, K): calibrated.
    concepts: K, with their thresholds.
    """

    kind: str
    scores: Tensor
    concepts: Sequence[Concept]


def build(
    hgr: HGR,
    evidence: Sequence[Evidence],
    on: Sequence[bool],
    *,
    sensitivity: str,
    words: Sequence[Sequence[tuple[str, float]]] = (),
) -> dict[str, Any]:
    """The report of B items.

    on (K,): the concepts that count.
    words: with their heat, for each item; or none.

    Raises HGRError for NaN and for a sensitivity for which the HGR has no thresholds, ValueError without evidence.
    """
    if not evidence:
        raise ValueError("there is nothing to evaluate: give prompts, pictures, or both.")
    for found in evidence:
        if not found.scores.isfinite().all():  # a NaN is below every threshold: it would pass as clean
            raise HGRError(f"{hgr.name} gives NaN ({found.kind}), so it cannot tell what is harmful here.")
    limits = [[c.threshold for c in at_sensitivity(found.concepts, sensitivity, hgr.name)] for found in evidence]
    scores = [found.scores.tolist() for found in evidence]
    items = []
    for row in range(len(scores[0])):
        concepts = {}
        for k, concept in enumerate(hgr.concepts):
            if on[k]:
                seen = [
                    (found.kind, score[row][k], limit[k])
                    for found, score, limit in zip(evidence, scores, limits, strict=True)
                ]
                kind, score, limit = max(seen, key=lambda one: _logit(one[1]) - _logit(one[2]))
                concepts[concept.id] = {
                    "label": concept.label,
                    "score": round(score, 6),
                    "threshold": round(limit, 6),
                    "flagged": score >= limit,
                    "evidence": kind,
                    "all": {kind: [round(score, 6), round(limit, 6)] for kind, score, limit in seen},
                }
        items.append(
            {
                "flagged": any(c["flagged"] for c in concepts.values()),
                "score": max((c["score"] for c in concepts.values()), default=0.0),
                "concepts": concepts,
            }
            | ({"words": [[word, round(heat, 4)] for word, heat in words[row]]} if row < len(words) else {})
        )
    rate = _rate(hgr, evidence)
    return {
        "version": VERSION,
        "hgr": hgr.name,
        "encoder": hgr.encoder.family,
        "sensitivity": sensitivity,
        "false_positive_rate": None if rate is None else min(1.0, rate * SENSITIVITIES[sensitivity]),
        "about": "prompts" if all(found.kind == PROMPT for found in evidence) else "pictures",
        "flagged": any(item["flagged"] for item in items),
        "score": max((item["score"] for item in items), default=0.0),
        "items": items,
    }


def flags(text: str, count: int | None = None) -> list[bool]:
    """Which of `count` pictures a report flags; without count, which of its own items. The report of a single prompt
    applies to all pictures made from it.

    Raises ReportError for text that is not such a report, and for a report on another number of items.
    """
    try:
        version, about, found = _read(text)
    except (TypeError, KeyError, ValueError) as error:
        raise ReportError(
            f"this is not the report of a Harmfulness Detector ({excerpt(error)}): wire its report output in."
        ) from None
    if version != VERSION:
        raise ReportError(f"the report has version {version}; this SafeCFG reads version {VERSION}.")
    if len(found) > _MOST_ITEMS:
        raise ReportError(f"the report is about {len(found)} {about}; at most {_MOST_ITEMS} can be filtered at once.")
    count = len(found) if count is None else count
    if len(found) == 1 and about == "prompts":
        found *= count
    if len(found) != count or not found:
        raise ReportError(
            f"the report is about {len(found)} {about}, but there are {count} pictures: both must be of the same batch."
        )
    return found


def _read(text: str) -> tuple[int, str, list[bool]]:
    """(version, about, each item's verdict) of a report. Raises TypeError, KeyError or ValueError for other text."""
    report = parse_json(text)
    version, about = report["version"], report["about"]
    found = [item["flagged"] for item in report["items"]]
    if type(version) is not int:
        raise ValueError("version is not a whole number")
    if about not in ("prompts", "pictures"):
        raise ValueError("about is neither prompts nor pictures")
    if not all(isinstance(flag, bool) for flag in found):
        raise ValueError("flagged is neither true nor false")
    return version, about, found


def to_json(report: dict[str, Any]) -> str:
    """The report as text that every reader of JSON takes, so without NaN and halves of surrogate pairs."""
    return json.dumps(report, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace").decode()


def _rate(hgr: HGR, evidence: Sequence[Evidence]) -> float | None:
    """The stated false-positive rate; for a merged HGR, the sum over its parts. None if one states none in [0, 1]."""
    training = hgr.training
    if any(found.kind != PROMPT for found in evidence) and hgr.probe:
        training = hgr.probe.training
    rates = [part.get("false_positive_rate") for part in training.get("merged", [training])]
    return float(sum(rates)) if all(type(rate) in (int, float) and 0 <= rate <= 1 for rate in rates) else None


def _logit(p: float) -> float:
    p = min(max(p, 1e-9), 1 - 1e-9)
    return math.log(p / (1 - p))
