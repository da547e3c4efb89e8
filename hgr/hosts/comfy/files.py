"""Files as ComfyUI's users know them, by name: HGRs in models/hgr, the bundled HGR, and lists in the input folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ...core import file
from ...core.hgr import HGR
from ...demo import assets

BUNDLED = "safecfg_demo (bundled)"
NO_FILE = "none"
NAME_RULE = "1 to 100 letters, digits, spaces, dots, - and _, starting with a letter or digit"
_FOLDER = "hgr"


def register_folder() -> None:
    """Register `models/hgr` with the host, besides hgr folders from its extra paths; only for .safetensors."""
    folder_paths.add_model_folder_path(_FOLDER, os.path.join(folder_paths.models_dir, _FOLDER))
    folder_paths.folder_names_and_paths[_FOLDER] = (folder_paths.get_folder_paths(_FOLDER), {".safetensors"})


def hgr_names() -> list[str]:
    """HGR files that a user can choose: their own, then the bundled one."""
    return [*folder_paths.get_filename_list(_FOLDER), BUNDLED]


def hgr_path(name: str) -> Path | None:
    """The path of the file of that name, or None. Names that lead out of the folder give None."""
    if name == BUNDLED:
        return assets.HGR_FILE if assets.HGR_FILE.is_file() else None
    path = folder_paths.get_full_path(_FOLDER, name) if name in folder_paths.get_filename_list(_FOLDER) else None
    return None if path is None else Path(path)


def find_hgr(name: str) -> Path:
    """`hgr_path`; raises FileNotFoundError if there is no such file."""
    path = hgr_path(name)
    if path is None:
        raise FileNotFoundError(f'HGR "{name}" is not in models/{_FOLDER}.')
    return path


def load_hgr(name: str) -> HGR:
    """Load an HGR by its name. Raises FileNotFoundError, or HGRError for a file that cannot be used."""
    return file.load(find_hgr(name))


def is_name(name: str) -> bool:
    """Whether a file may be saved under this name."""
    return re.fullmatch(r"[\w][\w .\-]{0,99}", name) is not None


def save_hgr(hgr: HGR, name: str) -> str:
    """Save an HGR in models/hgr under this name, with a number if the file exists; returns the file's name.

    Raises ValueError for a name that breaks `NAME_RULE`, OSError if the disk is full or not writable.
    """
    if not is_name(name):
        raise ValueError(f'"{name}" cannot be a file name: {NAME_RULE}.')
    folder, stem = Path(folder_paths.get_folder_paths(_FOLDER)[0]), name.removesuffix(".safetensors").rstrip(". ")
    number = 1
    while (path := folder / f"{stem}{f'_{number}' if number > 1 else ''}.safetensors").exists():
        number += 1
    file.save(hgr, path)
    return path.name


@dataclass(frozen=True)
class InputFiles:
    """The files with these suffixes in the input folder itself. A node offers their names and `NO_FILE`."""

    suffixes: tuple[str, ...]

    def names(self) -> list[str]:
        folder = folder_paths.get_input_directory()
        if not os.path.isdir(folder):  # the first upload creates it
            return []
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.name.lower().endswith(self.suffixes) and e.is_file())

    def path(self, name: str | None) -> Path | None:
        """The path of the file of that name; None for `NO_FILE`, and for another node's name that is not known yet.

        Raises FileNotFoundError for any other name that `names` does not list, and so for every path.
        """
        if name in (None, NO_FILE):
            return None
        if name not in self.names():
            raise FileNotFoundError(f'"{name}" is not a {" or ".join(self.suffixes)} file in ComfyUI\'s input folder.')
        return Path(folder_paths.get_input_directory(), name)

    def validate(self, name: str | None) -> bool | str:
        """For a node's `validate_inputs`."""
        try:
            self.path(name)
        except FileNotFoundError as error:
            return str(error)
        return True

    def stamp(self, name: str | None) -> tuple[int, int] | None:
        """For a node's `fingerprint_inputs`: a value that changes with the file."""
        try:
            path = self.path(name)
        except FileNotFoundError:
            return None
        return None if path is None else stamp_of(path)


def stamp_of(path: Path) -> tuple[int, int]:
    """A value that changes with the file."""
    return path.stat().st_mtime_ns, path.stat().st_size


register_folder()
