"""`python -m scripts.make_demo`, from the repository's root: remake the bundled model, its classifier and its HGR."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from .stages import train_all


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m scripts.make_demo", description="Takes hours on a CPU; run it again to resume."
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/demo"), metavar="DIR", help="checkpoints, default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/demo/output"),
        metavar="DIR",
        help="the finished files, default: %(default)s; hgr/demo to replace the bundled ones",
    )
    given = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train_all(given.work, seed=given.seed, device=device, output=given.output)


main()
