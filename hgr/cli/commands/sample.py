"""Samples one picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...core.atomic import replacing
from ...core.excerpt import excerpt
from ...data.textfile import INVALID
from ..checks import CFG, SEEDS, STEPS, STRENGTH, check_ranges
from ..outputs import try_to_write
from ..shared_options import add_guidance, add_hgr, add_model, hgr_file
from ..tables import aligned

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # by suffix, as Pillow names them


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("sample", help="sample one picture", description="Sample one picture with SafeCFG.")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--negative", default="", metavar="PROMPT")
    add_model(parser)
    add_hgr(parser)
    add_guidance(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cfg", type=float, metavar="X", help="default: the pipeline's own, 7.5 for the bundled model")
    parser.add_argument("--steps", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("safecfg.png"), metavar="FILE", help="default: %(default)s")
    parser.add_argument("--plain", action="store_true", help="the model's own guidance, without SafeCFG")
    parser.set_defaults(run=_sample)


def _sample(given: argparse.Namespace) -> None:
    _check(given)
    source = None if given.plain else hgr_file(given, instead=", or --plain to sample without it")
    import torch

    from ...hosts.diffusers.loading import load_pipeline, quiet
    from ...hosts.diffusers.pipeline import SafeCFG
    from ...hosts.diffusers.sampling import cfg_option
    from ..processes import device

    quiet()
    pipe = load_pipeline(given.model, device(given.device), for_people=True)
    if hasattr(pipe, "video_processor"):
        raise ValueError(f"{given.model}: makes videos; use SafeCFG in Python, as the README shows for pictures.")
    options = dict(
        negative_prompt=given.negative,
        num_inference_steps=given.steps,
        generator=torch.Generator().manual_seed(given.seed),
    )
    if given.cfg is not None:
        options[cfg_option(pipe)] = given.cfg
    rows: list[tuple[str, ...]] = []
    if source is None:
        images = pipe(given.prompt, **options).images
    else:
        safe = SafeCFG(pipe, source, strength=given.strength)
        limits = safe.hgr.at(given.sensitivity).thresholds.tolist()
        gates = safe.gates([given.prompt])[0].tolist()
        read = zip(safe.hgr.ids, gates, limits, strict=True)
        rows = [(excerpt(id), f"{gate:.3f}", "present" if gate >= limit else "") for id, gate, limit in read]
        chosen = {name: getattr(given, name) for name in ("mode", "concepts", "sensitivity")}
        images = safe(given.prompt, **chosen, **options).images
    with replacing(given.output) as part:
        images[0].save(part, format=FORMATS[given.output.suffix.lower()])
    if rows:
        print(aligned(rows))
    print(given.output)


def _check(given: argparse.Namespace) -> None:
    check_ranges(given, strength=STRENGTH, steps=STEPS, seed=SEEDS)
    if given.cfg is not None:
        check_ranges(given, cfg=CFG)
    if given.output.suffix.lower() not in FORMATS:
        raise ValueError(f"--output {excerpt(given.output)}: the name of a picture must end in {', '.join(FORMATS)}.")
    for name in ("prompt", "negative"):
        if INVALID.search(getattr(given, name)):
            raise ValueError(f'--{name} "{excerpt(getattr(given, name))}": this is not UTF-8 text.')
    try_to_write(given.output)
