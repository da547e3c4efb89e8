"""Prompts from text, one a line."""

from __future__ import annotations

from pathlib import Path

SUFFIX = ".txt"
MAX_BYTES = 64 * 2**20


def lines(text: str) -> list[str]:
    """The prompts of a text, without empty lines."""
    return [line.strip() for line in text.split("\n") if line.strip()]


def decoded(path: Path) -> str:
    """The text of a file. Raises ValueError, naming the file, where it cannot be read."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.name}: larger than {MAX_BYTES // 2**20} MB.")
        return path.read_bytes().decode("utf-8-sig")  # without the mark that some editors put first
    except OSError as error:
        raise ValueError(f"{path.name}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path.name}: not UTF-8 text; save the file as UTF-8.") from None


def read(path: Path) -> list[str]:
    """The prompts of a text file. Raises ValueError, naming the file, where it cannot be read and where it holds none."""
    found = lines(decoded(path))
    if not found:
        raise ValueError(f"{path.name}: holds no prompt.")
    return found
