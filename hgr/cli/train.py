"""Training an HGR for the user's own model."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import config
from .outputs import check_hgr, try_to_write, write_text
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
    check_hgr(given.output)
    import torch

    from .. import training
    from ..loop import checkpoint_file
    from .bars import Bars
    from .processes import Interruption, join, launched

    count = launched()
    settings = training.Settings(**{name: getattr(given, name) for name in SETTINGS})
    settings = dataclasses.replace(settings, batch=settings.batch * count)
    pairs = chosen(given)
    training.check(pairs, settings)
    latents = _latents(given, settings)
    group = join(given.device, count)
    if not group.main:
        log.setLevel(logging.WARNING)
    checkpoint = checkpoint_file(given.work, _STAGE)
    _claim(given, settings, checkpoint)
    group.wait()  # the note is what the others have just compared themselves with
    if group.main:
        _note(given, settings)
        try_to_write(given.output)

    from ..hosts.diffusers import loading
    from ..hosts.diffusers import training as host

    loading.quiet()
    weights = training.LOSSES[settings.losses]
    with_denoiser = bool(weights.attention or weights.score)
    pipe = loading.load_pipeline(given.model, group.device, text_only=not with_denoiser)
    if latents is not None and latents.shape[1] != pipe.unet.config.in_channels:
        raise ValueError(f"{given.latents.name}: the latents have {latents.shape[1]} channels, the model's {pipe.unet.config.in_channels}.")

    def on_text(done: int, total: int) -> None:
        bars.show("prompts", done, total)
        if stop.asked:
            raise KeyboardInterrupt

    def on_picture(done: int, total: int) -> None:
        bars.show("pictures", done, total)
        if stop.asked:
            raise KeyboardInterrupt

    def on_step(step: int, loss: float) -> None:
        bars.show("steps", step, settings.steps, f"loss {loss:.4f}")
        logs.step(step, loss)
        if group.any(stop.asked):
            raise KeyboardInterrupt

    with Interruption(alone=count == 1) as stop, Bars(group.main) as bars, _Logs(settings, given.work, group.main) as logs:
        try:
            hgr = training.train(pairs, host.encoder(pipe), host.family(pipe), settings, given.work, group.device,
                                 (lambda: host.denoiser(pipe, settings.seed)) if with_denoiser else None, latents, group.processes,
                                 on_text, on_picture, on_step)
            if group.main:
                logs.done(hgr)
                _save(hgr, given.output, given.work)
                print(f"{training.report(hgr)}\n{'' if hgr.probe else _ADD.format(given.output)}\n{given.output}")
            group.wait()
        except torch.OutOfMemoryError:
            raise ValueError("the GPU's memory is full: try a smaller --batch, fewer --pictures, or --losses text.") from None
        except FloatingPointError as error:
            why = str(error).removeprefix(f"{_STAGE}: ")
            # another learning rate is another training
            raise FloatingPointError(f"{why} That needs another --work, too." if checkpoint.exists() else why) from None
        except (KeyboardInterrupt, RuntimeError):  # the latter where another process has left first
            kept = next((path for path in (checkpoint, *_painted(given.work)) if path.exists()), None)
            stop.leave(group, f"interrupted; {kept} is kept, the same command goes on from there." if kept
                       else "interrupted before the first step; there is nothing to go on from.")


def _merged(given: argparse.Namespace) -> argparse.Namespace:
    """The defaults, replaced by the configuration file's values, replaced by the command line's."""
    options = vars(given)
    if "config" in options:
        options = config.read(given.config, _options, list(_DEFAULTS), ["demo"]) | options
    return argparse.Namespace(**(_DEFAULTS | options))


def _save(hgr: HGR, path: Path, work: Path) -> None:
    """Write the HGR; where its place has gone or is full meanwhile, in the working folder."""
    from .. import file

    try:
        file.save(hgr, path)
    except OSError as error:
        spare = work / path.name
        file.save(hgr, spare)
        raise OSError(f"{path} cannot be written ({error.strerror}): the HGR is in {spare}.") from None


def _latents(given: argparse.Namespace, settings: Settings) -> Tensor | None:
    """The user's pictures (N, C, H, W), if there are any."""
    if given.latents is None:
        if settings.losses != "text" and not settings.pictures:
            raise ValueError(f"--pictures is 0, but the losses \"{settings.losses}\" look at some: let the model make any, or give "
                             "--latents.")
        return None
    from safetensors import SafetensorError, safe_open

    name = given.latents.name
    if settings.losses == "text":
        raise ValueError("--latents: the losses \"text\" look at no pictures; choose others, or leave it out.")
    if not given.latents.is_file():
        raise ValueError(f"--latents {given.latents}: no such file.")
    try:
        with safe_open(given.latents, "pt") as file:
            latents = file.get_tensor("latents").float()
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{name}: no safetensors file with a tensor \"latents\" ({error}).") from None
    if latents.dim() != 4 or not latents.numel() or not latents.isfinite().all():
        raise ValueError(f"{name}: \"latents\" has shape {tuple(latents.shape)}; it must be (N, C, H, W), and finite.")
    return latents


def _described(given: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """What the training in a folder depends on, for its note."""
    paths = {name: str(value.resolve()) if (value := getattr(given, name)) else None for name in ("model", "file", "latents")}
    return {name: getattr(given, name) for name in SOURCES} | paths | dataclasses.asdict(settings)


def _claim(given: argparse.Namespace, settings: Settings, checkpoint: Path) -> None:
    """Raise ValueError, naming what differs, where `--work` holds an unfinished training of something else."""
    note = given.work / "training.json"
    if not (checkpoint.exists() and note.exists()):
        return
    before, now = json.loads(note.read_text("utf-8")), _described(given, settings)
    different = [f"{name} {before.get(name)!r}, now {now[name]!r}" for name in now if before.get(name) != now[name]]
    if different:
        raise ValueError(f"--work {given.work} holds an unfinished training with other settings ({'; '.join(different)}): give those "
                         f"again, choose another --work, or remove {checkpoint.name} there.")


def _note(given: argparse.Namespace, settings: Settings) -> None:
    path, text = given.work / "training.json", json.dumps(_described(given, settings), indent=2) + "\n"
    if path.exists() and path.read_text("utf-8") != text:
        for pictures in _painted(given.work):  # another model may have made them
            pictures.unlink()
    write_text(path, text)


def _painted(work: Path) -> list[Path]:
    """The pictures that an unfinished training has made."""
    return sorted(work.glob("pictures-*.safetensors"))


class _Logs:
    """Loss, learning rate and final metrics for TensorBoard, in `work/logs`. A context, which closes the file."""

    def __init__(self, settings: Settings, work: Path, wanted: bool):
        self.settings, self.folder, self.kind, self.writer = settings, work / "logs", None, None
        if not wanted:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.kind = SummaryWriter
        except ImportError:
            log.info("TensorBoard is not installed, so no logs are written: pip install -e \".[train]\"")

    def __enter__(self) -> _Logs:
        return self

    def __exit__(self, *error: object) -> None:
        if self.writer:
            self.writer.close()

    def _open(self, step: int) -> bool:
        if self.kind and not self.writer:
            # what a killed run had logged after its last checkpoint is superseded
            self.writer = self.kind(self.folder, purge_step=step)
        return self.writer is not None

    def step(self, step: int, loss: float) -> None:
        from ..loop import rate

        if self._open(step):
            self.writer.add_scalar("loss", loss, step)
            self.writer.add_scalar("lr", rate(self.settings.lr, step - 1, self.settings.steps), step)

    def done(self, hgr: HGR) -> None:
        """The metrics on held-out prompts and pictures."""
        from ..training import report

        if not self._open(self.settings.steps + 1):
            return
        metrics = hgr.training["metrics"]
        values = {"flagged_clean": metrics["flagged_clean"]}
        for id, found in metrics["concepts"].items():
            values |= {f"{id}/{name}": value for name, value in found.items()}
        for id, found in hgr.probe.training["metrics"].items() if hgr.probe else ():
            values |= {f"{id}/picture_{name}": value for name, value in found.items()}
        for name, value in values.items():
            if math.isfinite(value):
                self.writer.add_scalar(f"held_out/{name}", value, self.settings.steps)
        self.writer.add_text("report", "    " + report(hgr).replace("\n", "\n    "), self.settings.steps)  # indented: as it is
