"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PART = re.compile(r".+\.safecfg-[0-9a-f]{16}\.part", re.DOTALL)
_NAME = 200  # bytes of a name that its temporary name keeps; file systems allow 255 in all
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_DAY = 86_400.0  # seconds


class WriteError(OSError):
    """A file that cannot be written, in one sentence that names the folder and what to do. `errno` and `strerror` are
    the system's."""

    def __init__(self, path: Path, error: OSError):
        super().__init__(error.errno, error.strerror)
        self.path = path

    def __str__(self) -> str:
        if self.errno in _FULL:
            remedy = "free some disk space there, then try again"
        elif self.errno in _CLOSED:
            remedy = "make the folder writable, or choose another one"
        elif self.errno == errno.ENAMETOOLONG:
            remedy = "choose a shorter name"
        elif self.errno in (errno.EEXIST, errno.ENOTDIR):
            remedy = "a part of this path is a file; choose another folder"
        else:
            remedy = "check that the disk is there and works"
        return f"{self.path.name} cannot be written to {self.path.parent} ({self.strerror}): {remedy}."


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`. If the block ends without an error, the file written there replaces `path`;
    otherwise `path` stays as it was, so a full disk or a kill loses nothing. Of several writers of one path, the last
    one's file stays, whole.

    Raises WriteError if the file cannot be written.
    """
    with _part(path) as part:
        yield part
        os.replace(part, path)


@contextmanager
def creating(path: Path) -> Iterator[Path]:
    """As `replacing`, but only for a new file: raises FileExistsError if `path` is there at the end of the block, also
    if another writer has made it meanwhile."""
    with _part(path) as part:
        yield part
        _move_to_new(part, path)


def write_bytes(path: Path, data: bytes, *, new: bool = False) -> None:
    """Write a file. new: raise FileExistsError rather than replace one."""
    with (creating if new else replacing)(path) as part:
        part.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file with "\\n" line endings."""
    with replacing(path) as part:
        part.write_text(text, "utf-8", newline="\n")


def part_of(path: Path) -> Path:
    """A temporary path beside `path`, another one for each call, since two writers must not share one:
    NAME.safecfg-TOKEN.part."""
    name = os.fsencode(path.name)[:_NAME].decode(errors="ignore")
    return path.with_name(f"{name}.safecfg-{secrets.token_hex(8)}.part")


def stale_parts(folder: Path, *, days: float = 2.0) -> list[Path]:
    """The temporary files in a folder that were last written `days` ago or earlier: their writers were killed."""
    before, found = time.time() - days * _DAY, []
    for path in sorted(folder.glob("*.part")):
        with suppress(OSError):  # it may be gone by now
            if _PART.fullmatch(path.name) and path.stat().st_mtime <= before:
                found.append(path)
    return found


@contextmanager
def _part(path: Path) -> Iterator[Path]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(path, error) from None
    part = part_of(path)
    try:
        yield part
    except OSError as error:
        if error.errno is None or isinstance(error, (WriteError, FileExistsError)):
            raise
        raise WriteError(path, error) from None
    finally:
        with suppress(OSError):  # the first error counts
            part.unlink(missing_ok=True)


def _move_to_new(part: Path, path: Path) -> None:
    try:
        os.link(part, path)  # never replaces, unlike a rename
        return
    except FileExistsError:
        raise
    except OSError:  # a file system without links, such as exFAT: an empty file keeps the name for a moment
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    try:
        os.replace(part, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
