"""Harmfulness of prompts: the Harmful Euclidean Distance (HED).

The paper (arXiv 2412.16039) says that HGR detects harmfulness by a Euclidean distance; the formula is this project's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor

from .redirector import HGR
from .safecfg import Prompt


@dataclass(frozen=True)
class PromptHarm:
    """gates (B, K): calibrated probability of each concept. fired (B, K) bool: at or above its threshold.

    hed (B,) and hed_per_concept (B, K): the distance to the safe features as a share of the CFG direction's length, 0 where
    nothing fires. token_gates (B, T, K): where in the prompt the gates look, not calibrated.
    """

    gates: Tensor
    fired: Tensor
    hed: Tensor
    hed_per_concept: Tensor
    token_gates: Tensor


@torch.no_grad()
def hed_prompt(hgr: HGR, prompt: Prompt, empty: Tensor) -> PromptHarm:
    """`||c_safe - c|| / ||c - u||` with all concepts at strength 1, and with each concept alone.

    prompt: features (B, T, D); empty: the empty prompt's features (1, T', D), repeated to T.
    """
    weight = hgr.network.mean
    prompt = Prompt(*(None if x is None else x.to(weight.device) for x in prompt))
    reading = hgr.read(*prompt)
    count, length = len(hgr.concepts), prompt.features.shape[1]
    u = repeat(empty.to(weight), "b t d -> b (n t) d", n=math.ceil(length / empty.shape[1]))[:, :length]
    direction = prompt.features.to(weight) - u
    if prompt.mask is not None:
        direction = direction * prompt.mask.bool()[..., None]
    reach = direction.flatten(1).norm(dim=1).clamp(min=1e-6)

    def distance(strengths: Tensor) -> Tensor:
        return hgr.displacement(reading, strengths)[0].flatten(1).norm(dim=1) / reach

    gates = reading.prompt_gates
    return PromptHarm(
        gates, gates >= hgr.thresholds.to(gates), distance(torch.ones(count)),
        torch.stack([distance(one) for one in torch.eye(count)], 1), reading.token_gates,
    )
