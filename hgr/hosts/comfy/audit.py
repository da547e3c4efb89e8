"""The audit log of a policy: one JSON object a line, what was decided for which prompt. No pictures, and no prompt text
unless the operator says so."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timezone
from logging.handlers import RotatingFileHandler
from pathlib import Path

from comfy_execution.utils import get_executing_context

from ...core.json_text import json_text
from . import runs

FILE_NAME = "safecfg_audit.jsonl"
_BYTES, _FILES = 10_000_000, 5


class Audit:
    """mode: one of `hgr.core.policy.AUDIT`. folder: where the file lies."""

    def __init__(self, mode: str, folder: Path):
        self.with_text = mode == "with text"
        self.log: logging.Logger | None = None
        if mode != "off":
            self.log = logging.Logger("safecfg.audit")  # no child of any logger: no console repeats it
            handler = RotatingFileHandler(
                folder / FILE_NAME, maxBytes=_BYTES, backupCount=_FILES, encoding="utf-8", delay=True
            )
            handler.setFormatter(logging.Formatter("%(message)s"))
            self.log.addHandler(handler)

    def record(self, decision: str, concepts: Sequence[str] = (), why: str = "") -> None:
        """decision: in a few words. concepts: the ids that were found."""
        if self.log is None:
            return
        context = get_executing_context()
        line = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "prompt_id": context and context.prompt_id,
            "node": context and context.node_id,
            "decision": decision,
            "concepts": list(concepts),
        }
        line |= {"why": why} if why else {}
        line |= {"text": runs.texts()} if self.with_text else {}
        self.log.info("%s", json_text(line))
