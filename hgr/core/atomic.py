"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`. If the block ends without an error, the file written there replaces `path`;
    otherwise `path` stays as it was, so a full disk or a kill loses nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file with "\\n" line endings."""
    with replacing(path) as part:
        part.write_text(text, "utf-8", newline="\n")


def part_of(path: Path) -> Path:
    """The temporary name under which a file is written."""
    return path.with_name(path.name + ".part")
