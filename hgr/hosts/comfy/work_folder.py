"""The folders of unfinished trainings and report cards, in ComfyUI's own user folder: one each, and none for ever. And
what finished trainings leave to the next."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import folder_paths

from ...training.kept_prompts import kept_prompts
from ...training.work_files import unfinished


def work_folder(kind: str, identity: str, stage: str = "") -> AbstractContextManager[Path]:
    """The folder of one training or card, as `unfinished` says.

    kind: the common folder of its kind.
    identity: the fingerprint of this one, a file name.
    stage: the name of a training's checkpoint.
    """
    return unfinished(_home() / kind / identity, home=_home(), stage=stage)


def prompts_kept_for(encoder: str, work: Path) -> AbstractContextManager[None]:
    """The prompts that earlier trainings have encoded, as `kept_prompts` says. encoder: its fingerprint."""
    return kept_prompts(_home() / "prompts", encoder, work)


def _home() -> Path:
    return Path(folder_paths.get_system_user_directory("safecfg"))
