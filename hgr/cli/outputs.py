"""Files that commands write: checked before the work, and whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.atomic import part_of


def check_name(path: Path | None, what: str) -> None:
    """Raise ValueError unless what a command makes, e.g. "HGR", can get this name."""
    if path is None:
        raise ValueError(f"say where to write the {what}: --output FILE.safetensors.")
    if path.suffix != ".safetensors":
        raise ValueError(f"--output {path}: the name of the {what} ends in .safetensors.")
    if path.exists():
        raise ValueError(f"--output {path}: is there already; remove it, or give another name.")


def try_to_write(path: Path) -> None:
    """Raise OSError now and not after the work."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    part.write_bytes(b"")
    part.unlink()


def save_result(write: Callable[[Path], None], path: Path, *, work: Path, what: str) -> None:
    """Write what a training made, e.g. "HGR"; where its place has gone or is full meanwhile, in the working folder."""
    try:
        write(path)
    except OSError as error:
        spare = work / path.name
        write(spare)
        raise OSError(f"{path} cannot be written ({error.strerror}): the {what} is in {spare}.") from None


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two runs, for people; empty where nothing does."""
    return "; ".join(
        f"{name} {before.get(name)!r}, now {value!r}" for name, value in now.items() if before.get(name) != value
    )
