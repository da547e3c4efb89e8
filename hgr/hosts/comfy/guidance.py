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
from torch import Tensor

from ...core.guidance import kept_share
from ...core.hgr import HGR, HGRError
from ...core.options import DEFAULT_SENSITIVITY, concept_strengths, known_mode
from ...core.prompt import Prompt
from ...core.redirect import Redirection, redirect
from . import runs
from .inside import Inside
from .pieces import Conds, Entry, pieces, repeated, settled
from .prompts import FEATURES, UNREAD_PATCH, prompt_of, replaced_attention, unread_note, unread_patches, unread_text

log = logging.getLogger("safecfg")
KEY = "safecfg"
# Guiders name their conditionings as they like, but a role that is not to be followed has this word in its name.
_NEGATIVE = "negative"
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
    mode: one of `hgr.core.options.MODES`, or a former one.
    concepts: JSON of strengths by concept id.
    start_percent, end_percent: the part of sampling in [0, 1] in which guidance is safe, including the start.
    sensitivity: one of `hgr.core.options.SENSITIVITIES`.
    node_id: the node in the user's graph that shows what fired.

    Raises ValueError for an unknown mode, bad `concepts` or an empty window, HGRError if the HGR has no thresholds for
    the sensitivity.
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
    patch = Patch(hgr.at(sensitivity), strengths, known_mode(mode), start, end, node_id)
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
class Patch:
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

    def __call__(self, executor: WrapperExecutor, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not any(self.strengths):  # switched off, but used
            runs.report(self.node_id)
            return executor(noise, *args, **kwargs)
        guider: Any = executor.class_obj
        cfg = scale_of(guider) if self.mode == "dynamic" else math.inf
        if cfg <= 1:
            log.warning('mode "dynamic" acts on the negative side, so it has no effect at cfg 1: use "redirect".')
        turned = self.turned(guider)
        inside = Inside(
            self.hgr,
            self.strengths,
            model=guider.model_patcher,
            percents=(self.start, self.end),
            away=[
                entry["cross_attn"]
                for role, entries in guider.conds.items()
                for entry in entries
                if not (turned or is_followed(role)) and entry.get("cross_attn") is not None
            ],
            sides_known=type(guider) is comfy.samplers.CFGGuider and not turned,
        )
        if notes := self.unread(guider.model_options):
            self._report([], notes)
        ones = torch.ones(len(noise), *(1,) * (noise.ndim - 1), device=guider.model_patcher.load_device)
        guider.conds = self.rewrite(guider.conds, cfg=cfg, ones=ones, turned=turned)
        # the guider's options are this run's own copy
        for kind, wrapper in ((WrappersMP.DIFFUSION_MODEL, inside), (WrappersMP.SAMPLER_SAMPLE, _settle)):
            add_wrapper_with_key(kind, KEY, wrapper, guider.model_options, is_model_options=True)
        result = executor(noise, *args, **kwargs)
        gates, unread = inside.found()
        if gates:
            self._report([gates], [UNREAD_PATCH] if unread else [])
        return result

    def turned(self, guider: Any) -> bool:
        """Whether the negative side is followed too."""
        return shows_negative(guider)

    def unread(self, model_options: dict[str, Any]) -> list[str]:
        """Notes on what packs have put on the model that SafeCFG cannot see."""
        return [*unread_patches(model_options), *replaced_attention(model_options)]

    def rewrite(self, conds: Conds, *, cfg: float, ones: Tensor, turned: bool = False) -> Conds:
        """The conditionings to sample with. The given ones stay unchanged; entries that do not move are the same.

        cfg: the guider's scale. ones (N, 1, ...): one for each latent, on the sampling device.
        turned: whether the negative side is followed too.
        """
        notes = [note for entries in conds.values() for entry in entries for note in unread_text(entry)]
        gates: list[list[float]] = []
        rewritten: Conds = {}
        for role, entries in conds.items():
            made = rewritten[role] = []
            for entry in entries:
                found = self._read(entry, notes) if turned or is_followed(role) else {}
                gates += [row for each in found.values() for row in each.gates.tolist()]
                made += self._pieces(entry, found, role=role, cfg=cfg, ones=ones) if found else [entry]
        self._report(gates, list(dict.fromkeys(notes)))
        return rewritten

    def _read(self, entry: Entry, notes: list[str]) -> dict[str, Redirection]:
        """What the HGR makes of an entry's text features, by their key. What it cannot read is added to the notes."""
        found = {}
        for key in FEATURES:
            if (features := entry.get(key)) is None:
                continue
            prompt = prompt_of(self.hgr, features, entry, key=key)
            if key != "cross_attn" and (why := _unfit(self.hgr, prompt)):
                notes.append(f"{unread_note('another text encoder', key)} {why}")
            else:
                found[key] = redirect(self.hgr, prompt, strengths=self.strengths)
        return found

    def _pieces(
        self, entry: Entry, found: dict[str, Redirection], *, role: str, cfg: float, ones: Tensor
    ) -> list[Entry]:
        """`pieces.pieces` of an entry. A text that only ControlNets read counts as much as the prompt."""
        changes: Entry = {}
        for key, each in found.items():
            changes[key] = each.safe.features
            if each.safe.pooled is not None:
                changes[FEATURES[key]] = each.safe.pooled
        rows = math.lcm(*(len(each.harm) for each in found.values()))
        harm = torch.stack([repeated(each.harm, rows) for each in found.values()]).amax(0)
        share = kept_share(harm, cfg)
        if self.mode == "redirect" or "default" in entry:  # the host leaves out the weight of a default entry
            share = (share == 1).float()
        return pieces(entry, changes, role=role, share=share, window=(self.start, self.end), ones=ones)

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
                if not c.muted
            ],
            notes=notes,
            text=f"SafeCFG, {self.mode}: {', '.join(found)}" if found else "",
        )


def _unfit(hgr: HGR, prompt: Prompt) -> str:
    """Why this HGR cannot read the prompt; empty if it can."""
    try:
        hgr.check(*prompt)
    except HGRError as error:
        return str(error)
    return ""


def is_followed(role: str) -> bool:
    """Whether prompts in this role are to be followed. The others stay harmful: cleaned, they would push away from
    less. Nor does the neutral point of perpendicular negative move ("empty_negative_prompt")."""
    return _NEGATIVE not in role


def shows_negative(guider: Any) -> bool:
    """Whether the picture also shows the negative prompt: at a CFG scale w below 1 it has the weight 1 - w. Guiders of
    other kinds name their scales as they like, and may have one for each step."""
    return any("cfg" in name and any(w < 1 for w in _numbers(value)) for name, value in vars(guider).items())


def _numbers(value: Any) -> list[float]:
    """A number, or those in a list or a dict."""
    several = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    return [each for each in several if isinstance(each, int | float) and not isinstance(each, bool)]


def scale_of(guider: Any) -> float:
    """The CFG scale. Guiders of other kinds may keep theirs elsewhere and leave the host's 1 in `cfg`: infinity, so
    that the mixture is the safest that there is."""
    cfg = guider.cfg
    if type(guider) is comfy.samplers.CFGGuider:
        return cfg
    return cfg if isinstance(cfg, int | float) and cfg > 1 else math.inf


def _settle(executor: WrapperExecutor, guider: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrapper around the sampler, where the host has prepared the conditionings for the denoiser."""
    guider.conds = settled(guider.conds)
    return executor(guider, *args, **kwargs)
