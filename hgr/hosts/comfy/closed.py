"""The fail-closed start: where there is a policy that could not be put in force, no denoiser is built. Imports nothing
of the pack that could fail with it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import folder_paths

from ...core.policy_file import FILE_NAME, VARIABLE

log = logging.getLogger("safecfg")


def policy_path() -> Path | None:
    """The policy file of this server; None if there is none. A file that is named need not be there."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    path = Path(folder_paths.get_user_directory(), FILE_NAME)
    return path if os.path.lexists(path) else None


@contextmanager
def closed_on_error() -> Iterator[None]:
    """If putting the policy in force fails here, nothing is sampled until the server ends."""
    try:
        yield
    except Exception as error:
        if policy_path() is not None:
            _close(type(error).__name__)  # its words may hold paths
        raise


def _close(why: str) -> None:
    import comfy.model_base
    import comfy.samplers

    sentence = f"SafeCFG policy: it could not be put in force ({why}), so nothing is sampled."
    log.error("%s Mend it and start ComfyUI again.", sentence, exc_info=True)

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ValueError(f"{sentence} This server's operator decides about this.")

    comfy.model_base.BaseModel.__init__ = comfy.samplers.CFGGuider.sample = refuse
