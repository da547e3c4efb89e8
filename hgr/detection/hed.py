"""The Harmful Euclidean Distance (HED): of prompts, and of pictures with their prompts.

The paper (arXiv 2412.16039) says that HGR detects harm by a Euclidean distance; the formulas are this project's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor

from ..core.denoiser import Denoiser, Predict
from ..core.hgr import HGR
from ..core.prompt import Prompt

# Points in sampling at which a picture is evaluated with its prompt: chosen on the demo world (docs/benchmarks.md).
HED_PERCENTS = (0.1, 0.25)


@dataclass(frozen=True)
class PromptHarm:
    """How harmful prompts are.

    gates (B, K): calibrated probability of each concept.
    fired (B, K): bool, whether it is at or above its threshold.
    hed (B,): the distance to the safe features as a share of the CFG direction's length; 0 if nothing fires.
    """

    gates: Tensor
    fired: Tensor
    hed: Tensor


@torch.no_grad()
def hed_prompt(hgr: HGR, prompt: Prompt, empty: Tensor) -> PromptHarm:
    """`||c_safe - c|| / ||c - u||` with all concepts at strength 1.

    prompt: features (B, T, D).
    empty: the empty prompt's features (1, T', D), repeated to T.
    """
    weight = hgr.network.mean
    prompt = prompt.to(weight.device)
    reading = hgr.read(*prompt)
    length = prompt.features.shape[1]
    u = repeat(empty.to(weight), "b t d -> b (n t) d", n=math.ceil(length / empty.shape[1]))[:, :length]
    direction = prompt.features.to(weight) - u
    if prompt.mask is not None:
        direction = direction * prompt.mask.bool()[..., None]
    reach = direction.flatten(1).norm(dim=1).clamp(min=1e-6)
    distance = hgr.displacement(reading, torch.ones(len(hgr.concepts)))[0].flatten(1).norm(dim=1)
    gates = reading.prompt_gates
    return PromptHarm(gates, gates >= hgr.thresholds.to(gates), distance / reach)


@dataclass(frozen=True)
class PictureHarm:
    """hed (B,) of all concepts together, and per_concept (B, K); see `hed_picture`. 0 if nothing fires."""

    hed: Tensor
    per_concept: Tensor


@torch.no_grad()
def hed_picture(
    hgr: HGR,
    denoiser: Denoiser,
    latents: Tensor,
    *,
    prompt: Prompt,
    percents: tuple[float, ...] = HED_PERCENTS,
    samples: int = 1,
    seed: int = 0,
) -> PictureHarm:
    """How far a picture itself goes in the harmful direction of its prompt, as a share of the CFG direction's length:

        <eps - eps(z_t, c_safe), d> / (||d|| ||eps(z_t, c) - eps(z_t, u)||),  d = eps(z_t, c) - eps(z_t, c_safe),

    the mean over noise levels and samples, with all concepts at strength 1 and with each concept alone. eps is the
    noise in z_t: if it equals the prediction under c, this is the HED `||d|| / ||eps(z_t, c) - eps(z_t, u)||`; if it
    equals the prediction under c_safe, 0. The HED says what the prompt asks for; this, whether the picture shows it.

    latents (B, ...) with their prompts (B, T, D); u is the empty prompt. A prompt in which nothing fires costs no
    evaluation. Any other costs 3 per noise level and sample, and one more for each concept that fires beside another.
    """
    ids = len(hgr.concepts)
    prompt = prompt.to(hgr.device)
    reading = hgr.read(*prompt)
    fired = (reading.prompt_gates >= hgr.thresholds).cpu()
    hed, per_concept = torch.zeros(len(latents)), torch.zeros(len(latents), ids)
    rows = fired.any(1).nonzero().flatten()
    if not len(rows):
        return PictureHarm(hed, per_concept)

    def safe(strengths: Tensor) -> Prompt:
        delta, pooled = hgr.displacement(reading, strengths)
        moved = None if pooled is None or prompt.pooled is None else prompt.pooled + pooled.to(prompt.pooled)
        return Prompt(prompt.features + delta.to(prompt.features), moved)

    u = hgr.encoder.prompt.expand(len(rows))
    beside = {k: found for k in range(ids) if len(found := (fired[:, k] & (fired.sum(1) > 1)).nonzero().flatten())}
    all_safe, one_safe = safe(torch.ones(ids)), {k: safe(torch.eye(ids)[k]) for k in beside}
    alone = fired[rows] & (fired[rows].sum(1, keepdim=True) == 1)
    looks = (noisy(denoiser, latents[part], percents, samples=samples, seed=seed) for part in (rows, *beside.values()))
    for error, *others in zip(*looks, strict=True):
        plain = error(*prompt.rows(rows)[:2])
        reach = _length(plain - error(*u[:2])).clamp(min=1e-6)
        whole = _along(plain, error(*all_safe.rows(rows)[:2])) / reach
        hed[rows] += whole
        per_concept[rows] += whole[:, None] * alone
        for (k, part), look in zip(beside.items(), others, strict=True):
            at = torch.searchsorted(rows, part)
            per_concept[part, k] += _along(plain[at.to(plain.device)], look(*one_safe[k].rows(part)[:2])) / reach[at]
    count = len(percents) * samples
    return PictureHarm(hed / count, per_concept / count)


def _along(harmful: Tensor, safe: Tensor) -> Tensor:
    """(B,): how far the truth lies from the safe prediction toward the harmful one, from the errors of both."""
    harmful, safe = harmful.flatten(1).double(), safe.flatten(1).double()
    d = harmful - safe
    return (-(safe * d).sum(1) / d.norm(dim=1).clamp(min=1e-12)).float().cpu()


def spread(count: int) -> tuple[float, ...]:
    """`count` points in sampling, spread over the range of `HED_PERCENTS`."""
    first, last = HED_PERCENTS[0], HED_PERCENTS[-1]
    return tuple(first + (last - first) * i / (count - 1) for i in range(count)) if count > 1 else ((first + last) / 2,)


def noisy(
    denoiser: Denoiser, latents: Tensor, percents: tuple[float, ...], *, samples: int, seed: int
) -> Iterator[Predict]:
    """The errors of the denoiser's predictions at each noise level, with `samples` draws of noise at each. All pictures
    get the same noise, so a score does not depend on the rest of the batch."""
    generator = torch.Generator().manual_seed(seed)
    for percent in percents:
        for _ in range(samples):
            noise = torch.randn(latents.shape[1:], generator=generator).expand_as(latents)
            yield denoiser.at(latents, torch.full((len(latents),), percent), noise)


def _length(x: Tensor) -> Tensor:
    """(B,): the Euclidean length of each sample of a batch, on the CPU."""
    return x.flatten(1).norm(dim=1).cpu()
