"""HGR files as the host's user knows them: by name, in models/hgr, and the one that is bundled."""

from __future__ import annotations

import os
import re
from pathlib import Path

import folder_paths

from ... import file
from ...demo import assets
from ...redirector import HGR

BUNDLED = "safecfg_demo (bundled)"
_FOLDER = "hgr"


def register_folder() -> None:
    """Make `models/hgr` known to the host, beside folders of that name from its extra paths; .safetensors only."""
    folder_paths.add_model_folder_path(_FOLDER, os.path.join(folder_paths.models_dir, _FOLDER))
    folder_paths.folder_names_and_paths[_FOLDER] = (folder_paths.get_folder_paths(_FOLDER), {".safetensors"})


def hgr_names() -> list[str]:
    """HGR files that a user can choose: their own, then the bundled one."""
    return [*folder_paths.get_filename_list(_FOLDER), BUNDLED]


def hgr_path(name: str) -> Path | None:
    """Where the file of that name lies; None if there is none. Names that lead out of the folder have none."""
    if name == BUNDLED:
        return assets.HGR_FILE if assets.HGR_FILE.is_file() else None
    path = folder_paths.get_full_path(_FOLDER, name) if name in folder_paths.get_filename_list(_FOLDER) else None
    return None if path is None else Path(path)


def find_hgr(name: str) -> Path:
    """`hgr_path`. Raises FileNotFoundError where there is none."""
    path = hgr_path(name)
    if path is None:
        raise FileNotFoundError(f"HGR \"{name}\" is not in models/{_FOLDER}.")
    return path


def load_hgr(name: str) -> HGR:
    """Load an HGR by the name shown. Raises FileNotFoundError, and HGRError for a file that cannot be used."""
    return file.load(find_hgr(name))


NAME_RULE = "1 to 100 letters, digits, spaces, points, - and _, with a letter or digit first"


def is_name(name: str) -> bool:
    """Whether a file may be saved under this name."""
    return re.fullmatch(r"[\w][\w .\-]{0,99}", name) is not None


def save_hgr(hgr: HGR, name: str) -> str:
    """Save an HGR in models/hgr under this name, or this name with a number where there is such a file; returns the file's name.

    Raises ValueError for a name that breaks `NAME_RULE`, OSError where the disk is full or may not be written to.
    """
    if not is_name(name):
        raise ValueError(f"\"{name}\" cannot be a file name: {NAME_RULE}.")
    folder, stem = Path(folder_paths.get_folder_paths(_FOLDER)[0]), name.removesuffix(".safetensors").rstrip(". ")
    number = 1
    while (path := folder / f"{stem}{f'_{number}' if number > 1 else ''}.safetensors").exists():
        number += 1
    file.save(hgr, path)
    return path.name


register_folder()
