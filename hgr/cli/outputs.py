"""Files that commands write: checked before the work, and written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.atomic import WriteError, part_of
from ..core.excerpt import excerpt


def check_name(path: Path | None, what: str) -> None:
    """Raise ValueError unless a command's result can have this name. what: the result, e.g. "HGR"."""
    if path is None:
        raise ValueError(f"say where to write the {what}: --output FILE.safetensors.")
    if path.suffix != ".safetensors":
        raise ValueError(f"--output {excerpt(path)}: the name of the {what} must end in .safetensors.")
    if path.exists():
        raise ValueError(f"--output {excerpt(path)}: already exists; remove it, or give another name.")


def try_to_write(path: Path) -> None:
    """Raise OSError or ValueError now, not after the work."""
    if path.is_dir():
        raise ValueError(f"--output {excerpt(path)}: this is a folder; give the name of a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = part_of(path)
        part.write_bytes(b"")
        part.unlink()
    except OSError as error:
        raise WriteError(path, error) from None


def save_result(write: Callable[[Path], None], path: Path, *, work: Path, what: str) -> None:
    """Write a training's result to `path`, or to the working folder if `path` cannot be written any more."""
    try:
        write(path)
    except OSError as error:
        spare = work / path.name
        write(spare)
        raise OSError(f"{path} cannot be written ({error.strerror}): the {what} is in {spare}.") from None


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two runs, for people; empty if nothing does."""
    return "; ".join(
        f"{name} {excerpt(repr(before.get(name)))}, now {excerpt(repr(value))}"
        for name, value in now.items()
        if before.get(name) != value
    )
