"""Trainings that are killed and run again: `python kill_kit.py FOLDER` trains everything of `PHASES` in FOLDER, in
processes that it forks from one that has loaded what they need. Not on Windows."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PHASES = {
    "train": ("encoding", "painting", "a step", "a checkpoint", "the probe", "the result"),
    "finetune": ("encoding", "painting", "judging", "a step", "a checkpoint", "the result"),
    "probe": ("painting", "the probe"),
}
QUICK = ["--pictures", 16, "--device", "cpu"]
STEPS = ["--steps", 5, "--batch-size", 4]


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(home: Path) -> None:
    import tiny
    import torch.utils.tensorboard  # noqa: F401 (loaded once for all)

    import hgr.cli.work_folder
    import hgr.hosts.diffusers.finetune  # noqa: F401
    from hgr.data.pair_file import write_pairs
    from hgr.data.sources import demo_world
    from hgr.hosts.diffusers import denoiser, loading
    from hgr.hosts.diffusers.demo import load_demo_pipeline
    from hgr.training import loop, losses, train_hgr, train_probe

    pipe = tiny.sd2(load_demo_pipeline())
    tiny.save(pipe, home, "model")
    demo = demo_world(50)
    skulls = dataclasses.replace(demo, topics=demo.topics[:1], pairs=demo.of("skull"), clean=demo.clean[:50])
    write_pairs(skulls, home / "pairs.csv")
    (home / "prompts.txt").write_text("".join(f"a skull by house {i}\n" for i in range(8)))
    loading.load_pipeline = lambda *_, **__: pipe  # each process has its own
    denoiser._STEPS, train_hgr._PASSES, train_probe.MIN_SHOWN, loop.CHECKPOINT_SECONDS = 2, 2, 2, 0.0

    losses.TWINS = 1.0  # five steps must find a few skulls for the probe

    found = {}
    for command, phases in PHASES.items():
        whole = forked(run, command, home, home / command / "whole")
        assert whole == 0, command
        for phase in phases:
            folder = home / command / phase
            killed = forked(run_until, phase, command, home, folder)
            left = sorted(path.name for path in folder.rglob("*") if path.is_file())
            code = forked(run_again, command, home, folder)
            found[f"{command} {phase}"] = {"killed": killed, "left": left, "code": code}
    (home / "found.json").write_text(json.dumps(found))


def forked(act: Callable[..., None], *given: Any) -> int:
    """The exit code of a process that does this; minus the signal that ended it."""
    child = os.fork()
    if not child:
        try:
            act(*given)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_until(phase: str, *given: Any) -> None:
    """Run a command, which is killed in a phase."""
    arm(phase)
    run(*given)


def run_again(command: str, home: Path, folder: Path) -> None:
    """Run a command, and write what its bars showed into the folder, as a list of (name, done)."""
    events: list[tuple] = []
    watch(events.append)
    run(command, home, folder)
    (folder / "events.json").write_text(json.dumps(events))


def run(command: str, home: Path, folder: Path) -> None:
    """Run a command in a folder; SystemExit unless it succeeds."""
    from hgr import cli

    given = {
        "train": ["--file", home / "pairs.csv", "--width", 32, "--depth", 1, "--false-positive-rate", 10, *STEPS],
        "finetune": [
            *("--hgr", home / "model.safetensors", "--prompts", home / "prompts.txt"),
            *("--evidence", "prompt", "--rank", 4, *STEPS),
        ],
        "probe": ["--hgr", home / "train/whole/out.safetensors", "--file", home / "pairs.csv"],
    }[command]
    work = [] if command == "probe" else ["--work", folder / "work"]
    words = [command, "--output", folder / "out.safetensors", "--model", home / "model", *work, *QUICK, *given]
    code = cli.main([str(word) for word in words])
    if code:
        raise SystemExit(code)


def watch(call: Callable[[tuple], Any]) -> None:
    """Call with (name, done) at each progress of a bar."""
    from hgr.cli.bars import Bars

    show = Bars.show

    def shown(self: Bars, name: str, done: int, total: int, **note: str) -> None:
        show(self, name, done, total, **note)
        call((name, done))

    Bars.show = shown


def arm(phase: str) -> None:
    """Have this process kill itself in a phase."""
    from hgr.cli.commands import finetune, train
    from hgr.core import atomic

    passed: list[tuple] = []

    def at(event: tuple) -> None:
        passed.append(event)
        pictures = [done for name, done in passed if name == "pictures"]
        if (
            (phase == "encoding" and event == ("prompts", 5))
            or (phase == "painting" and event == ("pictures", 8))
            # the count falls back when they are counted for something else
            or (phase in ("judging", "the probe") and sorted(set(pictures)) != pictures)
            or (phase == "a step" and event == ("steps", 3))
            or (phase == "a checkpoint" and event == ("steps", 2))
        ):
            if phase == "a checkpoint":
                atomic.os.replace = lambda *_: kill()
            else:
                kill()

    watch(at)
    if phase == "the result":
        train.save_result = finetune.save_result = lambda *_, **__: kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
