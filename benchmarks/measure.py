"""What benchmarks share: rates and means with 95 % intervals, distances between sets, results in files and tables;
how many prompts a training encodes."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hgr.data.examples import Examples
from hgr.data.pairs import Pairs
from hgr.training.batches import Mixture
from hgr.training.settings import HELD_OUT, HGRSettings
from hgr.training.train_hgr import HeldOut

log = logging.getLogger("benchmark")

_Z = 1.96


def rate(flags: Tensor) -> dict[str, float]:
    """The share of true flags (N,) with Wilson's 95 % interval; NaN where there are none to count."""
    n, share = len(flags), flags.double().mean().item()
    if not n:
        return {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * (share * (1 - share) / n + _Z**2 / (4 * n**2)) ** 0.5
    return {"value": share, "low": max(0.0, middle - half), "high": min(1.0, middle + half), "n": n}


def mean(values: Tensor) -> dict[str, float]:
    """The mean of values (N,) with its normal 95 % interval."""
    n, middle = len(values), values.double().mean().item()
    half = _Z * values.double().std().item() / n**0.5
    return {"value": middle, "low": middle - half, "high": middle + half, "n": n}


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two sets of features (N, F) taken as normal distributions: FID, in a classifier of one's
    own."""
    a, b = a.double(), b.double()
    first, second = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(first @ second).real.clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + first.trace() + second.trace() - 2 * root
    return max(0.0, distance.item())


def prompts_of(pairs: Pairs, settings: HGRSettings) -> int:
    """How many different prompts the training of an HGR encodes."""
    training, held = pairs.split(HELD_OUT, settings.seed)
    mixture = Mixture(Examples(training, settings.seed), training, settings.seed)
    return len({*mixture.texts, *HeldOut.of(held, settings.rate).texts})


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured before, or is measured now."""
    if not path.exists():
        path.write_text(json.dumps(make()))
        log.info("%s: done", path.stem)
    return json.loads(path.read_text())


def with_interval(cell: dict[str, float]) -> str:
    return f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers in the columns after the first."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_between(path: Path, name: str, text: str) -> None:
    """Replace what stands in a page between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; a page without them gets
    them at its end."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    page = path.read_text() if path.exists() else "# Benchmarks\n"
    if begin not in page:
        page = f"{page.rstrip()}\n\n{begin}\n{end}\n"
    before, rest = page.split(begin, 1)
    if end not in rest:
        raise ValueError(f"{path} has {begin} but not {end} after it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{begin}\n{text.strip()}\n{end}{rest.split(end, 1)[1]}")
