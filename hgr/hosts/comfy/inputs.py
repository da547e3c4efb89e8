"""Files in ComfyUI's input folder, by name."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...prompts import SUFFIX
from ...rows import SUFFIXES


def pair_files() -> list[str]:
    """Names of the CSV and JSONL files that lie in the input folder itself."""
    return _files(SUFFIXES)


def pair_file(name: str) -> Path | None:
    """Where the file of that name lies; None for a name that `pair_files` does not give, so for any path."""
    return _file(name, pair_files())


def prompt_files() -> list[str]:
    """Names of the text files that lie in the input folder itself."""
    return _files((SUFFIX,))


def prompt_file(name: str) -> Path | None:
    """Where the file of that name lies; None for a name that `prompt_files` does not give, so for any path."""
    return _file(name, prompt_files())


def _files(suffixes: tuple[str, ...]) -> list[str]:
    folder = folder_paths.get_input_directory()
    if not os.path.isdir(folder):  # made with the first upload
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name.lower().endswith(suffixes) and entry.is_file())


def _file(name: str, names: list[str]) -> Path | None:
    return Path(folder_paths.get_input_directory(), name) if name in names else None
