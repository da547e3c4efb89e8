"""SafeCFG on a prompt: the safe prompt, and how harmful the given one is. Both hosts call `redirect`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .guidance import shift
from .hgr import HGR
from .prompt import Prompt

Delta = tuple[Tensor, Tensor | None]  # of a prompt's features (B, T, D) and of its pooled output (B, P)


@dataclass(frozen=True)
class Redirection:
    """A safe prompt, and why.

    gates (B, K): the highest over each sample's chunks.
    harm (B,): the harmfulness in [0, 1], the largest `s_k a_k` over a sample's concepts and chunks. It is above 0
        exactly in the samples that moved.
    """

    safe: Prompt
    gates: Tensor
    harm: Tensor


@torch.no_grad()
def redirect(hgr: HGR, prompt: Prompt, *, strengths: list[float]) -> Redirection:
    """`c_safe = c + Delta`, by `HGR.displacement`.

    strengths: of each concept, multiplied by the global strength. If all are 0, the prompt is not read.

    A prompt in which nothing fires is returned with the same tensors; in a batch, its samples stay equal bit for bit.

    Raises HGRError for features of another encoder.
    """
    if not any(strengths):
        count = len(prompt.features)
        return Redirection(prompt, torch.zeros(count, len(strengths)), torch.zeros(count))
    weights = torch.tensor(strengths)
    reading = hgr.read(*prompt.to(hgr.device))
    features, pooled = hgr.displacement(reading, weights)
    device = prompt.features.device
    delta = features.to(device), None if pooled is None else pooled.to(device)
    harm = hgr.activations(reading, weights).flatten(1).amax(1).clamp(max=1.0)
    return Redirection(shift_prompt(prompt, delta), reading.prompt_gates, harm)


def shift_prompt(prompt: Prompt, delta: Delta) -> Prompt:
    """The prompt with its features and pooled output moved by a displacement (`guidance.shift`)."""
    features, pooled = delta
    moved = prompt.pooled if prompt.pooled is None or pooled is None else shift(prompt.pooled, pooled)
    return Prompt(shift(prompt.features, features), moved, prompt.mask)
