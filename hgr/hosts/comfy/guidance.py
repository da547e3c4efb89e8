"""SafeCFG on a MODEL: rewrites the text features of a sampling run, for that run only."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP

from ...core.hgr import HGR
from ...core.options import MODES, concept_strengths
from ...core.prompt import Prompt
from ...core.redirect import Redirection, redirect
from . import editor
from .prompts import prompt_of

log = logging.getLogger("safecfg")
Conds = dict[str, list[dict[str, Any]]]  # a guider's conditionings: entries by role ("positive", "negative", ...)
Slot = tuple[str, int]  # one entry: its role and its place among the role's entries
KEY = "safecfg"
# Guiders name their conditionings as they like, but a role that is not to be followed has this word in its name.
_NEGATIVE = "negative"
# Except this one, which no mode moves: the neutral point of perpendicular negative, from which both directions are
# measured.
_NEUTRAL = "empty_negative_prompt"
# Window boundaries are this much before the widget's round value. The host's ranges include both ends, so both pieces
# would run in a step whose sigma is exactly at a boundary (common with round numbers of steps).
_HAIR = 1e-5


def patch_model(
    model: comfy.model_patcher.ModelPatcher,
    hgr: HGR,
    *,
    strength: float,
    mode: str,
    concepts: str,
    start_percent: float,
    end_percent: float,
    node_id: str | None = None,
) -> comfy.model_patcher.ModelPatcher:
    """A clone of the model that samples with SafeCFG in any sampler node or guider.

    strength: of all concepts, 0 (off) to 2.
    mode: one of `hgr.core.options.MODES`.
    concepts: JSON of strengths by concept id.
    start_percent, end_percent: the part of sampling in [0, 1] in which guidance is safe, including the start.
    node_id: the node in the user's graph that shows what fired.

    Raises ValueError for bad `concepts` or an empty window. Sampling raises HGRError for another encoder's features.
    """
    strengths = [strength * s for s in concept_strengths(concepts, hgr.ids)]
    if start_percent >= end_percent:
        raise ValueError(
            f"start_percent ({start_percent}) must be below end_percent ({end_percent}); "
            "to switch SafeCFG off, set strength to 0."
        )
    editor.show_fired(node_id, [])  # nothing yet in this run
    patched = model.clone()
    if any(strengths):
        start, end = (p if p in (0, 1) else p - _HAIR for p in (start_percent, end_percent))
        patch = _Patch(hgr, strengths, mode, start, end, node_id)
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, patch)
    return patched


def make_guider(
    model: comfy.model_patcher.ModelPatcher, positive: list, negative: list, *, cfg: float
) -> comfy.samplers.CFGGuider:
    """The host's own CFG guider."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


@dataclass(frozen=True)
class _Patch:
    """Wrapper around a sampling run that rewrites the guider's conditionings for this run only.

    At that point the host has copied them for the run and not yet encoded them for the denoiser, so areas, masks, hooks
    and ControlNets are still beside the features. start, end: the window, as the host's percent.
    """

    hgr: HGR
    strengths: list[float]
    mode: str
    start: float
    end: float
    node_id: str | None = None

    def __call__(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> torch.Tensor:
        guider: Any = executor.class_obj
        # only the host's own guider: others keep their scales elsewhere, or as lists
        if MODES[self.mode][0] == 0 and type(guider) is comfy.samplers.CFGGuider and math.isclose(guider.cfg, 1.0):
            log.warning(
                'mode "%s" acts through the negative prompt, which cfg 1 leaves out: it has no effect in this run. '
                'Use "redirect".',
                self.mode,
            )
        guider.conds = self.rewrite(guider.conds)
        return executor(*args, **kwargs)

    def rewrite(self, conds: Conds) -> Conds:
        """The conditionings to sample with. The given ones stay unchanged; entries that do not move are the same."""
        slots = [
            (role, i)
            for role, entries in conds.items()
            for i, entry in enumerate(entries)
            if entry.get("cross_attn") is not None
        ]

        def prompts(slots: list[Slot]) -> list[Prompt]:
            return [prompt_of(self.hgr, conds[role][i]["cross_attn"], conds[role][i]) for role, i in slots]

        moved: dict[Slot, Prompt] = {}
        results = []
        for positive, negative in _sides(slots):
            result = redirect(self.hgr, prompts(positive), prompts(negative), strengths=self.strengths, mode=self.mode)
            moved |= zip(positive + negative, result.positive + result.negative, strict=True)
            results.append(result)
        self._report(results)
        return {
            role: [piece for i, entry in enumerate(entries) for piece in self._pieces(entry, moved.get((role, i)))]
            for role, entries in conds.items()
        }

    def _pieces(self, entry: dict[str, Any], prompt: Prompt | None) -> list[dict[str, Any]]:
        """The entry itself if nothing moved; else the safe entry inside the window, and the entry before and after."""
        if prompt is None:
            return [entry]
        safe = (
            entry
            | {"cross_attn": prompt.features}
            | ({} if prompt.pooled is None else {"pooled_output": prompt.pooled})
        )
        if all(safe[key] is entry[key] for key in ("cross_attn", "pooled_output") if key in entry):
            return [entry]
        low, high = entry.get("start_percent", 0.0), entry.get("end_percent", 1.0)
        # The safe piece comes first: if the host adds an entry for the other side, it copies the first one.
        spans = [
            (safe, max(low, self.start), min(high, self.end)),
            (entry, low, min(high, self.start)),
            (entry, max(low, self.end), high),
        ]
        return [
            piece | ({"start_percent": a} if a > 0 else {}) | ({"end_percent": b} if b < 1 else {})
            for piece, a, b in spans
            if a < b
        ]

    def _report(self, results: list[Redirection]) -> None:
        """Say in the log and on the node what is redirected, so that the user knows why a picture changed."""
        gates = [row for result in results for entry in result.gates for row in entry.tolist()]
        concepts = list(zip(self.hgr.concepts, self.strengths, strict=True))
        editor.show_fired(
            self.node_id,
            [
                [
                    {"label": c.label, "gate": gate, "threshold": c.threshold, "strength": s}
                    for (c, s), gate in zip(concepts, row, strict=True)
                    if gate >= c.threshold
                ]
                for row in gates
            ],
        )
        if any(fired.any() for result in results for fired in result.fired):
            highest = [max(column) for column in zip(*gates, strict=True)]
            found = [
                f"{c.id} ({gate:.2f})"
                for (c, s), gate in zip(concepts, highest, strict=True)
                if s and gate >= c.threshold
            ]
            log.info("SafeCFG, %s: %s", self.mode, ", ".join(found))


def _sides(slots: list[Slot]) -> list[tuple[list[Slot], list[Slot]]]:
    """Slots that guide together: those to follow and those to move away from.

    "source_negative" belongs to "source" or "source_positive", "negative" to every role without a negative of its own.
    """

    def name(role: str) -> str:
        return role.replace(_NEGATIVE, "").replace("positive", "").strip("_")

    slots = [slot for slot in slots if slot[0] != _NEUTRAL]
    away = [slot for slot in slots if _NEGATIVE in slot[0]]
    own = {name(role) for role, _ in away}
    sides: dict[str, tuple[list[Slot], list[Slot]]] = {each: ([], []) for each in ("", *sorted(own))}
    for slot in slots:
        mine = name(slot[0])
        if slot in away:
            sides[mine][1].append(slot)
        else:
            sides[mine if mine in own else ""][0].append(slot)
    return [(follow, away) for follow, away in sides.values() if follow or away]
