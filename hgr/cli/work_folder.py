"""A training's `--work` folder: what the training depends on, its progress and logs, and its interruption."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..core.atomic import write_text
from ..core.progress import Progress
from ..training.loop import checkpoint_file, learning_rate_at, pictures_file
from .bars import Bars
from .outputs import changes
from .processes import Group, Interruption

log = logging.getLogger("safecfg")


class WorkFolder:
    """The folder of one training.

    stage: the name that the trainer gives its checkpoint.
    depends: what the training depends on, by name.
    """

    def __init__(self, folder: Path, stage: str, depends: dict[str, Any]):
        self.folder, self.stage, self.depends = folder, stage, depends
        self.checkpoint, self.note = checkpoint_file(folder, stage), folder / "training.json"

    def claim(self, group: Group) -> None:
        """Note what the training depends on. Raises ValueError, naming what differs, if the folder has an unfinished
        training with other dependencies."""
        if self.checkpoint.exists() and self.note.exists():
            before = json.loads(self.note.read_text("utf-8"))
            if different := changes(before, self.depends):
                raise ValueError(
                    f"--work {self.folder} holds an unfinished training with other settings ({different}): give those "
                    f"again, choose another --work, or remove {self.checkpoint.name} there."
                )
        group.wait()  # until all have compared themselves with the note, which is about to change
        if group.main:
            self._write()

    def _write(self) -> None:
        text = json.dumps(self.depends, indent=2) + "\n"
        if self.note.exists() and self.note.read_text("utf-8") != text:
            for pictures in self._painted():  # another model may have made them
                pictures.unlink()
        write_text(self.note, text)

    def _painted(self) -> list[Path]:
        """The pictures that an unfinished training has made."""
        return sorted(self.folder.glob(pictures_file(self.folder, "*").name))

    @contextmanager
    def run(self, group: Group, *, steps: int, learning_rate: float, advice: str) -> Iterator[Watch]:
        """The context in which the training runs, with bars and logs. Ctrl-C stops it at the end of a step; errors are
        raised again as one sentence. advice: what to do if the GPU's memory is full."""
        with (
            Interruption(alone=group.processes.count == 1) as stop,
            Bars(group.main) as bars,
            Logs(self.folder / "logs", steps=steps, learning_rate=learning_rate, wanted=group.main) as logs,
        ):
            try:
                yield Watch(group, stop, bars, logs, steps)
            except torch.OutOfMemoryError:
                raise ValueError(f"the GPU's memory is full: {advice}") from None
            except FloatingPointError as error:
                why = str(error).removeprefix(f"{self.stage}: ")
                # another learning rate is another training
                raise FloatingPointError(
                    f"{why} This also needs another --work." if self.checkpoint.exists() else why
                ) from None
            except (KeyboardInterrupt, RuntimeError):  # RuntimeError if another process has left first
                kept = next((path for path in (self.checkpoint, *self._painted()) if path.exists()), None)
                stop.leave(
                    group,
                    f"interrupted; {kept} is kept. Run the same command again to resume."
                    if kept
                    else "interrupted before the first step; there is nothing to resume.",
                )


class Logs:
    """TensorBoard's log of a training, in `folder`: loss, learning rate and the report. A context that closes it."""

    def __init__(self, folder: Path, *, steps: int, learning_rate: float, wanted: bool):
        self.folder, self.steps, self.learning_rate = folder, steps, learning_rate
        self.kind = self.writer = None
        if not wanted:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.kind = SummaryWriter
        except ImportError:
            log.info('TensorBoard is not installed, so no logs are written: pip install -e ".[train]"')

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *error: object) -> None:
        if self.writer:
            self.writer.close()

    def _open(self, step: int) -> Any:
        if self.kind and not self.writer:
            # replaces what a killed run logged after its last checkpoint
            self.writer = self.kind(self.folder, purge_step=step)
        return self.writer

    def step(self, step: int, loss: float) -> None:
        if writer := self._open(step):
            writer.add_scalar("loss", loss, step)
            writer.add_scalar("learning_rate", learning_rate_at(step - 1, self.steps, self.learning_rate), step)

    def done(self, report: str, values: dict[str, float]) -> None:
        """Log the report for people, and its figures."""
        if writer := self._open(self.steps + 1):
            for name, value in values.items():
                if math.isfinite(value):
                    writer.add_scalar(name, value, self.steps)
            writer.add_text("report", "    " + report.replace("\n", "\n    "), self.steps)  # indented: shown as is


@dataclass(frozen=True)
class Watch(Progress):
    """Shows a training's progress, and raises KeyboardInterrupt if the user has asked it to stop. losses: one for each
    step of this run."""

    group: Group
    stop: Interruption
    bars: Bars
    logs: Logs
    steps: int
    losses: list[float] = field(default_factory=list)

    def text(self, done: int, total: int) -> None:
        self.bars.text(done, total)
        self._check()

    def picture(self, done: int, total: int) -> None:
        self.bars.picture(done, total)
        self._check()

    def step(self, done: int, loss: float) -> None:
        self.losses.append(loss)
        self.bars.show("steps", done, self.steps, note=f"loss {loss:.4f}")
        self.logs.step(done, loss)
        if self.group.any(self.stop.asked):
            raise KeyboardInterrupt

    def _check(self) -> None:
        if self.stop.asked:
            raise KeyboardInterrupt
