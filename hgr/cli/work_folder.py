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
from ..training.loop import learning_rate_at
from ..training.work_files import checkpoint_file, discard, hold, lock_file, log_freed, painted, resumable, sweep
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

    @contextmanager
    def run(self, group: Group, *, steps: int, learning_rate: float, advice: str) -> Iterator[Watch]:
        """The context in which the training runs, with bars and logs, and in which its result is written. The folder is
        this training's alone. Ctrl-C and SIGTERM stop it at the end of a step; errors are raised again as one sentence.
        advice: what to do if the GPU's memory is full.

        Raises ValueError if another training runs in the folder, or if it holds an unfinished one with other
        dependencies, naming what differs; WriteError if the folder cannot be written.
        """
        taken = f"a training is already running in --work {self.folder}: wait until it ends, or choose another --work."
        with hold(lock_file(self.folder, group.processes.rank), taken):
            self._claim(group)
            with self._watched(group, steps=steps, learning_rate=learning_rate, advice=advice) as watch:
                yield watch
            discard(self.folder, self.stage)

    @contextmanager
    def _watched(self, group: Group, *, steps: int, learning_rate: float, advice: str) -> Iterator[Watch]:
        with (
            Interruption(alone=group.processes.count == 1) as stop,
            Bars(group.main) as bars,
            Logs(self.folder / "logs", steps=steps, learning_rate=learning_rate, wanted=group.main) as logs,
        ):
            watch = Watch(stop, bars, group, logs, steps)
            try:
                yield watch
            except torch.OutOfMemoryError:
                raise ValueError(f"the GPU's memory is full: {advice}") from None
            except FloatingPointError as error:
                why = str(error).removeprefix(f"{self.stage}: ")
                # another learning rate is another training
                raise FloatingPointError(
                    f"{why} This also needs another --work." if self.checkpoint.exists() else why
                ) from None
            except (KeyboardInterrupt, RuntimeError):  # RuntimeError if another process has left first
                stop.leave(group, self._left(trained=bool(watch.losses)))

    def _claim(self, group: Group) -> None:
        """Remove what no run can resume, and note what the training depends on."""
        if group.main:
            resumed = () if self._different() else resumable(self.folder, self.stage)
            log_freed(sweep(self.folder, resumed=resumed), self.folder)
        group.wait()
        if self.checkpoint.exists() and (different := self._different()):
            raise ValueError(
                f"--work {self.folder} holds an unfinished training with other settings ({different}): give those "
                f"again, choose another --work, or remove {self.checkpoint.name} there."
            )
        group.wait()  # until all have compared themselves with the note, which is about to change
        if group.main:
            self._write()

    def _different(self) -> str:
        """How the training that the folder holds differs from this one; empty if it does not."""
        if not self.note.exists():
            return ""
        try:
            return changes(json.loads(self.note.read_text("utf-8")), self.depends)
        except (AttributeError, ValueError):
            raise ValueError(f"{self.note} is damaged: remove it, or choose another --work.") from None

    def _write(self) -> None:
        text = json.dumps(self.depends, indent=2) + "\n"
        if self.note.exists() and self.note.read_text("utf-8") != text:
            for pictures in painted(self.folder):  # another model may have made them
                pictures.unlink()
        write_text(self.note, text)

    def _left(self, *, trained: bool) -> str:
        """What an interruption leaves, for people. trained: whether a step was done."""
        how = "interrupted without a checkpoint" if trained and not self.checkpoint.exists() else "interrupted"
        for path in resumable(self.folder, self.stage):
            return f"{how}; {path} is kept. Run the same command again to resume."
        when = how if trained else "interrupted before the first prompt was encoded"
        return f"{when}; there is nothing to resume."


class Logs:
    """TensorBoard's log of a training, in `folder`: loss, learning rate and the report. A context that closes it. Logs
    that cannot be written are a warning, and there are no more of them."""

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
        with self._writing():
            if self.writer:
                self.writer.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.kind = self.writer = None
            log.warning("no more TensorBoard logs in %s: %s", self.folder, error.strerror or error)

    def _open(self, step: int) -> Any:
        if self.kind and not self.writer:
            # replaces what a killed run logged after its last checkpoint
            self.writer = self.kind(self.folder, purge_step=step)
        return self.writer

    def step(self, step: int, loss: float) -> None:
        with self._writing():
            if writer := self._open(step):
                writer.add_scalar("loss", loss, step)
                writer.add_scalar("learning_rate", learning_rate_at(step - 1, self.steps, self.learning_rate), step)

    def done(self, report: str, values: dict[str, float]) -> None:
        """Log the report for people, and its figures."""
        with self._writing():
            if writer := self._open(self.steps + 1):
                for name, value in values.items():
                    if math.isfinite(value):
                        writer.add_scalar(name, value, self.steps)
                writer.add_text("report", "    " + report.replace("\n", "\n    "), self.steps)  # indented: shown as is


@dataclass(frozen=True)
class Watched(Progress):
    """Shows the progress of a job, and raises KeyboardInterrupt if the user has asked it to stop."""

    stop: Interruption
    bars: Bars

    def text(self, done: int, total: int) -> None:
        self.bars.text(done, total)
        self._check()

    def picture(self, done: int, total: int) -> None:
        self.bars.picture(done, total)
        self._check()

    def _check(self) -> None:
        if self.stop.asked:
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Watch(Watched):
    """The same for a training. losses: one for each step of this run."""

    group: Group
    logs: Logs
    steps: int
    losses: list[float] = field(default_factory=list)

    def step(self, done: int, loss: float) -> None:
        self.losses.append(loss)
        self.bars.show("steps", done, self.steps, note=f"loss {loss:.4f}")
        self.logs.step(done, loss)
        if self.group.any(self.stop.asked):
            raise KeyboardInterrupt
