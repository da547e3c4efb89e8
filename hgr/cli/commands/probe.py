"""Adds a picture probe to an HGR that was trained without one."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...training.settings import HELD_OUT, MIN_PICTURES, HGRSettings, as_share, check_rate
from ..checks import check_ranges
from ..outputs import check_name, try_to_write
from ..shared_options import add_model
from .pairs import add_sources, chosen_pairs

if TYPE_CHECKING:
    from ...core.hgr import HGR
    from ...data.pairs import Pairs


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "probe",
        help="make an HGR detect concepts in pictures too",
        description="Add a picture probe to an HGR, or replace it; the rest of the file stays the same. The model "
        "makes pictures from pairs of the HGR's concepts: choose those of its training. 256 pictures take about 8,000 "
        "evaluations of the denoiser.",
    )
    parser.add_argument("--hgr", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE.safetensors",
        help="the HGR with its probe; an existing file is not replaced",
    )
    add_model(parser)
    add_sources(parser)
    parser.add_argument(
        "--pictures",
        type=int,
        default=HGRSettings.pictures,
        metavar="N",
        help="pictures that the model makes, default: %(default)s",
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--false-positive-rate",
        type=float,
        metavar="PERCENT",
        help="percent of clean pictures in which any concept may be found, default: that of the HGR's training",
    )
    parser.set_defaults(run=_probe)


def _probe(given: argparse.Namespace) -> None:
    check_name(given.output, "HGR")
    check_ranges(given, pictures=(MIN_PICTURES, 10**6))
    import torch

    from ...core import file
    from ...core.fingerprint import fingerprint
    from ...data.examples import Examples
    from ...hosts.diffusers.denoiser import denoiser_of
    from ...hosts.diffusers.loading import load_pipeline, quiet
    from ...hosts.diffusers.prompts import encode
    from ...training.pictures import paint_pairs
    from ...training.train_probe import train_probe
    from ...training.work_files import hold, log_freed, sweep
    from ..bars import Bars
    from ..processes import device

    hgr = file.load(given.hgr)
    rate = _rate(given, hgr)
    training, _ = _of(hgr, chosen_pairs(given)).split(HELD_OUT, given.seed)
    examples = Examples(training, given.seed)
    where = device(given.device)
    quiet()
    # pictures of another model must not be used as this one's
    made_for = fingerprint(given.model and given.model.resolve().as_posix(), given.seed)
    canvas = given.output.with_name(f"{given.output.name}.pictures-{made_for}.safetensors")
    names = rf"{re.escape(given.output.name)}\.pictures-\w+\.safetensors"
    lock = given.output.with_name(f"{given.output.name}.lock")
    taken = f"--output {given.output} is being made by another process: wait for it, or give another name."
    with hold(lock, taken), Bars() as bars:
        log_freed(sweep(canvas.parent, resumed=[canvas], names=names), canvas.parent)
        try_to_write(given.output)
        pipe = load_pipeline(given.model, where)
        hgr.network.to(where)
        with torch.no_grad():
            hgr.check(*encode(pipe, [""])[:2])  # now, not after all pictures are made
        denoiser = denoiser_of(pipe, given.seed)
        pictures = paint_pairs(denoiser, examples, canvas, count=given.pictures, seed=given.seed, progress=bars)
        hgr.probe = train_probe(
            hgr,
            denoiser,
            pictures,
            prompts=lambda rows: encode(pipe, [pictures.texts[i] for i in rows]),
            rate=rate,
            seed=given.seed,
            progress=bars,
        )
        if hgr.probe is None:
            canvas.unlink(missing_ok=True)
            raise ValueError(
                f"{given.output} is not written: there are too few pictures for a probe. Give more --pictures."
            )
        half = all(torch.equal(x, x.half().float()) for x in hgr.network.state_dict().values())
        file.save(hgr, given.output, torch.float16 if half else torch.float32)
        canvas.unlink(missing_ok=True)
    found = hgr.probe.training["metrics"]
    for concept in hgr.concepts:
        m = found[concept.id]
        print(f"{concept.label}: {m['recall']:.1%} of {m['pictures']} pictures found, AUROC {m['auroc']:.4f}")
    print(f"\n{given.output}")


def _rate(given: argparse.Namespace, hgr: HGR) -> float:
    """The false-positive rate as a share."""
    if given.false_positive_rate is not None:
        check_rate(given.false_positive_rate)
        return as_share(given.false_positive_rate)
    rate = hgr.training.get("false_positive_rate")
    if type(rate) is not float:
        raise ValueError(
            f"{hgr.name} does not name one false-positive rate that it was trained for: give --false-positive-rate."
        )
    return rate


def _of(hgr: HGR, pairs: Pairs) -> Pairs:
    """The pairs of the HGR's concepts. Raises ValueError if a concept has none."""
    if lacking := [id for id in hgr.ids if not pairs.of(id)]:
        raise ValueError(f"there are no pairs of {', '.join(lacking)} here: give those that {hgr.name} was trained on.")
    return replace(
        pairs,
        topics=tuple(topic for topic in pairs.topics if topic.id in hgr.ids),
        pairs=tuple(pair for pair in pairs.pairs if pair.concept in hgr.ids),
    )
