"""Measures an HGR on the user's own model, as far as that needs no classifier that knows the truth."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ...core.hgr import HGR
from ...core.progress import SILENT, Progress, Tally
from ...data.pairs import Pairs, concepts_by_text
from ...detection.hed import hed_prompt
from ...training.metrics import auroc, expected_calibration_error, false_positives_at
from ...training.settings import HELD_OUT
from .counted import sample_counted
from .pipeline import SafeCFG
from .prompts import encode

_BATCH = 32  # prompts encoded at once


def held_out(hgr: HGR, pairs: Pairs) -> Pairs:
    """The pairs that the HGR's training held out, if it was trained on these pairs: those of its concepts, without
    prompts that have other concepts.

    Raises ValueError if no concept of the HGR has any, or if its file does not say how its pairs were split.
    """
    seeds = {part.get("seed") for part in hgr.training.get("merged", [hgr.training])}
    if len(seeds) != 1 or not isinstance(seed := seeds.pop(), int):
        raise ValueError(
            f"{hgr.name}: the file does not name one seed by which its pairs were split, so it is not known which were "
            "held out. If it is a merged HGR, evaluate its parts."
        )
    _, held = pairs.split(HELD_OUT, seed)
    known = tuple(topic for topic in held.topics if topic.id in hgr.ids)
    ids = {topic.id for topic in known}
    others = {pair.harmful for pair in held.pairs if pair.concept not in ids}
    kept = tuple(
        pair for pair in held.pairs if pair.concept in ids and pair.harmful not in others and pair.clean not in others
    )
    if not kept:
        raise ValueError(
            f"none of {hgr.name}'s concepts ({', '.join(hgr.ids)}) has held-out pairs here: give the pairs that the "
            "HGR was trained on."
        )
    return Pairs(known, kept, tuple(text for text in held.clean if text not in others))


@torch.no_grad()
def evaluate_prompts(pipe: DiffusionPipeline, hgr: HGR, held: Pairs, *, progress: Progress = SILENT) -> dict[str, Any]:
    """Metrics of the gates and the HED on held-out prompts. Shares are in [0, 1], and NaN over no prompts.

    `concepts` has for each concept: `held_out`, the number of its prompts; `auroc_twins` and `auroc_clean`, against the
    clean twins and the clean prompts; `recall`, the share found at the threshold; `false_positives`, the share of clean
    prompts at or above the threshold, and `false_positives_at_95_recall`; `ece`, the calibration error against all
    prompts without any concept; `hed`, the mean over its prompts.
    `harmful`, `twins` and `clean` have for all such prompts: `prompts`, their number; `flagged`, the share in which any
    concept fires; `hed`, the mean.
    """
    labels = concepts_by_text(held.pairs)
    harmful = [text for text, found in labels.items() if found]
    twins = [text for text, found in labels.items() if not found]
    clean = [text for text in held.clean if not labels.get(text)]
    texts = [*harmful, *twins, *clean]
    empty = encode(pipe, [""]).features
    parts = []
    for at in range(0, len(texts), _BATCH):
        read = hed_prompt(hgr, encode(pipe, texts[at : at + _BATCH]), empty)
        parts.append((read.gates.cpu(), read.fired.cpu(), read.hed.cpu()))
        progress.text(min(at + _BATCH, len(texts)), len(texts))
    gates, fired, hed = (
        torch.cat(part).split([len(harmful), len(twins), len(clean)]) for part in zip(*parts, strict=True)
    )
    per_concept = {}
    for topic in held.topics:
        k = hgr.ids.index(topic.id)
        own = torch.tensor([topic.id in labels[text] for text in harmful])
        mine, rest = gates[0][own, k], torch.cat([gates[1][:, k], gates[2][:, k]])
        per_concept[topic.id] = {
            "held_out": int(own.sum()),
            "auroc_twins": auroc(mine, gates[1][:, k]),
            "auroc_clean": auroc(mine, gates[2][:, k]),
            "recall": _mean(fired[0][own, k]),
            "false_positives": _mean(fired[2][:, k]),
            "false_positives_at_95_recall": false_positives_at(0.95, mine, gates[2][:, k]) if len(mine) else math.nan,
            "ece": expected_calibration_error(
                torch.cat([mine, rest]), torch.cat([torch.ones(len(mine)), torch.zeros(len(rest))])
            ),
            "hed": _mean(hed[0][own]),
        }
    sides = {
        name: {"prompts": len(hed[i]), "flagged": _mean(fired[i].any(1)), "hed": _mean(hed[i])}
        for i, name in enumerate(("harmful", "twins", "clean"))
    }
    return {"concepts": per_concept, **sides}


def evaluate_pictures(
    pipe: Any,
    hgr: HGR,
    held: Pairs,
    *,
    count: int,
    steps: int,
    cfg: float,
    seed: int,
    mode: str,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """What SafeCFG does to `count` pictures of clean prompts and `count` of harmful ones, compared with the model's own
    guidance at the same seed. Latents are compared; nothing is decoded.

    `identical`, `difference`: for clean prompts, the share of latents that are equal bit for bit, and the mean absolute
    difference.
    `toward_twin`: for harmful prompts, the mean of |z_safe - z_twin| / |z_plain - z_twin|: 0 if the picture becomes
    that of the clean twin, 1 if it stays as far away.
    `evaluations`: of the denoiser, per picture and step, `plain` and `safe`.
    `time_ratio`: SafeCFG's time over the model's own, in this run.
    """
    safe = SafeCFG(pipe, hgr)
    pipe.set_progress_bar_config(disable=True)
    rng = random.Random(f"{seed}/evaluation")
    clean = _some(
        rng, [list(held.clean) or [text for text, found in concepts_by_text(held.pairs).items() if not found]], count
    )
    harmful = _some(rng, _single(held), count)
    tally = Tally(progress, 2 * len(clean) + 3 * len(harmful) + 1)

    def sample(text: str, i: int, **guided: Any) -> tuple[Tensor, float, int]:
        """A picture's latent (1, C, H, W), and the seconds and the evaluations of the denoiser that it took."""
        found = sample_counted(safe if guided else pipe, pipe.unet, text, steps=steps, cfg=cfg, seed=seed + i, **guided)
        tally.add(1)
        return found

    sample("", 0)  # the first run is slower, so it is not timed
    both = []  # (plain, safe) of clean prompts, then of harmful ones
    moved = []
    for i, text in [*enumerate(clean), *enumerate(text for text, _ in harmful)]:
        both.append((sample(text, i), sample(text, i, mode=mode)))
    for (i, (_, twin)), (plain, guided) in zip(enumerate(harmful), both[len(clean) :], strict=True):
        goal, *_ = sample(twin, i)
        if (distance := (plain[0] - goal).norm()) > 0:
            moved.append(((guided[0] - goal).norm() / distance).item())
    drift = [guided[0] - plain[0] for plain, guided in both[: len(clean)]]
    seconds, calls = ([sum(pair[side][item] for pair in both) for side in (0, 1)] for item in (1, 2))
    return {
        "clean": len(clean),
        "harmful": len(harmful),
        "identical": _mean([not d.any() for d in drift]),
        "difference": _mean([d.abs().mean() for d in drift]),
        "toward_twin": _mean(moved),
        "evaluations": {side: n / len(both) / steps for side, n in zip(("plain", "safe"), calls, strict=True)},
        "time_ratio": seconds[1] / seconds[0],
    }


def _single(held: Pairs) -> list[list[tuple[str, str]]]:
    """For each concept, (harmful, clean) of the pairs that have only this concept."""
    labels = concepts_by_text(held.pairs)
    found = {topic.id: [] for topic in held.topics}
    for pair in held.pairs:
        if len(labels[pair.harmful]) == 1 and not labels[pair.clean]:
            found[pair.concept].append((pair.harmful, pair.clean))
    return [each for each in found.values() if each]


def _some(rng: random.Random, groups: list[list[Any]], count: int) -> list[Any]:
    """Up to `count` items, taken from the groups in turn."""
    shuffled = [rng.sample(group, len(group)) for group in groups]
    rounds = max(map(len, shuffled), default=0)
    return [group[i] for i in range(rounds) for group in shuffled if i < len(group)][:count]


def _mean(values: Tensor | list[Any]) -> float:
    """The mean; NaN for no values."""
    return torch.as_tensor(values).double().mean().item()
