"""Measures an HGR on the user's own model."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from ...core.atomic import write_text
from ...core.json_text import json_text
from ...core.options import DEFAULT_MODE, MODES
from ..checks import CFG, SEEDS, STEPS, check_ranges
from ..outputs import try_to_write
from ..shared_options import add_hgr, add_model, hgr_file
from ..tables import aligned
from .pairs import add_sources, chosen_pairs


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "eval",
        help="measure an HGR on a model in diffusers' layout",
        description="Measure an HGR on the model that it was made for, as far as that is possible without a classifier "
        "of pictures, on the prompts that its training held out. Choose the same pairs as for training: some of any "
        "others may have been trained on.",
    )
    add_model(parser)
    add_hgr(parser)
    add_sources(parser)
    parser.add_argument(
        "--pictures",
        type=int,
        default=8,
        metavar="N",
        help="pictures of clean prompts, and as many of harmful ones; 0 for only prompts, default: %(default)s",
    )
    parser.add_argument("--mode", choices=MODES, default=DEFAULT_MODE)
    parser.add_argument("--cfg", type=float, default=7.5, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures, default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="the report; default: only print it")
    parser.set_defaults(run=_eval)


def _eval(given: argparse.Namespace) -> None:
    source = hgr_file(given)
    check_ranges(given, pictures=(0, 10**6), cfg=CFG, steps=STEPS, seed=SEEDS)
    if given.output:
        try_to_write(given.output)
    from ... import __version__
    from ...core import file
    from ...hosts.diffusers.evaluation import evaluate_pictures, evaluate_prompts, held_out
    from ...hosts.diffusers.loading import load_pipeline, quiet
    from ..bars import Bars
    from ..processes import device

    pairs = chosen_pairs(given)
    hgr = file.load(source)
    held = held_out(hgr, pairs)
    where = device(given.device)
    quiet()
    pipe = load_pipeline(given.model, where, text_only=not given.pictures)
    hgr.network.to(where)
    report: dict[str, Any] = {
        "hgr": hgr.name,
        "model": str(given.model or "the bundled model"),
        "safecfg": __version__,
        "not_evaluated": [id for id in hgr.ids if id not in held.ids],
        "not_in_this_hgr": [id for id in pairs.ids if id not in hgr.ids],
    }
    with Bars() as bars:
        report |= evaluate_prompts(pipe, hgr, held, progress=bars)
        if given.pictures:
            settings = {name: getattr(given, name) for name in ("mode", "cfg", "steps", "seed")}
            found = evaluate_pictures(pipe, hgr, held, count=given.pictures, **settings, progress=bars)
            report["pictures"] = settings | found
    if given.output:
        write_text(given.output, json_text(report, indent=2) + "\n")
    print(text(report) + (f"\n\n{given.output}" if given.output else ""))


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    head = (
        "concept",
        "held out",
        "AUROC twins",
        "AUROC clean",
        "recall",
        "false positives",
        "at 95 % recall",
        "ECE",
        "HED",
    )
    rows = [
        (
            id,
            str(m["held_out"]),
            _number(m["auroc_twins"], 4),
            _number(m["auroc_clean"], 4),
            _number(m["recall"]),
            _number(m["false_positives"]),
            _number(m["false_positives_at_95_recall"]),
            _number(m["ece"]),
            _number(m["hed"]),
        )
        for id, m in report["concepts"].items()
    ]
    lines = [aligned([head, *rows]), ""]
    lines += [
        f"{name}: {side['prompts']} prompts, a concept fires in {_number(side['flagged'])}, "
        f"mean HED {_number(side['hed'])}"
        for name, side in ((name, report[name]) for name in ("harmful", "twins", "clean"))
    ]
    for key, why in (
        ("not_evaluated", "not evaluated, because there are no pairs of it here"),
        ("not_in_this_hgr", "not in this HGR"),
    ):
        lines += [f"{id}: {why}" for id in report[key]]
    if "pictures" in report:
        p = report["pictures"]
        lines += [
            "",
            f"{p['clean']} pictures of clean prompts: {_number(p['identical'])} bit-identical, "
            f"mean difference of latents {_number(p['difference'], 4)}",
            f"{p['harmful']} pictures of harmful prompts: distance to the clean twin's latents "
            f"{_number(p['toward_twin'])} of plain CFG's",
            f"evaluations of the denoiser per step: {p['evaluations']['plain']:.2f}, "
            f"with SafeCFG {p['evaluations']['safe']:.2f}; time {p['time_ratio']:.2f} x",
        ]
    return "\n".join(lines)


def _number(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
