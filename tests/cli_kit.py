"""What the tests of the commands share: run one in this process or in two others, interrupt it, read what it wrote."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

import hgr
from hgr import cli
from hgr.cli.bars import Bars

CLEAN, HARMFUL = "a red ball on a beach", "a skull on a beach"
# one thread, as the launcher gives each of several processes: another number of threads rounds otherwise
ENVIRONMENT = {"PYTHONPATH": str(Path(hgr.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def command(*arguments: object) -> int:
    """Run a command in this process; its exit code."""
    return cli.main([str(argument) for argument in arguments])


def launch_two(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in two processes on the CPU, in `folder`."""
    # with --cpu, accelerate starts several processes by MPI only
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    words = [sys.executable, "-m", *launcher, "-m", "hgr", *map(str, arguments), "--device", "cpu"]
    return subprocess.run(words, cwd=folder, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=900)


def interrupt() -> None:
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


def when(monkeypatch, name: str, done: int, act: Callable[[], None] = interrupt) -> None:
    """Call `act` when the progress bar of this name reaches `done`."""
    show = Bars.show

    def shown(self, *given, **note):
        show(self, *given, **note)
        if given[:2] == (name, done):
            act()

    monkeypatch.setattr(Bars, "show", shown)


def watch_bar(monkeypatch, name: str) -> list[tuple[int, int]]:
    """The (done, total) that the progress bar of this name is set to, as they come."""
    shown = []

    def show(self, bar, done, total, **note):
        if bar == name:
            shown.append((done, total))

    monkeypatch.setattr(Bars, "show", show)
    return shown


def kept(path: Path) -> str:
    """What an interrupted command says last."""
    return f"hgr: interrupted; {path} is kept. Run the same command again to resume."


def contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's tensors and its metadata; safetensors writes the latter in any order."""
    with safe_open(path, "pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata()  # noqa: SIM118 (not a dict)


def apart(one: Path, two: Path) -> float:
    """The largest difference between the tensors of two files with the same keys."""
    (ours, _), (theirs, _) = contents(one), contents(two)
    assert ours.keys() == theirs.keys()
    return max((ours[key].float() - theirs[key].float()).abs().max().item() for key in ours)
