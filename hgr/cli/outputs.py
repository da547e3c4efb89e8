"""Files that commands write: checked before the work, and written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.atomic import part_of


def check_name(path: Path | None, what: str) -> None:
    """Raise ValueError unless a command's result can have this name. what: the result, e.g. "HGR"."""
    if path is None:
        raise ValueError(f"say where to write the {what}: --output FILE.safetensors.")
    if path.suffix != ".safetensors":
        raise ValueError(f"--output {path}: the name of the {what} must end in .safetensors.")
    if path.exists():
        raise ValueError(f"--output {path}: already exists; remove it, or give another name.")


def try_to_write(path: Path) -> None:
    """Raise OSError now, not after the work."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    part.write_bytes(b"")
    part.unlink()


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
        f"{name} {before.get(name)!r}, now {value!r}" for name, value in now.items() if before.get(name) != value
    )
