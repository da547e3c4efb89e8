"""What takes the place of an entry of a conditioning in which a concept fires.

The host divides the weighted sum of all entries' predictions by the sum of their weights, point by point of the picture
(`comfy.samplers.calc_cond_batch`). Two pieces with the weights m and 1 - m, times the entry's own, therefore act as one
entry that predicts `m eps(c) + (1 - m) eps(c_safe)`: in its area and mask, with its hooks and its ControlNet, and
beside other entries.
"""

from __future__ import annotations

import copy
import uuid
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

Entry = dict[str, Any]  # of a conditioning, as a guider holds it
Conds = dict[str, list[Entry]]  # a guider's conditionings: entries by role ("positive", "negative", ...)
_MARK = "safecfg"  # in a weighted piece, until it is settled
_TO_UNCOND = "control_apply_to_uncond"


class _Mark(NamedTuple):
    """The piece's role, the entry's own strength, and whether the piece is to be evaluated in a batch of its own."""

    role: str
    strength: float
    apart: bool = False


def pieces(
    entry: Entry, changes: Entry, *, role: str, share: Tensor, window: tuple[float, float], ones: Tensor
) -> list[Entry]:
    """The pieces of an entry: inside the window the safe one, or both with their weights; the entry before and after.

    changes: the safe text features and pooled outputs, by key. They are the entry's own in samples where nothing fires.
    share (B,): m of each sample. Samples with 1 keep their prediction bit for bit; 1 everywhere gives the entry itself.
    window: in the host's percent.
    ones (N, 1, ...): one for each latent, on the sampling device. The N latents take the B prompts in turn.
    """
    if (share == 1).all():
        return [entry]
    safe = entry | changes
    inside = [safe]
    if ((share > 0) & (share < 1)).any():
        # the host's caches tell entries apart by their uuid
        other = safe | {"uuid": uuid.uuid4()}
        inside = [
            _weighted(entry, share, role=role, ones=ones),
            _weighted(other, 1 - share, role=role, ones=ones, apart=True),
        ]
    start, end = window
    low, high = entry.get("start_percent", 0.0), entry.get("end_percent", 1.0)
    # The pieces of the window come first: if the host adds an entry for the other side, it copies the first one.
    spans = [
        *((piece, max(low, start), min(high, end)) for piece in inside),
        (entry, low, min(high, start)),
        (entry, max(low, end), high),
    ]
    made = [
        piece | ({"start_percent": a} if a > 0 else {}) | ({"end_percent": b} if b < 1 else {})
        for piece, a, b in spans
        if a < b
    ]
    if entry.get(_TO_UNCOND):  # the host gives the ControlNet to one negative entry for each of these
        made[1:] = [piece | {_TO_UNCOND: False} for piece in made[1:]]
    return made


def settled(conds: Conds) -> Conds:
    """The conditionings as the host has prepared them for the denoiser, with two things put right. What it copied to
    other roles, as it does for areas, gets the entry's own strength back: it holds the other role's text, and no part
    of the mixture. And safe pieces get a batch of their own: beside them others would be computed in a larger one, and
    a clean sample not be the same to the last bit.
    """
    return {role: [_settled(entry, role) for entry in entries] for role, entries in conds.items()}


def repeated(rows: Tensor, count: int) -> Tensor:
    """(count, ...): rows in turn, as the host repeats prompts over a batch."""
    return rows[torch.arange(count, device=rows.device) % len(rows)]


def _weighted(entry: Entry, weight: Tensor, *, role: str, ones: Tensor, apart: bool = False) -> Entry:
    """The entry with its strength times weight (B,): a number if all samples agree, else one of each sample."""
    strength = entry.get("strength", 1.0)
    if (weight == weight[0]).all():
        factor = weight[0].item()
    else:
        factor = repeated(weight, len(ones)).reshape(ones.shape).to(ones)
    mark = entry.get(_MARK) or _Mark(role, strength)  # another SafeCFG may have made this piece
    return entry | {"strength": strength * factor, _MARK: mark._replace(apart=mark.apart or apart)}


def _settled(entry: Entry, role: str) -> Entry:
    if _MARK not in entry:
        return entry
    mark = entry[_MARK]
    rest = {key: value for key, value in entry.items() if key != _MARK}
    if mark.role != role:
        return rest | {"strength": mark.strength}
    if mark.apart:
        rest["model_conds"] = {key: _apart(cond) for key, cond in rest["model_conds"].items()}
    return rest


class _Apart:
    """What the denoiser gets of an entry, in no batch with other kinds. The host asks the later entry whether it can be
    joined to the first, and a safe piece is behind all that its plain one is joined with."""

    def can_concat(self, other: object) -> bool:
        return isinstance(other, _Apart) and super().can_concat(other)  # type: ignore[reportAttributeAccessIssue]


@cache
def _apart_kind(kind: type) -> type:
    return type(kind.__name__, (_Apart, kind), {})


def _apart(cond: Any) -> Any:
    """A copy of one of the host's `comfy.conds`."""
    made = copy.copy(cond)
    made.__class__ = _apart_kind(type(cond))
    return made
