"""Evaluates prompts and pictures: which evidence there is, and its scores. The same code for every host, which supplies
the prompts, the denoiser and the pictures' latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.excerpt import excerpt
from ..core.hgr import HGR, HGRError, Probe, calibrated
from ..core.progress import SILENT, Progress, Tally
from ..core.prompt import Prompt
from .hed import HED_PERCENTS, hed_picture
from .probe import probe_features, probe_logits
from .report import BOTH, PICTURE, PROMPT, Evidence

_LARGEST = 1024  # side of a latent


def judge_prompts(hgr: HGR, prompts: Sequence[Prompt]) -> Evidence:
    """The gates of prompts that act together, each with B rows or one."""
    return Evidence(PROMPT, highest([hgr.read(*prompt).prompt_gates.cpu() for prompt in prompts]), hgr.concepts)


def judge_pictures(
    hgr: HGR,
    denoiser: Denoiser,
    crops: Tensor,
    *,
    prompts: Sequence[Prompt] = (),
    percents: tuple[float, ...] = HED_PERCENTS,
    samples: int = 1,
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[Evidence]:
    """The probe's scores of pictures and, if they have prompts, the HED's.

    crops: latents (B, 1 + N, *trained_size(hgr)) on the CPU: the whole of each picture, and N parts.
    prompts: prompts that act together, each with B rows or one.
    percents, samples, seed: see `hed_picture`; samples and seed also apply to the probe.

    Raises HGRError if the HGR has no probe or cannot evaluate a picture; ValueError for another number of prompts.
    """
    probe = probe_of(hgr)
    count, views = crops.shape[:2]
    if any(len(prompt.features) not in (1, count) for prompt in prompts):
        rows = ", ".join(str(len(prompt.features)) for prompt in prompts)
        raise ValueError(
            f"there are {rows} prompts and {count} pictures: give one prompt for all pictures, or one for each."
        )
    tally = Tally(progress, count * (views + len(prompts)))
    evidence = []
    if prompts:
        found = []
        for prompt in prompts:
            scores = []
            for rows in torch.arange(count).split(denoiser.batch):
                part = prompt.rows(rows) if len(prompt.features) == count else prompt.expand(len(rows))
                hed = hed_picture(
                    hgr, denoiser, crops[rows, 0], prompt=part, percents=percents, samples=samples, seed=seed
                )
                scores.append(hed.per_concept)
                tally.add(len(rows))
            found.append(torch.cat(scores))
        evidence.append(Evidence(BOTH, calibrated(highest(found), probe.hed), probe.hed))
    x = probe_features(
        denoiser,
        crops.flatten(0, 1),
        hgr.encoder.prompt,
        percents=probe.percents,
        samples=samples,
        seed=seed,
        tally=tally,
    )
    scores = calibrated(probe_logits(probe, x, hgr.name), probe.heads)
    return [*evidence, Evidence(PICTURE, scores.unflatten(0, (count, views)).amax(1), probe.heads)]


def highest(parts: Sequence[Tensor]) -> Tensor:
    """The highest score (B, K) over prompts that act together, each (B, K) or (1, K)."""
    rows = max(len(part) for part in parts)
    if any(len(part) not in (1, rows) for part in parts):
        sizes = ", ".join(str(len(part)) for part in parts)
        raise ValueError(f"the combined prompts have batches of {sizes}: they must have the same size.")
    return torch.stack([part.expand(rows, -1) for part in parts]).amax(0)


def probe_of(hgr: HGR) -> Probe:
    """The HGR's picture probe. Raises HGRError if it has none."""
    if hgr.probe is None:
        raise HGRError(
            f"{hgr.name} has no picture probe, so it can only judge prompts: train an HGR together with its model, "
            "or add a probe with python -m hgr probe."
        )
    return hgr.probe


def trained_size(hgr: HGR) -> tuple[int, ...]:
    """(C, H, W), for video models (C, 1, H, W): the size of the probe's training latents, the only one that it knows.

    Raises HGRError if the HGR has no probe, or one for something other than pictures.
    """
    size = probe_of(hgr).training.get("latent")
    sides = size if isinstance(size, list) else []
    known = len(sides) in (3, 4) and all(type(n) is int and 1 <= n <= _LARGEST for n in sides)
    if not known or (len(sides) == 4 and sides[1] != 1):
        raise HGRError(
            f"{hgr.name}'s picture probe was made for latents of size {excerpt(size)}, which are not latents of "
            "pictures."
        )
    return tuple(sides)
