"""Detects concepts in a picture without its prompt, by the denoiser's own features.

The denoiser sees the noisy picture with the empty prompt, and a logistic head on its middle features predicts each
concept's probability. `hgr.training.train_probe` makes the heads. The method is this project's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.denoiser import Denoiser, middle_features
from ..core.hgr import SCORE_TOLERANCE, HGRError, Probe
from ..core.progress import Tally
from ..core.prompt import Prompt
from .hed import noisy

PROBE_PERCENTS = (0.8, 0.94)  # best at telling symbols apart on the demo world (docs/benchmarks.md)


@torch.no_grad()
def probe_features(
    denoiser: Denoiser,
    latents: Tensor,
    empty: Prompt,
    *,
    percents: tuple[float, ...] = PROBE_PERCENTS,
    samples: int = 1,
    seed: int = 0,
    tally: Tally | None = None,
) -> Tensor:
    """(N, P, F): the denoiser's middle features of latents (N, ...) at P noise levels, the mean over `samples` draws of
    noise. Costs P * samples evaluations per picture.

    empty: the empty prompt, one row.
    percents: the points in sampling, in [0, 1].
    """
    rows = []
    with middle_features(denoiser.module) as kept:
        for part in latents.split(denoiser.batch):
            prompt = empty.expand(len(part))
            found = []
            for predict in noisy(denoiser, part, percents, samples=samples, seed=seed):
                predict(*prompt[:2])
                found.append(kept[0].cpu())
            rows.append(torch.stack(found, 1).unflatten(1, (len(percents), samples)).mean(2))
            if tally:
                tally.add(len(part))
    return torch.cat(rows)


def probe_logits(probe: Probe, x: Tensor, name: str = "the HGR") -> Tensor:
    """(N, K) from features (N, P, F), before calibration.

    Raises HGRError for features of another denoiser, and for NaN.
    """
    if x.shape[1:] != probe.mean.shape:
        raise HGRError(
            f"{name}'s picture probe was made for a denoiser with {probe.mean.shape[1]} features, but this model has "
            f"{x.shape[-1]}: load the HGR that was trained for this model."
        )
    if not x.isfinite().all():
        raise HGRError("the denoiser gives NaN or infinity for a picture, so it cannot be evaluated.")
    distance = ((x - probe.mean) / probe.std).square().flatten(1).mean(1).median().item()
    if distance > SCORE_TOLERANCE:
        raise HGRError(
            f"{name}'s picture probe was made for another denoiser (distance from its fingerprint {distance:.0f}): "
            "load the HGR that was trained for this model."
        )
    return torch.einsum("npf,kpf->nk", x, probe.weight) + probe.bias
