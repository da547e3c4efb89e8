"""Prompts from text, one per line."""

from __future__ import annotations

from pathlib import Path

from ..core.excerpt import excerpt
from .textfile import DataError, read_text

SUFFIX = ".txt"


def prompt_lines(text: str) -> list[str]:
    """The prompts of a text, without empty lines."""
    return [line.strip() for line in text.split("\n") if line.strip()]


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file. Raises DataError, naming the file, if it cannot be read or contains none."""
    found = prompt_lines(read_text(path))
    if not found:
        raise DataError(f"{excerpt(path.name)}: contains no prompts.")
    return found
