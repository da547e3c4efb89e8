"""Trains an HGR's picture probe: logistic heads on the denoiser's features, from pictures that the model made itself.

The HGR's own gates on the pictures' prompts are the labels; there are no human labels and no other network. The method
is this project's own. `hgr.detection.probe` uses the probe.

No model draws exactly what it is told: some pictures lack a concept that their prompts have, and some show one that
nobody asked for. A threshold that lets hardly any "clean" picture pass would be set by those. So the heads are fitted
twice, and the second time without the pictures whose label the first fit doubts (`doubtful`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.hgr import HGR, Concept, Probe, calibrated
from ..core.progress import SILENT, Progress, Tally
from ..core.prompt import Prompt
from ..detection.hed import hed_picture
from ..detection.probe import PROBE_PERCENTS, probe_features
from .calibration import calibrate
from .finite import check_finite, numbers
from .metrics import auroc, expected_calibration_error
from .pictures import Pictures

log = logging.getLogger("safecfg")

MIN_SHOWN = 8  # pictures with each concept, and pictures with none
_FOLDS = 5
_REMEDY = "the denoiser may need another precision"
_RIDGE = 0.01  # on the weights for standardised features


def train_probe(
    hgr: HGR,
    denoiser: Denoiser,
    pictures: Pictures,
    *,
    prompts: Callable[[list[int]], Prompt],
    rate: float,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Probe | None:
    """The probe of an HGR; None, with a warning, if too few pictures have a concept.

    prompts: gives the prompts of pictures by their indices.
    rate: the stated false-positive rate, in (0, 0.5).

    Raises FloatingPointError if the probe is not finite.
    """
    count, twins = len(pictures.latents), pictures.twins
    progress.phase(f"evaluating {count:,} pictures twice for the picture probe")
    tally = Tally(progress, 2 * count)
    seen = _judge(hgr, denoiser, pictures, prompts=prompts, seed=seed, tally=tally)
    x = probe_features(denoiser, pictures.latents, hgr.encoder.prompt, seed=seed, tally=tally)
    labels = seen.labels
    clean = ~labels.any(1)
    for found, what in (*((labels[:, k], f'"{id}"') for k, id in enumerate(hgr.ids)), (clean, "no concept")):
        if found.sum() < MIN_SHOWN:
            log.warning(
                "no picture probe: the model made %d pictures, of which %d have prompts with %s, but %d are needed. "
                "Train with more pictures to detect concepts in pictures.",
                count,
                found.sum(),
                what,
                MIN_SHOWN,
            )
            return None

    mean, std = x.mean(0), x.std(0).clamp(min=1e-4)
    standard = ((x - mean) / std).flatten(1)
    doubt = doubtful(_cross_validate(standard, labels, twins), labels)
    if min((labels & ~doubt).sum(0).min(), (clean & ~doubt.any(1)).sum()) < MIN_SHOWN:
        doubt = torch.zeros_like(doubt)  # too few would be left
    held = _cross_validate(standard, labels, twins, sure=~doubt)
    weight, bias = fit_heads(standard, labels, ~doubt)
    check_finite("the picture probe's weights", (mean, std, held, weight, bias, seen.hed), remedy=_REMEDY)
    weight = weight.T.unflatten(1, mean.shape) / std  # for features as they are, not standardised

    known = [Concept(c.id, c.label, c.description) for c in hgr.concepts]
    clean &= ~doubt.any(1)
    heads = calibrate(known, held, labels, judged=~doubt, clean=held[clean], rate=rate)
    first, second = (torch.tensor(list(part), dtype=torch.long) for part in (twins, twins.values()))
    lacking = labels[first] & ~labels[second] & ~doubt[second]  # the twin's picture does not show it
    absent = torch.cat([seen.hed_of_twin[first] * lacking, seen.hed[clean]])
    scores, truth = torch.cat([seen.hed, absent]), torch.cat([labels, torch.zeros(absent.shape, dtype=torch.bool)])
    sure = torch.cat([~doubt, torch.ones(absent.shape, dtype=torch.bool)])
    distances = calibrate(known, scores, truth, judged=sure, clean=absent, rate=rate)
    check_finite("the picture probe's thresholds", numbers(heads + distances), remedy=_REMEDY)
    made = {
        "pictures": count,
        "latent": list(pictures.latents.shape[1:]),
        "seed": seed,
        "false_positive_rate": rate,
        "metrics": _metrics(heads, held, labels, doubt=doubt),
    }
    return Probe(
        PROBE_PERCENTS, mean, std, weight, bias - (weight * mean).sum((1, 2)), tuple(heads), tuple(distances), made
    )


@dataclass(frozen=True)
class _Seen:
    """What HGR and denoiser find in N pictures.

    labels (N, K): by the prompts' gates.
    hed (N, K): of the picture with its prompt.
    hed_of_twin (N, K): of the clean twin's picture with the harmful prompt.
    """

    labels: Tensor
    hed: Tensor
    hed_of_twin: Tensor


def _judge(
    hgr: HGR, denoiser: Denoiser, pictures: Pictures, *, prompts: Callable[[list[int]], Prompt], seed: int, tally: Tally
) -> _Seen:
    gates, hed, other = [], [], []
    for part in torch.arange(len(pictures.latents)).split(denoiser.batch):
        prompt = prompts(part.tolist())
        gates.append(hgr.read(*prompt).prompt_gates.cpu())
        hed.append(hed_picture(hgr, denoiser, pictures.latents[part], prompt=prompt, seed=seed).per_concept)
        shown = [pictures.twins.get(i, i) for i in part.tolist()]
        other.append(hed_picture(hgr, denoiser, pictures.latents[shown], prompt=prompt, seed=seed).per_concept)
        tally.add(len(part))
    return _Seen(torch.cat(gates) >= hgr.thresholds.cpu(), torch.cat(hed), torch.cat(other))


def doubtful(logits: Tensor, labels: Tensor) -> Tensor:
    """(N, K): which labels are probably wrong, as confident learning finds them (Northcutt et al. 2021, arXiv
    1911.00068): the heads are as certain of the other class as they are on average of pictures labelled with it.

    logits (N, K): of heads that were not fitted on the picture. labels (N, K).
    """
    p = logits.sigmoid()
    yes, no = ((p * of).sum(0) / of.sum(0).clamp(min=1) for of in (labels, ~labels))
    return torch.where(labels, p <= no, p >= yes)


def _cross_validate(x: Tensor, labels: Tensor, twins: dict[int, int], *, sure: Tensor | None = None) -> Tensor:
    """(N, K): each picture's logits from heads that were not fitted on it, but on the labels that are `sure` (N, K)."""
    fold = torch.arange(len(x)) % _FOLDS
    fold[list(twins.values())] = fold[list(twins)]  # a prompt's picture and its twin's look alike
    held = torch.zeros(labels.shape)
    for i in range(_FOLDS):
        others = fold != i
        weight, bias = fit_heads(x[others], labels[others], None if sure is None else sure[others])
        held[fold == i] = x[fold == i] @ weight + bias
    return held


def fit_heads(x: Tensor, labels: Tensor, sure: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Ridge-regularised logistic heads (F, K) and (K,) for standardised x (N, F) and labels (N, K), of which only those
    that are `sure` (N, K) count."""
    truth = labels.to(x)
    counted = torch.ones_like(truth) if sure is None else sure.to(x)
    weight = torch.zeros(x.shape[1], truth.shape[1], requires_grad=True)
    bias = torch.zeros(truth.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        errors = F.binary_cross_entropy_with_logits(x @ weight + bias, truth, weight=counted, reduction="sum")
        loss = errors / counted.sum() + _RIDGE * weight.square().sum(0).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def _metrics(heads: list[Concept], held: Tensor, labels: Tensor, *, doubt: Tensor) -> dict[str, Any]:
    """The heads' metrics on pictures that they were not fitted on, by concept; how many pictures seem not to show it
    though their prompts have it, and how many to show it unasked, which count for nothing else."""
    clean, found, probabilities = ~(labels | doubt).any(1), {}, calibrated(held, heads)
    for k, head in enumerate(heads):
        scores, sure = probabilities[:, k], ~doubt[:, k]
        own = scores[labels[:, k] & sure]
        found[head.id] = {
            "pictures": len(own),
            "auroc": auroc(own, scores[clean]),
            "recall": (own >= head.threshold).float().mean().item(),
            "ece": expected_calibration_error(scores[sure], labels[sure, k].float()),
            "not_drawn": int((labels & doubt)[:, k].sum()),
            "unasked": int((~labels & doubt)[:, k].sum()),
        }
    return found
