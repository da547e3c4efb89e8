"""SafeCFG on prompts: which text features the sampler gets instead of the host's own. Both hosts call `redirect`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .guidance import fold, mean_of_moved, shift
from .hgr import HGR, Reading
from .options import MODES
from .prompt import Prompt

Delta = tuple[Tensor, Tensor | None]  # of a prompt's features (B, T, D) and of its pooled output (B, P)


@dataclass(frozen=True)
class Redirection:
    """The prompts to sample with, and why.

    gates: for each positive prompt (B, K), the highest over its chunks.
    fired: for each positive prompt (B,) bool, whether its features were moved.
    """

    positive: list[Prompt]
    negative: list[Prompt]
    gates: list[Tensor]
    fired: list[Tensor]


@torch.no_grad()
def redirect(
    hgr: HGR, positive: list[Prompt], negative: list[Prompt], *, strengths: list[float], mode: str
) -> Redirection:
    """Move the features of positive and negative prompts as `mode` says (`hgr.core.options.MODES`).

    strengths: of each concept, multiplied by the global strength.

    A prompt in which nothing fires is returned with the same tensors; in a batch, its samples stay equal bit for bit.
    The unconditional side takes the mean displacement of the positive prompts that fire in the sample, laid onto its
    own length (`hgr.core.guidance.fold`).

    Raises HGRError for features of another encoder, KeyError for an unknown mode.
    """
    conditional, unconditional = MODES[mode]
    if not any(strengths):
        return Redirection(positive, negative, [], [])
    weights = torch.tensor(strengths)
    moved: list[Prompt] = []
    deltas: list[Delta] = []
    gates, fired = [], []
    for prompt in positive:
        reading = hgr.read(*prompt.to(hgr.device))
        delta = _delta(hgr, reading, weights, to=prompt)
        moved.append(shift_prompt(prompt, delta, conditional))
        deltas.append(delta)
        gates.append(reading.prompt_gates)
        fired.append(delta[0].flatten(1).any(1))
    if unconditional and any(f.any() for f in fired):
        negative = [_push(prompt, deltas, unconditional) for prompt in negative]
    return Redirection(moved, negative, gates, fired)


def shift_prompt(prompt: Prompt, delta: Delta, scale: float) -> Prompt:
    """The prompt with its features and pooled output moved by `scale` times a displacement (`guidance.shift`)."""
    features, pooled = delta
    moved = prompt.pooled if prompt.pooled is None or pooled is None else shift(prompt.pooled, pooled, scale)
    return Prompt(shift(prompt.features, features, scale), moved, prompt.mask)


def _delta(hgr: HGR, reading: Reading, strengths: Tensor, *, to: Prompt) -> Delta:
    """The displacement of a prompt, on its device."""
    features, pooled = hgr.displacement(reading, strengths)
    device = to.features.device
    return features.to(device), None if pooled is None else pooled.to(device)


def _push(prompt: Prompt, deltas: list[Delta], scale: float) -> Prompt:
    """The unconditional prompt moved against the displacements of the positive ones, with one row per sample."""
    # The host repeats rows in turn until they fill the latents' batch. If the prompts' batch sizes differ, every sample
    # keeps its own rows only in a batch of a common multiple.
    batch = math.lcm(len(prompt.features), *(len(features) for features, _ in deltas))

    def rows(x: Tensor) -> Tensor:
        """One row per sample; fewer are repeated in turn."""
        return x if len(x) == batch else x[torch.arange(batch, device=x.device) % len(x)]

    length, device = prompt.features.shape[1], prompt.features.device
    features = mean_of_moved([rows(fold(delta.to(device), length)) for delta, _ in deltas])
    pooled = [delta for _, delta in deltas if delta is not None]
    mean = mean_of_moved([rows(delta.to(device)) for delta in pooled]) if len(pooled) == len(deltas) else None
    return shift_prompt(prompt.map(rows), (features, mean), -scale)
