"""SafeCFG on prompts: which text features the sampler gets in place of the host's own. Both hosts call `redirect`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .guidance import fold, mean_of_moved, shift
from .hgr import HGR
from .options import MODES
from .prompt import Prompt


@dataclass(frozen=True)
class Redirection:
    """The prompts to sample with, and why. gates: per positive prompt (B, K), the highest of its chunks.

    fired: per positive prompt (B,) bool, where the features were moved.
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

    strengths: of each concept, the global strength multiplied in. A prompt in which nothing fires is returned as it is,
    the same tensors; in a batch, its samples are equal bit for bit. The unconditional side takes the mean displacement
    of those positive prompts that fire in the sample, laid onto its own length (`hgr.core.guidance.fold`).

    Raises HGRError for features of another encoder, KeyError for an unknown mode.
    """
    conditional, unconditional = MODES[mode]
    if not any(strengths):
        return Redirection(positive, negative, [], [])
    weights = torch.tensor(strengths)
    device = hgr.network.mean.device
    moved, deltas, gates, fired = [], [], [], []
    for prompt in positive:
        reading = hgr.read(*prompt.to(device))
        delta, pooled = hgr.displacement(reading, weights)
        delta = delta.to(prompt.features.device)
        pooled = None if pooled is None else pooled.to(prompt.pooled.device)
        features = shift(prompt.features, delta, conditional)
        moved.append(
            Prompt(
                features, prompt.pooled if pooled is None else shift(prompt.pooled, pooled, conditional), prompt.mask
            )
        )
        deltas.append((delta, pooled))
        gates.append(reading.prompt_gates)
        fired.append(delta.flatten(1).any(1))
    if unconditional and any(f.any() for f in fired):
        negative = [_push(prompt, deltas, unconditional) for prompt in negative]
    return Redirection(moved, negative, gates, fired)


def _push(prompt: Prompt, deltas: list[tuple[Tensor, Tensor | None]], scale: float) -> Prompt:
    """The unconditional prompt moved toward the harmful part of the positive ones, with one row a sample."""
    # The host repeats fewer rows in turn up to the latents' batch; of sizes that it repeats together, only a common
    # multiple keeps each sample its own rows.
    batch = math.lcm(len(prompt.features), *(len(delta) for delta, _ in deltas))

    def rows(x: Tensor) -> Tensor:
        """One row a sample; fewer are repeated in turn."""
        return x if len(x) == batch else x[torch.arange(batch, device=x.device) % len(x)]

    length = prompt.features.shape[1]
    delta = mean_of_moved([rows(fold(d.to(prompt.features.device), length)) for d, _ in deltas])
    features = shift(rows(prompt.features), delta, -scale)
    pooled = prompt.pooled
    if pooled is not None and all(p is not None for _, p in deltas):
        pooled = shift(rows(pooled), mean_of_moved([rows(p.to(pooled.device)) for _, p in deltas]), -scale)
    return Prompt(features, pooled, None if prompt.mask is None else rows(prompt.mask))
