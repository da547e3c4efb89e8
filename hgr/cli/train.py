"""Training an HGR for the user's own model."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import config
from .outputs import check_name, save, try_to_write
from .pairs import SOURCES, add_sources, chosen

if TYPE_CHECKING:
    from torch import Tensor

    from ..redirector import HGR
    from ..training import Settings

log = logging.getLogger("safecfg")

# of hgr.training, which would import torch
SETTINGS = {"steps": 800, "batch": 32, "lr": 1.5e-3, "seed": 0, "losses": "attention", "false_positive_rate": 0.01, "width": 128,
            "depth": 2, "pictures": 256}
LOSSES = ("text", "attention", "attention and score")

_DEFAULTS = {"model": None, "output": None, "work": Path("runs/train"), "latents": None, "device": None, **SOURCES, **SETTINGS}
_STAGE = "hgr"  # the core's name for the checkpoint
_ADD = "to add one: python -m hgr probe --hgr {} --output NEW.safetensors, with the same model and concepts\n"


def add(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser(
        "train", help="train an HGR for a model in diffusers' layout", argument_default=argparse.SUPPRESS, allow_abbrev=False,
        description="Train an HGR for a model of Stable Diffusion 1.x, 2.x or XL in diffusers' layout. Ctrl-C keeps what is done: the same "
                    "command goes on from there. Several GPUs: accelerate launch --num_processes N -m hgr train ...; several processes "
                    "on a CPU: accelerate launch --multi_gpu --num_processes N -m hgr train --device cpu ...")
    train.add_argument("--config", type=Path, metavar="FILE.json",
                       help="options by name, e.g. {\"steps\": 500, \"concepts\": [\"violence\"]}; those of the command line win")
    _options(train)
    train.set_defaults(run=_train)


def _options(parser: argparse.ArgumentParser) -> None:
    """All options but --config; without defaults of their own, so that those given can be told from those not given."""
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="a model in diffusers' layout; default: the bundled one")
    add("--output", type=Path, metavar="FILE.safetensors", help="the HGR; needed; a file that is there already is not replaced")
    add("--work", type=Path, metavar="DIR", help=f"checkpoint and TensorBoard logs, default: {_DEFAULTS['work']}")
    add_sources(parser)
    add("--losses", choices=LOSSES, help=f"\"text\" needs the text encoder alone, default: {SETTINGS['losses']}")
    add("--steps", type=int, help=f"default: {SETTINGS['steps']}")
    add("--batch", type=int, help=f"harmful prompts a step in each process, with as many clean ones, default: {SETTINGS['batch']}")
    add("--lr", type=float, help=f"learning rate, default: {SETTINGS['lr']}")
    add("--seed", type=int, help=f"default: {SETTINGS['seed']}")
    add("--false-positive-rate", type=float, metavar="RATE",
        help=f"share of clean prompts in which any concept may fire, default: {SETTINGS['false_positive_rate']}")
    add("--width", type=int, help=f"of the HGR's network, default: {SETTINGS['width']}")
    add("--depth", type=int, help=f"of the HGR's network, default: {SETTINGS['depth']}")
    add("--pictures", type=int, metavar="N",
        help=f"that the model makes, to learn from and to train the picture probe on; 0 with --latents for no probe, "
             f"default: {SETTINGS['pictures']}")
    add("--latents", type=Path, metavar="FILE.safetensors",
        help="your own pictures to learn from: \"latents\" (N, C, H, W), scaled as the denoiser takes them; the probe needs the model's")
    add("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")


def _train(given: argparse.Namespace) -> None:
    given = _merged(given)
    check_name(given.output, "HGR")

    from .. import file, training
    from .inputs import check_latents
    from .processes import join, launched
    from .work import Work

    count = launched()
    settings = training.Settings(**{name: getattr(given, name) for name in SETTINGS})
    settings = dataclasses.replace(settings, batch=settings.batch * count)
    pairs = chosen(given)
    training.check(pairs, settings)
    latents = _latents(given, settings)
    group = join(given.device, count)
    if not group.main:
        log.setLevel(logging.WARNING)
    work = Work(given.work, _STAGE, _depends(given, settings))
    work.claim(group)
    if group.main:
        try_to_write(given.output)

    from ..hosts.diffusers import loading
    from ..hosts.diffusers import training as host

    loading.quiet()
    weights = training.LOSSES[settings.losses]
    with_denoiser = bool(weights.attention or weights.score)
    pipe = loading.load_pipeline(given.model, group.device, text_only=not with_denoiser)
    if latents is not None:
        check_latents(latents, given.latents, pipe.unet.config.in_channels)
    with work.run(group, settings.steps, settings.lr, "try a smaller --batch, fewer --pictures, or --losses text.") as watch:
        hgr = training.train(pairs, host.encoder(pipe), host.family(pipe), settings, given.work, group.device,
                             (lambda: host.denoiser(pipe, settings.seed)) if with_denoiser else None, latents, group.processes,
                             watch.count("prompts"), watch.count("pictures"), watch.step)
        if group.main:
            report = training.report(hgr)
            watch.logs.done(report, _held_out(hgr))
            save(partial(file.save, hgr), given.output, given.work, "HGR")
            print(f"{report}\n{'' if hgr.probe else _ADD.format(given.output)}\n{given.output}")
        group.wait()


def _merged(given: argparse.Namespace) -> argparse.Namespace:
    """The defaults, replaced by the configuration file's values, replaced by the command line's."""
    options = vars(given)
    if "config" in options:
        options = config.read(given.config, _options, list(_DEFAULTS), ["demo"]) | options
    return argparse.Namespace(**(_DEFAULTS | options))


def _latents(given: argparse.Namespace, settings: Settings) -> Tensor | None:
    """The user's pictures (N, C, H, W), if there are any."""
    from .inputs import read_latents

    if given.latents is None:
        if settings.losses != "text" and not settings.pictures:
            raise ValueError(f"--pictures is 0, but the losses \"{settings.losses}\" look at some: let the model make any, or give "
                             "--latents.")
        return None
    if settings.losses == "text":
        raise ValueError("--latents: the losses \"text\" look at no pictures; choose others, or leave it out.")
    return read_latents(given.latents)


def _depends(given: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """What the training depends on."""
    paths = {name: str(value.resolve()) if (value := getattr(given, name)) else None for name in ("model", "file", "latents")}
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
