"""Files that commands write: checked before the work, and whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def check_hgr(path: Path | None) -> None:
    """Raise ValueError unless an HGR can get this name."""
    if path is None:
        raise ValueError("say where to write the HGR: --output FILE.safetensors.")
    if path.suffix != ".safetensors":
        raise ValueError(f"--output {path}: an HGR's name ends in .safetensors.")
    if path.exists():
        raise ValueError(f"--output {path}: is there already; remove it, or give another name.")


def try_to_write(path: Path) -> None:
    """Raise OSError now and not after the work."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(b"")
    part.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it: a full disk or a kill loses nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, "utf-8", newline="\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
