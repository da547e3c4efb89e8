"""SafeCFG on a MODEL: rewrites the text features of a sampling run, for that run only."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, add_wrapper_with_key

from ...core.hgr import HGR, HGRError
from ...core.options import DEFAULT_SENSITIVITY, MODES, concept_strengths
from ...core.prompt import Prompt
from ...core.redirect import redirect
from . import runs
from .inside import Inside
from .prompts import FEATURES, UNREAD_PATCH, prompt_of, unread_note, unread_patches, unread_text

log = logging.getLogger("safecfg")
Conds = dict[str, list[dict[str, Any]]]  # a guider's conditionings: entries by role ("positive", "negative", ...)
# one text feature tensor: its role, its entry's place among the role's, and its key in the entry, one of `FEATURES`
Slot = tuple[str, int, str]
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
    sensitivity: str = DEFAULT_SENSITIVITY,
    node_id: str | None = None,
) -> comfy.model_patcher.ModelPatcher:
    """A clone of the model that samples with SafeCFG in any sampler node or guider.

    strength: of all concepts, 0 (off) to 2.
    mode: one of `hgr.core.options.MODES`.
    concepts: JSON of strengths by concept id.
    start_percent, end_percent: the part of sampling in [0, 1] in which guidance is safe, including the start.
    sensitivity: one of `hgr.core.options.SENSITIVITIES`.
    node_id: the node in the user's graph that shows what fired.

    Raises ValueError for bad `concepts` or an empty window, HGRError if the HGR has no thresholds for the sensitivity.
    Sampling raises HGRError for another encoder's features.
    """
    strengths = [strength * s for s in concept_strengths(concepts, hgr.ids)]
    if start_percent >= end_percent:
        raise ValueError(
            f"start_percent ({start_percent}) must be below end_percent ({end_percent}); "
            "to switch SafeCFG off, set strength to 0."
        )
    runs.expect(node_id, enabled=any(strengths))
    patched = model.clone()
    start, end = (p if p in (0, 1) else p - _HAIR for p in (start_percent, end_percent))
    patch = _Patch(hgr.at(sensitivity), strengths, mode, start, end, node_id)
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
        if not any(self.strengths):  # switched off, but used
            runs.report(self.node_id)
            return executor(*args, **kwargs)
        guider: Any = executor.class_obj
        # only the host's own guider: others keep their scales elsewhere, or as lists
        if MODES[self.mode][0] == 0 and type(guider) is comfy.samplers.CFGGuider and math.isclose(guider.cfg, 1.0):
            log.warning(
                'mode "%s" acts through the negative prompt, which cfg 1 leaves out: it has no effect in this run. '
                'Use "redirect".',
                self.mode,
            )
        inside = Inside(
            self.hgr,
            self.strengths,
            model=guider.model_patcher,
            percents=(self.start, self.end),
            away=[
                entry["cross_attn"]
                for role, entries in guider.conds.items()
                for entry in entries
                if _NEGATIVE in role and entry.get("cross_attn") is not None
            ],
            sides_known=type(guider) is comfy.samplers.CFGGuider,
        )
        if notes := unread_patches(guider.model_options):
            runs.report(self.node_id, notes=notes)
        guider.conds = self.rewrite(guider.conds)
        # the guider's options are this run's own copy
        add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, inside, guider.model_options, is_model_options=True)
        result = executor(*args, **kwargs)
        gates, unread = inside.found()
        if gates:
            self._report([gates], [UNREAD_PATCH] if unread else [])
        return result

    def rewrite(self, conds: Conds) -> Conds:
        """The conditionings to sample with. The given ones stay unchanged; entries that do not move are the same."""
        moved: dict[Slot, Prompt] = {}
        gates: list[list[float]] = []
        notes = [note for role, entries in conds.items() for entry in entries for note in unread_text(entry)]
        prompts: dict[Slot, Prompt] = {}
        for role, entries in conds.items():
            for i, entry in enumerate(entries):
                for key in FEATURES:
                    if (features := entry.get(key)) is None:
                        continue
                    prompt = prompt_of(self.hgr, features, entry, key=key)
                    if key != "cross_attn" and (why := _unfit(self.hgr, prompt)):
                        notes.append(f"{unread_note('another text encoder', key)} {why}")
                    else:
                        prompts[role, i, key] = prompt
        # the text that only ControlNets read guides apart from the prompt
        sides = [side for key in FEATURES for side in _sides([slot for slot in prompts if slot[2] == key])]
        for positive, negative in sides:
            follow, away = ([prompts[slot] for slot in side] for side in (positive, negative))
            result = redirect(self.hgr, follow, away, strengths=self.strengths, mode=self.mode)
            moved |= zip(positive + negative, result.positive + result.negative, strict=True)
            gates += [row for entry in result.gates for row in entry.tolist()]
        self._report(gates, list(dict.fromkeys(notes)))
        return {
            role: [piece for i, entry in enumerate(entries) for piece in self._pieces(entry, _changes(moved, role, i))]
            for role, entries in conds.items()
        }

    def _pieces(self, entry: dict[str, Any], changes: dict[str, Any]) -> list[dict[str, Any]]:
        """The entry itself if nothing moved; else the safe entry inside the window, and the entry before and after."""
        if all(changes[key] is entry[key] for key in changes):
            return [entry]
        safe = entry | changes
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

    def _report(self, gates: list[list[float]], notes: list[str]) -> None:
        """Say in the log and on the node what is redirected, so that the user knows why a picture changed.

        gates: of each prompt, for every concept. notes: what SafeCFG cannot see.
        """
        concepts = list(zip(self.hgr.concepts, self.strengths, strict=True))
        highest = [max(column) for column in zip(*gates, strict=True)]
        found = [
            f"{c.id} ({gate:.2f})" for (c, s), gate in zip(concepts, highest, strict=False) if s and gate >= c.threshold
        ]
        runs.report(
            self.node_id,
            prompts=[
                [
                    {"id": c.id, "label": c.label, "gate": gate, "threshold": c.threshold, "strength": s}
                    for (c, s), gate in zip(concepts, row, strict=True)
                    if gate >= c.threshold
                ]
                for row in gates
            ],
            concepts=[
                {"id": c.id, "label": c.label, "description": c.description, "threshold": c.threshold}
                for c in self.hgr.concepts
            ],
            notes=notes,
            text=f"SafeCFG, {self.mode}: {', '.join(found)}" if found else "",
        )


def _unfit(hgr: HGR, prompt: Prompt) -> str:
    """Why this HGR cannot read the prompt; empty if it can."""
    try:
        hgr.check(prompt.features, prompt.pooled)
    except HGRError as error:
        return str(error)
    return ""


def _changes(moved: dict[Slot, Prompt], role: str, i: int) -> dict[str, Any]:
    """What takes the place of an entry's text features and pooled outputs, by key."""
    changes: dict[str, Any] = {}
    for key, pooled_key in FEATURES.items():
        if (prompt := moved.get((role, i, key))) is not None:
            changes[key] = prompt.features
            if prompt.pooled is not None:
                changes[pooled_key] = prompt.pooled
    return changes


def _sides(slots: list[Slot]) -> list[tuple[list[Slot], list[Slot]]]:
    """Slots that guide together: those to follow and those to move away from.

    "source_negative" belongs to "source" or "source_positive", "negative" to every role without a negative of its own.
    """

    def name(role: str) -> str:
        return role.replace(_NEGATIVE, "").replace("positive", "").strip("_")

    slots = [slot for slot in slots if slot[0] != _NEUTRAL]
    away = [slot for slot in slots if _NEGATIVE in slot[0]]
    own = {name(role) for role, *_ in away}
    sides: dict[str, tuple[list[Slot], list[Slot]]] = {each: ([], []) for each in ("", *sorted(own))}
    for slot in slots:
        mine = name(slot[0])
        if slot in away:
            sides[mine][1].append(slot)
        else:
            sides[mine if mine in own else ""][0].append(slot)
    return [(follow, away) for follow, away in sides.values() if follow or away]
