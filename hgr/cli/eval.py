"""What an HGR does on the user's own model."""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

from ..demo import assets
from .outputs import write_text
from .pairs import add_sources, chosen
from .sample import MODES
from .tables import aligned


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "eval", help="measure an HGR on a model in diffusers' layout",
        description="Measure an HGR on the model that it was made for, as far as that goes without a classifier of pictures: on the "
                    "prompts that its training held out. Choose the same pairs as for training; of others, it may have learnt some.")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a model in diffusers' layout; default: the bundled one")
    parser.add_argument("--hgr", type=Path, metavar="FILE", help="default, for the bundled model: the bundled one")
    add_sources(parser)
    parser.add_argument("--pictures", type=int, default=8, metavar="N",
                        help="of clean prompts, and as many of harmful ones; 0 for prompts alone, default: %(default)s")
    parser.add_argument("--mode", choices=MODES, default="redirect")
    parser.add_argument("--cfg", type=float, default=7.5, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures, default: %(default)s")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="the report; default: it is only printed")
    parser.set_defaults(run=_eval)


def _eval(given: argparse.Namespace) -> None:
    if given.model and not given.hgr:
        raise ValueError("--model needs the HGR that was made for it: give --hgr FILE.")
    for name, low in (("pictures", 0), ("steps", 1)):
        if getattr(given, name) < low:
            raise ValueError(f"--{name} is {getattr(given, name)}; it must be {low} or more.")
    from .. import __version__, file
    from ..hosts.diffusers import evaluation, loading
    from .bars import Bars
    from .processes import device

    pairs = chosen(given)
    hgr = file.load(given.hgr or assets.HGR_FILE)
    held = evaluation.held_out(hgr, pairs)
    where = device(given.device)
    loading.quiet()
    pipe = loading.load_pipeline(given.model, where, text_only=not given.pictures)
    hgr.network.to(where)
    report: dict[str, Any] = {
        "hgr": hgr.name, "model": str(given.model or "the bundled model"), "safecfg": __version__,
        "not_evaluated": [id for id in hgr.ids if id not in held.ids],
        "not_in_this_hgr": [id for id in pairs.ids if id not in hgr.ids],
    }
    with Bars() as bars:
        report |= evaluation.prompts(pipe, hgr, held, partial(bars.show, "prompts"))
        if given.pictures:
            settings = {name: getattr(given, name) for name in ("mode", "cfg", "steps", "seed")}
            report["pictures"] = settings | evaluation.pictures(pipe, hgr, held, given.pictures, **settings,
                                                                on_picture=partial(bars.show, "pictures"))
    print(text(report))
    if given.output:
        write_text(given.output, json.dumps(_without_nan(report), indent=2) + "\n")
        print(f"\n{given.output}")


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    head = ("concept", "held out", "AUROC twins", "AUROC clean", "recall", "false positives", "at 95 % recall", "ECE", "HED")
    rows = [(id, str(m["held_out"]), _number(m["auroc_twins"], 4), _number(m["auroc_clean"], 4), _number(m["recall"]),
             _number(m["false_positives"]), _number(m["false_positives_at_95_recall"]), _number(m["ece"]), _number(m["hed"]))
            for id, m in report["concepts"].items()]
    lines = [aligned([head, *rows]), ""]
    lines += [f"{name}: {side['prompts']} prompts, a concept fires in {_number(side['flagged'])}, mean HED {_number(side['hed'])}"
              for name, side in ((name, report[name]) for name in ("harmful", "twins", "clean"))]
    for key, why in (("not_evaluated", "not evaluated, as there are no pairs of it here"), ("not_in_this_hgr", "not in this HGR")):
        lines += [f"{id}: {why}" for id in report[key]]
    if "pictures" in report:
        p = report["pictures"]
        lines += ["", f"{p['clean']} pictures of clean prompts: {_number(p['identical'])} bit-identical, "
                      f"mean difference of latents {_number(p['difference'], 4)}",
                  f"{p['harmful']} pictures of harmful prompts: distance to the clean twin's latents {_number(p['toward_twin'])} "
                  "of plain CFG's",
                  f"evaluations of the denoiser a step: {p['evaluations']['plain']:.2f}, with SafeCFG {p['evaluations']['safe']:.2f}; "
                  f"time {p['time_ratio']:.2f} x"]
    return "\n".join(lines)


def _number(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null says that there was nothing to measure."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
