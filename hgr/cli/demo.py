"""The bundled model: its demonstration, and how it is made anew."""

from __future__ import annotations

import argparse
from pathlib import Path

from .tables import aligned


def add(commands: argparse._SubParsersAction) -> None:
    demo = commands.add_parser("demo", help="sample the bundled tiny model with and without SafeCFG, judge and tabulate it")
    demo.add_argument("--output", type=Path, default=Path("safecfg_demo"), metavar="DIR", help="default: %(default)s")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--steps", type=int, default=16, help="DDIM steps, default: %(default)s")
    demo.set_defaults(run=_demo)

    train = commands.add_parser("demo-train", help="make the bundled model, its classifier and its HGR anew (hours on a CPU)")
    train.add_argument("--work", type=Path, default=Path("runs/demo"), metavar="DIR", help="checkpoints, default: %(default)s")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--output", type=Path, default=Path("runs/demo/output"), metavar="DIR",
                       help="the finished files, default: %(default)s; hgr/demo to replace the bundled ones")
    train.set_defaults(run=_demo_train)


def _demo(given: argparse.Namespace) -> None:
    from ..demo import show

    report = show.run(given.output, given.seed, given.steps)
    print(aligned(show.table(report)))
    print(f"\nin {given.output}: {show.PICTURE}, {show.REPORT}")


def _demo_train(given: argparse.Namespace) -> None:
    from ..demo import train

    train.main(given.work, given.seed, given.output)
