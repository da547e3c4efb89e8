"""Encoded prompts that a finished training leaves to the next one of the same text encoder: adding a concept, or going
from "quick" to "full", then encodes only what is new."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .work_files import DAY, KEPT_DAYS, features_file

LIMIT = 5_000_000_000  # bytes of all files together; those that were used last stay


@contextmanager
def kept_prompts(shelf: Path, encoder: str, work: Path) -> Iterator[None]:
    """What the folder `shelf` keeps for an encoder is in `work` during the block, and is put back, with what was added,
    if the block ends without an error. Otherwise it stays in `work`, which the same training resumes from.

    encoder: its fingerprint, a file name.

    A file is moved, never copied or shared, so whoever has it has it alone. What cannot be moved is encoded again.
    """
    kept, own = shelf / f"{encoder}.bin", features_file(work, 0)
    with suppress(OSError):
        if not own.exists():
            kept.replace(own)
    yield
    with suppress(OSError):
        shelf.mkdir(parents=True, exist_ok=True)
        if not kept.exists() or kept.stat().st_size < own.stat().st_size:
            own.replace(kept)
            kept.touch()
    _tidy(shelf)


def _tidy(shelf: Path) -> None:
    """Remove what has not been used for `KEPT_DAYS`, and what is beyond `LIMIT`."""
    found = {path: path.stat() for path in shelf.glob("*.bin")}
    left, oldest = LIMIT, time.time() - KEPT_DAYS * DAY
    for path, about in sorted(found.items(), key=lambda each: -each[1].st_mtime):
        if about.st_size <= left and about.st_mtime > oldest:
            left -= about.st_size
            continue
        with suppress(OSError):
            path.unlink()
