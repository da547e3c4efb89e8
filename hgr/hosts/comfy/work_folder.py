"""The folders of unfinished trainings and report cards, in ComfyUI's own user folder: one each, and none for ever."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import folder_paths

from ...training.work_files import unfinished


def work_folder(kind: str, identity: str, stage: str = "") -> AbstractContextManager[Path]:
    """The folder of one training or card, as `unfinished` says.

    kind: the common folder of its kind.
    identity: the fingerprint of this one, a file name.
    stage: the name of a training's checkpoint.
    """
    home = Path(folder_paths.get_system_user_directory("safecfg"))
    return unfinished(home / kind / identity, home=home, stage=stage)
