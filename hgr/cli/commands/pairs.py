"""Prompt pairs: the options that choose them for training and evaluation, and the command that writes them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.excerpt import excerpt
from ...data.sources import PER_CONCEPT

if TYPE_CHECKING:
    from ...data.pairs import Pairs


# the options' defaults
SOURCES = {"concepts": None, "style": None, "own": None, "file": None, "demo": False, "limit": None}


def add(commands: argparse._SubParsersAction) -> None:
    pairs = commands.add_parser(
        "pairs",
        help="show prompt pairs for training an HGR, and write them to a file",
        description="Mix prompt pairs for training an HGR from the chosen sources, show them, and write them to a CSV.",
    )
    add_sources(pairs)
    pairs.add_argument("--output", type=Path, metavar="FILE.csv", help="default: write nothing")
    pairs.set_defaults(run=_pairs)


def add_sources(parser: argparse.ArgumentParser) -> None:
    """The options that choose pairs, `SOURCES`; without any, `chosen_pairs` raises."""
    parser.add_argument(
        "--concepts", nargs="+", action="extend", metavar="ID", help="built-in concepts, e.g. violence hate, or all"
    )
    parser.add_argument(
        "--style", action="append", metavar="NAME", help="an artist or a style; may be given more than once"
    )
    parser.add_argument(
        "--own",
        action="append",
        metavar='"NAME: WORD, WORD"',
        help="a concept of your own and a few words for it; may be given more than once",
    )
    parser.add_argument(
        "--file", type=Path, help="a CSV or JSONL file with harmful, clean and concept in every row; all of it is used"
    )
    parser.add_argument("--demo", action="store_true", help="the demo world's pairs, for the bundled model")
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help=f"pairs per concept, default: {PER_CONCEPT} of the library, fewer of others",
    )


def chosen_pairs(given: argparse.Namespace) -> Pairs:
    """The mixture of pairs that the options choose."""
    from ...data.library import CATEGORIES
    from ...data.sources import gather

    concepts = CATEGORIES if given.concepts == ["all"] else given.concepts or ()
    return gather(concepts, given.style or (), given.own or (), demo=given.demo, file=given.file, limit=given.limit)


def _pairs(given: argparse.Namespace) -> None:
    from ...data.pair_file import write_pairs
    from ...data.pairs import describe_pairs

    if given.output and given.output.suffix.lower() != ".csv":
        raise ValueError(f"--output {excerpt(given.output)}: pairs are written as CSV; give a name that ends in .csv.")
    found = chosen_pairs(given)
    if given.output:
        write_pairs(found, given.output)
    print(describe_pairs(found) + (f"\n\n{given.output}" if given.output else ""))
