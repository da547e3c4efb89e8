"""The folders of unfinished trainings, in ComfyUI's own user folder: one each, and none for ever."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import folder_paths

from ...training.work_files import AlreadyRunning, discard, hold, lock_file, log_freed, resumable, sweep


@contextmanager
def work_folder(kind: str, identity: str, stage: str) -> Iterator[Path]:
    """The folder of one training, which no other process uses until the block ends. What it holds is kept if the block
    ends with an error, and removed otherwise. What other trainings left is removed first, if no run can resume it or
    none has for days.

    kind: the trainings' common folder.
    identity: the fingerprint of this one, a file name.
    stage: the name of its checkpoint.

    Raises AlreadyRunning if the same training runs in another ComfyUI, WriteError if the folder cannot be written.
    """
    home = Path(folder_paths.get_system_user_directory("safecfg"))
    work = home / kind / identity
    try:
        with hold(lock_file(work), f"this training is already running in {work}: wait until it has ended."):
            others = [path for path in home.glob("*/*") if path.is_dir() and path != work]
            log_freed(sweep(work, resumed=resumable(work, stage)) + sum(map(_swept, others)), home)
            yield work
            discard(work, stage)
    finally:
        _remove_empty(work)


def _swept(folder: Path) -> int:
    """Sweep the folder of another training; the number of bytes freed, 0 if that training runs."""
    freed = 0
    with suppress(AlreadyRunning, OSError), hold(lock_file(folder), ""):
        freed = sweep(folder)
    _remove_empty(folder)
    return freed


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
