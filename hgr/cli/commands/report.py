"""What SafeCFG does on the user's own model: a contact sheet, a table and a report."""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path

from ...core.atomic import replacing, write_text
from ...core.json_text import json_text
from ..checks import CFG, SEEDS, STEPS, STRENGTH, check_ranges
from ..inputs import items_from_file
from ..judges import JUDGES, load_judge
from ..outputs import try_to_write
from ..shared_options import add_guidance, add_hgr, add_model, hgr_file

REPORT = "report.json"


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "report",
        help="show what SafeCFG does on a model: plain, negative prompt and SafeCFG from the same noise",
        description="Draw every prompt from the same noise without SafeCFG, with a negative prompt that names the "
        "concepts, and with SafeCFG. Writes a contact sheet (PNG) and a report (JSON), and prints a table in words. "
        "Ctrl-C keeps the finished pictures: run the same command again to resume.",
    )
    add_model(parser)
    add_hgr(parser)
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="your own prompts, which come first: a .txt, one per line, or .csv"
    )
    parser.add_argument(
        "--per-concept",
        type=int,
        default=2,
        metavar="N",
        help="built-in prompts for each concept that SafeCFG knows, and as many clean ones, default: %(default)s",
    )
    parser.add_argument(
        "--pictures", type=int, default=1, metavar="N", help="pictures of each prompt, default: %(default)s"
    )
    add_guidance(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the first picture's noise, default: %(default)s")
    parser.add_argument("--cfg", type=float, default=7.5, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--width", type=int, metavar="PIXELS", help="default: the model's own")
    parser.add_argument("--height", type=int, metavar="PIXELS", help="default: the model's own")
    parser.add_argument(
        "--judge", choices=JUDGES, help='another judge than the HGR\'s own probe; needs pip install -e ".[judge]"'
    )
    parser.add_argument(
        "--no-blur", dest="blur", action="store_false", help="show on the sheet what may be harmful as it is"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("safecfg_report"), metavar="DIR", help="default: %(default)s"
    )
    parser.set_defaults(run=_report)


def _report(given: argparse.Namespace) -> None:
    source = hgr_file(given)
    check_ranges(
        given,
        per_concept=(0, 1000),
        pictures=(1, 1000),
        strength=STRENGTH,
        cfg=CFG,
        steps=STEPS,
        seed=SEEDS,
        **{side: (8, 8192) for side in ("width", "height") if getattr(given, side) is not None},
    )
    own = [item.prompt for item in items_from_file(given.prompts) if item.prompt] if given.prompts else []
    try_to_write(given.output / REPORT)
    judge = load_judge(given.judge) if given.judge else None  # what is not installed is said before the pictures
    import torch

    from ...core import file
    from ...core.fingerprint import fingerprint
    from ...data.showcase import showcase
    from ...detection.card import active_ids, summary_text, with_judge
    from ...detection.sheet import draw_card
    from ...hosts.diffusers.loading import load_pipeline, quiet
    from ...hosts.diffusers.report_card import report_card
    from ...training.work_files import unfinished
    from ..bars import Bars
    from ..processes import Interruption, meet
    from ..work_folder import Watched

    hgr = file.load(source)
    prompts = dict.fromkeys(own, False) | showcase(active_ids(hgr, given.concepts), given.per_concept)
    group = meet(given.device, 1)
    quiet()
    pipe = load_pipeline(given.model, group.device)
    hgr.network.to(group.device)
    names = ("pictures", "seed", "steps", "cfg", "width", "height", "strength", "mode", "concepts", "sensitivity")
    settings = {name: getattr(given, name) for name in names}
    parts = [getattr(pipe, name, None) for name in ("unet", "vae", "text_encoder", "text_encoder_2")]
    identity = fingerprint(source, *parts, pipe.scheduler.config, pipe.unet.dtype, settings, prompts)
    home = given.output / "unfinished"
    with Interruption(alone=True) as stop, Bars() as bars, unfinished(home / "card" / identity, home=home) as work:
        try:
            report, pictures = report_card(pipe, hgr, prompts, folder=work, progress=Watched(stop, bars), **settings)
        except torch.OutOfMemoryError:
            raise ValueError("the GPU's memory is full: lower --width and --height, or try --device cpu.") from None
        except KeyboardInterrupt:
            stop.leave(group, f"interrupted; {work} is kept. Run the same command again to resume.")
        if judge:
            name, says = judge
            report = with_judge(report, name, [says(picture.numpy()) for picture in pictures])
        written = [given.output / REPORT]
        for number, page in enumerate(draw_card(report, pictures, blur=given.blur), 1):
            written.append(given.output / f"sheet-{number}.png")
            with replacing(written[-1]) as part:
                page.save(part, format="PNG")
        write_text(written[0], json_text(report, indent=1) + "\n")
    for folder in (home / "card", home):
        with suppress(OSError):  # another card is unfinished there
            folder.rmdir()
    print(f"{summary_text(report)}\n\nin {given.output}: {', '.join(path.name for path in written)}")
