"""The files of a training or a report card, in its folder: their names, the lock that keeps another one out, and the
removal of what interrupted ones left."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from safetensors import SafetensorError, safe_open

from ..core.atomic import WriteError, stale_parts
from ..detection.card import KEPT_NAME
from .prompt_store import is_store
from .settings import HGR_STAGE, LORA_STAGE

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

log = logging.getLogger("safecfg")

KEPT_DAYS = 14  # how long an interrupted training can be resumed
_FEATURES_DAYS = 2  # and how long it has its encoded prompts, which are made again in minutes and take gigabytes

# Exact names: a folder that the user chose may hold files of the user's own.
_PICTURES = r"pictures-\d+\.safetensors"
_FEATURES = r"features-\d+\.bin"
_NAMES = rf"(?:{HGR_STAGE}|{LORA_STAGE})\.checkpoint\.safetensors|{_PICTURES}|{_FEATURES}|{KEPT_NAME}"
DAY = 86_400.0  # seconds


class AlreadyRunning(ValueError):
    """Another process holds the folder."""


def checkpoint_file(work: Path, stage: str) -> Path:
    """Where a stage's unfinished training is kept."""
    return work / f"{stage}.checkpoint.safetensors"


def pictures_file(work: Path, rank: int) -> Path:
    """Where a process keeps the pictures that the model painted."""
    return work / f"pictures-{rank}.safetensors"


def features_file(work: Path, rank: int) -> Path:
    """Where a process keeps the encoded prompts."""
    return work / f"features-{rank}.bin"


def painted(work: Path) -> list[Path]:
    """The pictures that the trainings in this folder have kept, of all processes."""
    return _named(work, _PICTURES)


def resumable(work: Path, stage: str) -> list[Path]:
    """What a training or a report card is resumed from, as far as it is there."""
    kept = (checkpoint_file(work, stage), *painted(work), *_named(work, _FEATURES), *_named(work, KEPT_NAME))
    return [path for path in kept if path.exists()]


def discard(work: Path, stage: str) -> None:
    """Remove what a training is resumed from: its result is written."""
    for path in resumable(work, stage):
        path.unlink(missing_ok=True)  # another of its processes may have been faster


# --- what interrupted runs left ---------------------------------------------------------------------------------------


def sweep(work: Path, *, resumed: Collection[Path] = (), names: str = _NAMES) -> int:
    """Remove from a folder that this process holds what no run can resume, and what is older than `KEPT_DAYS`. Returns
    the number of bytes freed.

    resumed: what this run will resume, whatever its age.
    names: a pattern of the names of a training's files.
    """
    freed, now = 0, time.time()
    for path in {*_named(work, rf"(?:{names})(?:\..+\.part)?"), *stale_parts(work)}:
        with suppress(OSError):  # what cannot be removed is no reason not to run
            found = path.stat()
            days = _FEATURES_DAYS if re.fullmatch(_FEATURES, path.name) else KEPT_DAYS
            oldest = now - days * DAY
            if path.suffix != ".part" and _is_whole(path) and (path in resumed or found.st_mtime > oldest):
                continue
            path.unlink()
            freed += found.st_size
    return freed


def log_freed(freed: int, where: Path) -> None:
    """Tell the user in one line, if anything was removed."""
    if freed:
        log.info("removed %.1f MB that interrupted runs left in %s", freed / 1e6, where)


@contextmanager
def unfinished(work: Path, *, home: Path, stage: str = "") -> Iterator[Path]:
    """The folder of one training or card, which no other process uses until the block ends. What it holds is kept if
    the block ends with an error, and removed otherwise. What others left in the folders two levels below `home` is
    removed first, if no run can resume it or none has for days.

    stage: the name of a training's checkpoint.

    Raises AlreadyRunning if another process holds the folder, WriteError if it cannot be written.
    """
    try:
        with hold(lock_file(work), f"the same is already running in {work}: wait until it has ended."):
            others = [path for path in home.glob("*/*") if path.is_dir() and path != work]
            log_freed(sweep(work, resumed=resumable(work, stage)) + sum(map(_swept, others)), home)
            yield work
            discard(work, stage)
    finally:
        _remove_empty(work)


def _swept(folder: Path) -> int:
    """Sweep the folder of another run; the number of bytes freed, 0 if that one is running."""
    freed = 0
    with suppress(AlreadyRunning, OSError), hold(lock_file(folder), ""):
        freed = sweep(folder)
    _remove_empty(folder)
    return freed


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _named(work: Path, pattern: str) -> list[Path]:
    return sorted(path for path in work.glob("*") if re.fullmatch(pattern, path.name) and path.is_file())


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says, and any other file holds encoded prompts."""
    try:
        if path.suffix != ".safetensors":
            return is_store(path)
        with safe_open(path, "pt"):
            return True
    except SafetensorError:
        return False
    except OSError:  # it may be sound, and only unreadable now
        return True


# --- one training at a time -------------------------------------------------------------------------------------------


def lock_file(work: Path, rank: int = 0) -> Path:
    """The file that a process locks while it trains in the folder. The processes of one training have one each."""
    return work / f"training-{rank}.lock"


@contextmanager
def hold(path: Path, taken: str) -> Iterator[None]:
    """Hold a lock file until the block ends or the process dies, however it dies; then the file is removed.

    Raises AlreadyRunning with the sentence `taken` if another process holds it, WriteError if it cannot be made.
    """
    file = _locked(path, taken)
    try:
        yield
    finally:
        # while it is still held, so that nobody else's is removed; Windows removes no file that is open
        with suppress(OSError):
            path.unlink()
        file.close()
        if sys.platform == "win32":
            with suppress(OSError):
                path.unlink()


def _locked(path: Path, taken: str) -> IO[bytes]:
    for _ in range(100):  # more often than its holders can come and go
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "ab")  # noqa: SIM115 (closed by the caller, who holds it)
        except OSError as error:
            raise WriteError(path, error) from None
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            file.close()
            raise AlreadyRunning(taken) from None
        except OSError as error:  # some network drives know no locks
            log.warning("%s cannot be locked (%s): do not use it twice at once.", path, error.strerror)
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # its holder removed it just before the lock was free
    raise AlreadyRunning(taken)


def _lock(file: IO[bytes]) -> None:
    if sys.platform == "win32":
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
