"""Detects concepts in lists of prompts and in folders of pictures."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.excerpt import excerpt
from ..checks import SEEDS, check_ranges
from ..detect_results import PartialResults, Row, failed, summary, write_results
from ..inputs import Item, items_from_file, items_from_folder
from ..shared_options import add_hgr, add_model, add_sensitivity, hgr_file
from ..tables import aligned

if TYPE_CHECKING:
    from ...hosts.diffusers.detection import Detector


log = logging.getLogger("safecfg")


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "detect",
        help="find harmful prompts and pictures, with a model in diffusers' layout",
        description="Judge prompts, pictures, or pictures with their prompts. An item that cannot be read is flagged, "
        "and the exit code is then 1. Ctrl-C keeps the results so far: run the same command again to resume. For "
        "several processes, use accelerate launch, as for train.",
    )
    add_model(parser)
    add_hgr(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='a .txt, one prompt per line; or a .csv with a column "prompt" and, for pictures with their prompts, '
        '"image"',
    )
    what.add_argument("--images", type=Path, metavar="DIR", help="pictures: PNG, JPEG, WebP, also in subfolders")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="a .csv, or a .json with the whole report"
    )
    parser.add_argument(
        "--concepts",
        default="",
        metavar="JSON",
        help="0 leaves a concept out, e.g. '{\"skull\": 0}'; default: all count",
    )
    add_sensitivity(parser)
    parser.add_argument(
        "--timesteps",
        type=int,
        default=2,
        metavar="N",
        help="noise levels at which a picture is evaluated with its prompt, default: %(default)s",
    )
    parser.add_argument(
        "--samples", type=int, default=1, metavar="N", help="draws of noise at each level, default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise, default: %(default)s")
    parser.set_defaults(run=_detect)


def _detect(given: argparse.Namespace) -> int:
    source = hgr_file(given)
    _check(given)
    found = items_from_file(given.prompts) if given.prompts else items_from_folder(given.images)
    keys = [item.key for item in found]
    import torch

    from ... import __version__
    from ...core import file
    from ...core.fingerprint import fingerprint
    from ...detection.judge import trained_size
    from ...hosts.diffusers.detection import Detector
    from ...hosts.diffusers.loading import load_pipeline, quiet
    from ..bars import Bars
    from ..processes import Interruption, launched, meet

    hgr = file.load(source)
    pictures = any(item.image for item in found)
    if pictures:
        trained_size(hgr)
    count = launched()
    group = meet(given.device, count)
    quiet()
    if not group.main:
        log.setLevel(logging.WARNING)
    hgr.network.to(group.device)
    detector = Detector(
        load_pipeline(given.model, group.device, text_only=not pictures),
        hgr,
        concepts=given.concepts,
        sensitivity=given.sensitivity,
        timesteps=given.timesteps,
        samples=given.samples,
        seed=given.seed,
    )
    ids = [id for id, on in zip(hgr.ids, detector.on, strict=True) if on]
    partial = PartialResults(
        given.output,
        {
            "safecfg": __version__,
            "hgr": fingerprint(source),
            "model": str(given.model.resolve()) if given.model else None,
            "concepts": ids,
            **{name: getattr(given, name) for name in ("sensitivity", "timesteps", "samples", "seed")},
        },
    )
    # what could not be read before may be readable now
    done = {key: row for key, row in partial.rows().items() if not row["error"]}
    group.wait()  # until all have read the rows that the main process is about to gather
    if group.main:
        partial.gather(done)
    group.wait()
    rest = [(key, item) for key, item in dict(zip(keys, found, strict=True)).items() if key not in done]
    mine = rest[group.processes.rank :: count]
    with Interruption(alone=count == 1) as stop, Bars(group.main) as bars:
        try:
            with partial.adding(group.processes.rank) as keep:
                for number, (key, item) in enumerate(mine, 1):
                    if stop.asked:
                        raise KeyboardInterrupt
                    keep(key, _row(detector, item))
                    bars.show("items", number, len(mine))
            group.wait()
        except torch.OutOfMemoryError:
            raise ValueError("the GPU's memory is full: close other programs on it, or try --device cpu.") from None
        except (KeyboardInterrupt, RuntimeError):  # RuntimeError if another process has left first
            stop.leave(group, f"interrupted; {partial.path()} is kept. Run the same command again to resume.")
    errors = False
    if group.main:
        rows = partial.rows()
        if lost := sum(key not in rows for key in keys):
            raise ValueError(f"there is no result for {lost} items: give all processes a folder that all can write to.")
        finished = [rows[key] for key in keys]
        write_results(given.output, finished, ids)
        partial.remove()
        print(f"{aligned(summary(finished, ids))}\n\n{given.output}")
        errors = any(row["error"] for row in finished)
    group.wait()
    return int(errors)


def _check(given: argparse.Namespace) -> None:
    if given.output.suffix.lower() not in (".csv", ".json"):
        raise ValueError(f"--output {excerpt(given.output)}: give a name that ends in .csv or .json.")
    if given.prompts and given.output.resolve() == given.prompts.resolve():
        raise ValueError(f"--output {excerpt(given.output)}: this is the file of the prompts; give another name.")
    check_ranges(given, timesteps=(1, 16), samples=(1, 16), seed=SEEDS)


def _row(detector: Detector, item: Item) -> Row:
    from ...core.hgr import HGRError
    from ...hosts.diffusers.picture_file import PictureError, read_picture

    try:
        report = detector(item.prompt, read_picture(item.image) if item.image else None)
    except (PictureError, HGRError) as error:
        log.warning("%s: %s", excerpt(item.name), error)
        return failed(item.name, str(error))
    return {"item": item.name, **report["items"][0], "error": None}
