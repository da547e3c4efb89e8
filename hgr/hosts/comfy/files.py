"""Files as ComfyUI's users know them, by name: HGRs in models/hgr, the bundled HGR, and lists in the input folder."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import folder_paths

from ...core import file
from ...core.atomic import stale_parts
from ...core.excerpt import excerpt
from ...core.hgr import HGR
from ...demo import assets

BUNDLED = "safecfg_demo (bundled)"
NO_FILE = "none"
_NAME_RULE = "1 to 100 letters, digits, spaces, dots, - and _, starting with a letter or digit"
_NAME_BYTES = 200  # file systems allow 255, and a number, the suffix and a temporary name's end must fit too
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{device}{n}" for device in ("COM", "LPT") for n in "0123456789¹²³")}
_FOLDER = "hgr"


def register_folder() -> None:
    """Register `models/hgr` with the host, besides hgr folders from its extra paths; only for .safetensors."""
    folder_paths.add_model_folder_path(_FOLDER, os.path.join(folder_paths.models_dir, _FOLDER))
    folder_paths.folder_names_and_paths[_FOLDER] = (folder_paths.get_folder_paths(_FOLDER), {".safetensors"})


def hgr_names() -> list[str]:
    """HGR files that a user can choose: their own, then the bundled one."""
    return [*folder_paths.get_filename_list(_FOLDER), BUNDLED]


def hgr_path(name: str) -> Path | None:
    """The path of the file of that name, or None. Names that lead out of the folder give None. In a graph from another
    system, folders in the name may be separated in its way."""
    if name == BUNDLED:
        return assets.HGR_FILE if assets.HGR_FILE.is_file() else None
    listed = folder_paths.get_filename_list(_FOLDER)
    if name not in listed:
        name = {other.replace("\\", "/"): other for other in listed}.get(str(name).replace("\\", "/"), "")
    path = folder_paths.get_full_path(_FOLDER, name) if name else None
    return None if path is None else Path(path)


def find_hgr(name: str) -> Path:
    """`hgr_path`; raises FileNotFoundError if there is no such file."""
    path = hgr_path(name)
    if path is None:
        raise FileNotFoundError(f'HGR "{excerpt(name)}" is not in models/{_FOLDER}.')
    return path


def load_hgr(name: str) -> HGR:
    """Load an HGR by its name, which errors call it by. Raises FileNotFoundError, or HGRError for a file that cannot be
    used."""
    hgr = file.load(find_hgr(name))
    hgr.name = name
    return hgr


def name_fault(name: str) -> str | None:
    """Why no file can be saved under this name on every system, in one sentence; None if one can."""
    stem = _stem(name)
    if not re.fullmatch(r"\w[\w .\-]{0,99}", name):
        why = f"{_NAME_RULE}."
    elif stem.partition(".")[0].rstrip().upper() in _DEVICES:
        why = "Windows keeps it for a device."
    elif (size := len(stem.encode())) > _NAME_BYTES:
        why = f"it has {size} bytes; at most {_NAME_BYTES} are allowed."
    else:
        return None
    return f'"{excerpt(name)}" cannot be a file name: {why}'


def save_hgr(hgr: HGR, name: str) -> str:
    """Save an HGR in `save_folder` under this name, with a number if the file exists, also if another saver has made it
    meanwhile; returns the file's name.

    Raises ValueError for a name that has a `name_fault`, HGRError for an HGR that could not be loaded again, OSError if
    the file cannot be written.
    """
    if fault := name_fault(name):
        raise ValueError(fault)
    folder, stem = save_folder(), _stem(name)
    for part in stale_parts(folder):
        with suppress(OSError):
            part.unlink()
    for number in count(1):
        path = folder / f"{stem}{f'_{number}' if number > 1 else ''}.safetensors"
        if not path.exists():
            try:
                file.save(hgr, path, new=True)
                break
            except FileExistsError:
                continue
    return path.name


def save_folder() -> Path:
    """Where HGRs are saved: models/hgr, or the first hgr folder of the host's extra paths."""
    return Path(folder_paths.get_folder_paths(_FOLDER)[0])


def shown_path(path: Path) -> str:
    """A path for the user: inside ComfyUI's folder relative to it."""
    base = Path(folder_paths.base_path)
    return (path.relative_to(base) if path.is_relative_to(base) else path).as_posix()


def _stem(name: str) -> str:
    return name.removesuffix(".safetensors").rstrip(". ")


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
            raise FileNotFoundError(
                f'"{excerpt(name)}" is not a {" or ".join(self.suffixes)} file in ComfyUI\'s input folder.'
            )
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
    """A value that changes with the file: its time in nanoseconds and its size. Raises FileNotFoundError, without the
    folder, if the file has gone."""
    try:
        found = path.stat()
    except OSError:
        raise FileNotFoundError(f'"{excerpt(path.name)}" cannot be read any more.') from None
    return found.st_mtime_ns, found.st_size


register_folder()
