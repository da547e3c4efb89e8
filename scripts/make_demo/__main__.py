"""`python -m scripts.make_demo`, from the repository's root: remake the bundled model, its classifier and its HGR."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from hgr.hosts.diffusers.demo import load_demo_pipeline

from .stages import train_all, train_demo_hgr


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
    parser.add_argument("--hgr-only", action="store_true", help="only the HGR, for the bundled model")
    given = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    torch.set_float32_matmul_precision("high")
    if given.hgr_only:
        train_demo_hgr(load_demo_pipeline(), given.work, seed=given.seed, output=given.output)
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train_all(given.work, seed=given.seed, device=device, output=given.output)


main()
