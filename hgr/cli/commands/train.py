"""Trains an HGR for the user's own model."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...training.settings import HGR_STAGE, HGRSettings, check_pairs
from .. import config
from ..outputs import check_name, save_result, try_to_write
from ..shared_options import MODEL, add_model, add_settings, defaults, settings_from
from .pairs import SOURCES, add_sources, chosen_pairs

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.hgr import HGR

log = logging.getLogger("safecfg")

_DEFAULTS = {**MODEL, "output": None, "work": Path("runs/train"), "latents": None, **SOURCES, **defaults(HGRSettings)}
_ADD = "to add one: python -m hgr probe --hgr {} --output NEW.safetensors, with the same model and concepts\n"


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "train",
        help="train an HGR for a model in diffusers' layout",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        description="Train an HGR for a model in diffusers' layout: of Stable Diffusion 1.x, 2.x or XL; with --losses "
        "text also of Stable Diffusion 3, Flux.1, Qwen-Image, PixArt, Sana or Wan. Ctrl-C keeps the work so far: run "
        "the same command again to resume. Several GPUs: accelerate launch --num_processes N -m hgr train ...; several "
        "processes on a CPU: accelerate launch --multi_gpu --num_processes N -m hgr train --device cpu ...",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.json",
        help='options by name, e.g. {"steps": 500, "concepts": ["violence"]}; the command line overrides them',
    )
    _options(parser)
    parser.set_defaults(run=_train)


def _options(parser: argparse.ArgumentParser) -> None:
    """All options except --config, without defaults, so that options given can be told from those not given."""
    add_model(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FILE.safetensors", help="the HGR; required; an existing file is not replaced"
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help=f"checkpoint and TensorBoard logs, default: {_DEFAULTS['work']}"
    )
    add_sources(parser)
    add_settings(parser, HGRSettings)
    parser.add_argument(
        "--latents",
        type=Path,
        metavar="FILE.safetensors",
        help='your own pictures to learn from: "latents" (N, C, H, W), scaled as the denoiser takes them; the '
        "probe still needs the model's own",
    )


def _train(given: argparse.Namespace) -> None:
    given = config.merged(given, _options, _DEFAULTS, switches=("demo",))
    check_name(given.output, "HGR")

    from ...core import file
    from ...training.hgr_report import hgr_report
    from ...training.train_hgr import train_hgr
    from ..inputs import check_latents
    from ..processes import launched, meet
    from ..work_folder import WorkFolder

    count = launched()
    settings = settings_from(given, HGRSettings, processes=count)
    pairs = chosen_pairs(given)
    check_pairs(pairs, settings)
    latents = _latents(given, settings)
    group = meet(given.device, count)
    if not group.main:
        log.setLevel(logging.WARNING)
    work = WorkFolder(given.work, HGR_STAGE, _depends(given, settings))

    from ...hosts.diffusers.denoiser import denoiser_of
    from ...hosts.diffusers.loading import load_pipeline, quiet
    from ...hosts.diffusers.prompts import encoder_family, encoder_of

    quiet()
    with_denoiser = settings.weights.needs_denoiser
    advice = "try a smaller --batch-size, fewer --pictures, or --losses text."
    with work.run(group, steps=settings.steps, learning_rate=settings.learning_rate, advice=advice) as watch:
        if group.main:
            try_to_write(given.output)
        pipe = load_pipeline(given.model, group.device, text_only=not with_denoiser)
        if latents is not None:
            check_latents(latents, given.latents, pipe.unet.config.in_channels)
        hgr = train_hgr(
            pairs,
            encoder_of(pipe),
            settings,
            family=encoder_family(pipe),
            work=given.work,
            device=group.device,
            denoiser=(lambda: denoiser_of(pipe, settings.seed)) if with_denoiser else None,
            latents=latents,
            processes=group.processes,
            progress=watch,
        )
        if group.main:
            report = hgr_report(hgr)
            watch.logs.done(report, _held_out(hgr))
            save_result(partial(file.save, hgr), given.output, work=given.work, what="HGR")
            print(f"{report}\n{'' if hgr.probe else _ADD.format(given.output)}\n{given.output}")
        group.wait()


def _latents(given: argparse.Namespace, settings: HGRSettings) -> Tensor | None:
    """The user's pictures (N, C, H, W), if there are any."""
    from ..inputs import read_latents

    if given.latents is None:
        if settings.weights.needs_denoiser and not settings.pictures:
            raise ValueError(
                f'--pictures is 0, but the losses "{settings.losses}" need some: let the model make them, '
                "or give --latents."
            )
        return None
    if not settings.weights.needs_denoiser:
        raise ValueError(f'--latents: the losses "{settings.losses}" use no pictures; choose others, or leave it out.')
    return read_latents(given.latents)


def _depends(given: argparse.Namespace, settings: HGRSettings) -> dict[str, Any]:
    """What the training depends on."""
    paths = {
        name: str(value.resolve()) if (value := getattr(given, name)) else None for name in ("model", "file", "latents")
    }
    return {name: getattr(given, name) for name in SOURCES} | paths | dataclasses.asdict(settings)


def _held_out(hgr: HGR) -> dict[str, float]:
    """The metrics on held-out prompts and pictures, by name."""
    metrics = hgr.training["metrics"]
    values = {"flagged_clean": metrics["flagged_clean"]}
    for id, found in metrics["concepts"].items():
        values |= {f"{id}/{name}": value for name, value in found.items()}
    for id, found in hgr.probe.training["metrics"].items() if hgr.probe else ():
        values |= {f"{id}/picture_{name}": value for name, value in found.items()}
    return {f"held_out/{name}": value for name, value in values.items()}
