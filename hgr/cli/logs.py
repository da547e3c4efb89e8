"""Logs for TensorBoard."""

from __future__ import annotations

import logging
import math
from pathlib import Path

log = logging.getLogger("safecfg")


class Logs:
    """Loss and learning rate of a training, and what it found in the end, in `folder`. A context, which closes the file."""

    def __init__(self, folder: Path, steps: int, lr: float, wanted: bool):
        self.folder, self.steps, self.lr, self.kind, self.writer = folder, steps, lr, None, None
        if not wanted:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.kind = SummaryWriter
        except ImportError:
            log.info("TensorBoard is not installed, so no logs are written: pip install -e \".[train]\"")

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *error: object) -> None:
        if self.writer:
            self.writer.close()

    def _open(self, step: int) -> bool:
        if self.kind and not self.writer:
            # what a killed run had logged after its last checkpoint is superseded
            self.writer = self.kind(self.folder, purge_step=step)
        return self.writer is not None

    def step(self, step: int, loss: float) -> None:
        from ..loop import rate

        if self._open(step):
            self.writer.add_scalar("loss", loss, step)
            self.writer.add_scalar("lr", rate(self.lr, step - 1, self.steps), step)

    def done(self, report: str, values: dict[str, float]) -> None:
        """The report for people, and the figures in it."""
        if not self._open(self.steps + 1):
            return
        for name, value in values.items():
            if math.isfinite(value):
                self.writer.add_scalar(name, value, self.steps)
        self.writer.add_text("report", "    " + report.replace("\n", "\n    "), self.steps)  # indented: as it is
