"""Detecting concepts in a picture alone, by the denoiser's own features.

The denoiser sees the noisy picture with the empty prompt, and a logistic head on its middle features says how likely each concept is.
The heads are trained on pictures that the model made itself, labelled by the HGR's own gates on their prompts: no human label, and no
other network. The method is this project's own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .calibration import calibrate
from .denoiser import Denoiser, middle_features
from .detect import hed_picture, noisy
from .metrics import auroc, expected_calibration_error
from .redirector import HGR, SCORE_TOLERANCE, Concept, HGRError, Probe
from .safecfg import Prompt

log = logging.getLogger("safecfg")

PERCENTS = (0.8, 0.94)  # where symbols are told apart best on the demo world (docs/benchmarks.md)
MIN_PICTURES = 8  # in which a concept is, and in which none is
_FOLDS = 5
_RIDGE = 0.01  # on weights for standardised features


@torch.no_grad()
def features(denoiser: Denoiser, latents: Tensor, empty: Prompt, percents: tuple[float, ...] = PERCENTS, samples: int = 1, seed: int = 0,
             on_picture: Callable[[int], None] = lambda count: None) -> Tensor:
    """(N, P, F): the denoiser's middle features of latents (N, ...) at P noise levels, the mean over `samples` draws of noise. Costs
    P * samples evaluations a picture.

    empty: the empty prompt, one row. on_picture: called with how many pictures are done more.
    """
    rows = []
    with middle_features(denoiser.module) as kept:
        for part in latents.split(denoiser.batch):
            prompt = repeat_rows(empty, len(part))
            found = []
            for predict in noisy(denoiser, part, percents, samples, seed):
                predict(*prompt[:2])
                found.append(kept[0].cpu())
            rows.append(torch.stack(found, 1).unflatten(1, (len(percents), samples)).mean(2))
            on_picture(len(part))
    return torch.cat(rows)


def logits(probe: Probe, x: Tensor, name: str = "the HGR") -> Tensor:
    """(N, K) from features (N, P, F), before calibration. Raises HGRError for features of another denoiser, and for NaN."""
    if x.shape[1:] != probe.mean.shape:
        raise HGRError(f"{name}'s picture probe was made for a denoiser with {probe.mean.shape[1]} features, this model has {x.shape[-1]}: "
                       "load the HGR that was trained for this model.")
    if not x.isfinite().all():
        raise HGRError("the denoiser gives NaN or infinity for a picture, so nobody can say whether it is harmful.")
    distance = ((x - probe.mean) / probe.std).square().flatten(1).mean(1).median().item()
    if distance > SCORE_TOLERANCE:
        raise HGRError(f"{name}'s picture probe was made for another denoiser (distance from its fingerprint {distance:.0f}): load the HGR "
                       "that was trained for this model.")
    return torch.einsum("npf,kpf->nk", x, probe.weight) + probe.bias


def train_probe(hgr: HGR, denoiser: Denoiser, latents: Tensor, prompts: Callable[[list[int]], Prompt], twins: dict[int, int],
                rate: float, seed: int = 0, on_picture: Callable[[int, int], None] = lambda done, total: None) -> Probe | None:
    """The probe of an HGR, from pictures (N, ...) that the model made; None, with a warning, where too few show a concept.

    prompts: the prompts of pictures by number. twins: of a harmful prompt's picture the one of its clean twin: what a picture looks
    like that does not show what its prompt asks for. rate: the stated false-positive rate. on_picture: (done, total).
    """
    count, done = len(latents), 0

    def more(number: int) -> None:
        nonlocal done
        done += number
        on_picture(done, 2 * count)

    gates, hed, other = [], [], []
    for part in torch.arange(count).split(denoiser.batch):
        prompt = prompts(part.tolist())
        gates.append(hgr.read(*prompt).prompt_gates.cpu())
        hed.append(hed_picture(hgr, denoiser, latents[part], prompt, seed=seed).per_concept)
        shown = [twins.get(i, i) for i in part.tolist()]
        other.append(hed_picture(hgr, denoiser, latents[shown], prompt, seed=seed).per_concept)
        more(len(part))
    labels = torch.cat(gates) >= hgr.thresholds.cpu()
    x = features(denoiser, latents, empty_prompt(hgr), seed=seed, on_picture=more)
    clean = ~labels.any(1)
    for found, what in (*((labels[:, k], f"\"{id}\"") for k, id in enumerate(hgr.ids)), (clean, "no concept")):
        if found.sum() < MIN_PICTURES:
            log.warning("no picture probe: of the %d pictures that the model made, %d have prompts with %s, and %d are needed. Train with "
                        "more pictures to detect concepts in pictures.", count, found.sum(), what, MIN_PICTURES)
            return None

    mean, std = x.mean(0), x.std(0).clamp(min=1e-4)
    standard = ((x - mean) / std).flatten(1)
    fold = torch.arange(count) % _FOLDS
    fold[list(twins.values())] = fold[list(twins)]  # a prompt's picture and its twin's look alike
    held = torch.zeros(labels.shape)
    for i in range(_FOLDS):
        weight, bias = fit(standard[fold != i], labels[fold != i])
        held[fold == i] = standard[fold == i] @ weight + bias
    weight, bias = fit(standard, labels)
    weight = weight.T.unflatten(1, mean.shape) / std  # of the features as they are

    known = [Concept(c.id, c.label, c.description) for c in hgr.concepts]
    heads = calibrate(known, held, labels, torch.ones_like(labels), held[clean], rate)
    first, second = list(twins), list(twins.values())
    absent = torch.cat([torch.cat(other)[first] * (labels[first] & ~labels[second]), torch.cat(hed)[clean]])
    scores, truth = torch.cat([torch.cat(hed), absent]), torch.cat([labels, torch.zeros(absent.shape, dtype=torch.bool)])
    distances = calibrate(known, scores, truth, torch.ones_like(truth), absent, rate)
    made = {"pictures": count, "latent": list(latents.shape[1:]), "seed": seed, "false_positive_rate": rate,
            "metrics": _metrics(heads, held, labels)}
    return Probe(PERCENTS, mean, std, weight, bias - (weight * mean).sum((1, 2)), tuple(heads), tuple(distances), made)


def calibrated(scores: Tensor, concepts: Sequence[Concept]) -> Tensor:
    """Probabilities (N, K) of raw scores (N, K), by each concept's calibration."""
    scale, bias = (torch.tensor([getattr(concept, name) for concept in concepts]) for name in ("scale", "bias"))
    return (scale * scores + bias).sigmoid()


def empty_prompt(hgr: HGR) -> Prompt:
    """The empty prompt of the HGR's encoder, one row."""
    pooled = hgr.encoder.empty_pooled
    return Prompt(hgr.encoder.empty[None], None if pooled is None else pooled[None])


def repeat_rows(prompt: Prompt, count: int) -> Prompt:
    """A prompt of one row for so many pictures."""
    return Prompt(*(None if x is None else x.expand(count, *x.shape[1:]) for x in prompt))


def fit(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge-regularised logistic heads (F, K) and (K,) for standardised x (N, F) and labels (N, K)."""
    truth = labels.to(x)
    weight = torch.zeros(x.shape[1], truth.shape[1], requires_grad=True)
    bias = torch.zeros(truth.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(x @ weight + bias, truth) + _RIDGE * weight.square().sum(0).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def _metrics(heads: list[Concept], held: Tensor, labels: Tensor) -> dict[str, Any]:
    """What the heads say of pictures that they were not trained on, by concept."""
    clean, found = ~labels.any(1), {}
    for k, head in enumerate(heads):
        scores = torch.sigmoid(head.scale * held[:, k] + head.bias)
        own = scores[labels[:, k]]
        found[head.id] = {"pictures": len(own), "auroc": auroc(own, scores[clean]), "recall": (own >= head.threshold).float().mean().item(),
                          "ece": expected_calibration_error(scores, labels[:, k].float())}
    return found
