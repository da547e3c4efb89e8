"""The bundled model with and without SafeCFG."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..checks import SEEDS, STEPS, check_ranges
from ..tables import aligned


def add(commands: argparse._SubParsersAction) -> None:
    demo = commands.add_parser(
        "demo", help="sample the bundled tiny model with and without SafeCFG, and tabulate the results"
    )
    demo.add_argument("--output", type=Path, default=Path("safecfg_demo"), metavar="DIR", help="default: %(default)s")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--steps", type=int, default=16, help="DDIM steps, default: %(default)s")
    demo.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: cpu, which is fast enough")
    demo.set_defaults(run=_demo)


def _demo(given: argparse.Namespace) -> None:
    check_ranges(given, steps=STEPS, seed=SEEDS)
    from .. import demo_sheet
    from ..processes import device

    report = demo_sheet.run(given.output, seed=given.seed, steps=given.steps, device=device(given.device or "cpu"))
    print(aligned(demo_sheet.table(report)))
    print(f"\nin {given.output}: {demo_sheet.PICTURE}, {demo_sheet.REPORT}")
