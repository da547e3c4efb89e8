"""A training in its `--work` folder: what it belongs to, how far it is, and what an interruption leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..loop import checkpoint_file
from .bars import Bars
from .logs import Logs
from .outputs import write_text
from .processes import Group, Interruption


class Work:
    """The folder of one training. stage: the core's name for its checkpoint. depends: what the training depends on, by name."""

    def __init__(self, folder: Path, stage: str, depends: dict[str, Any]):
        self.folder, self.stage, self.depends = folder, stage, depends
        self.checkpoint, self.note = checkpoint_file(folder, stage), folder / "training.json"

    def claim(self, group: Group) -> None:
        """Note what the training depends on. Raise ValueError, naming what differs, where the folder holds an unfinished training of
        something else."""
        if self.checkpoint.exists() and self.note.exists():
            before = json.loads(self.note.read_text("utf-8"))
            different = [f"{name} {before.get(name)!r}, now {now!r}" for name, now in self.depends.items() if before.get(name) != now]
            if different:
                raise ValueError(f"--work {self.folder} holds an unfinished training with other settings ({'; '.join(different)}): give "
                                 f"those again, choose another --work, or remove {self.checkpoint.name} there.")
        group.wait()  # the note is what the others have just compared themselves with
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
        return sorted(self.folder.glob("pictures-*.safetensors"))

    @contextmanager
    def run(self, group: Group, steps: int, lr: float, advice: str) -> Iterator[Watch]:
        """The context in which the training runs: with bars and logs; Ctrl-C stops it at the end of a step, and what ends it is raised as
        one sentence. advice: what to do where the GPU's memory is full."""
        with Interruption(alone=group.processes.count == 1) as stop, Bars(group.main) as bars, \
                Logs(self.folder / "logs", steps, lr, group.main) as logs:
            try:
                yield Watch(group, stop, bars, logs, steps)
            except torch.OutOfMemoryError:
                raise ValueError(f"the GPU's memory is full: {advice}") from None
            except FloatingPointError as error:
                why = str(error).removeprefix(f"{self.stage}: ")
                # another learning rate is another training
                raise FloatingPointError(f"{why} That needs another --work, too." if self.checkpoint.exists() else why) from None
            except (KeyboardInterrupt, RuntimeError):  # the latter where another process has left first
                kept = next((path for path in (self.checkpoint, *self._painted()) if path.exists()), None)
                stop.leave(group, f"interrupted; {kept} is kept, the same command goes on from there." if kept
                           else "interrupted before the first step; there is nothing to go on from.")


@dataclass(frozen=True)
class Watch:
    """What a training calls as it goes on: shows how far it is, and raises KeyboardInterrupt where the user has asked it to stop."""

    group: Group
    stop: Interruption
    bars: Bars
    logs: Logs
    steps: int

    def count(self, name: str) -> Callable[[int, int], None]:
        """To call with (done, total) of what is named."""
        def show(done: int, total: int) -> None:
            self.bars.show(name, done, total)
            if self.stop.asked:
                raise KeyboardInterrupt

        return show

    def step(self, step: int, loss: float) -> None:
        self.bars.show("steps", step, self.steps, f"loss {loss:.4f}")
        self.logs.step(step, loss)
        if self.group.any(self.stop.asked):
            raise KeyboardInterrupt
