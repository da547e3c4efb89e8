"""A long job in a node: progress bar, preview, the interrupt button, and gradients for training."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy.utils
import torch
from PIL import Image

from ...core.progress import Estimate, Progress, in_words
from . import runs
from .chart import draw_loss

log = logging.getLogger("safecfg")

_PREVIEW_SECONDS = _TEXT_SECONDS = 1.0
_LOG_SECONDS = 60.0


@contextmanager
def gradients() -> Iterator[None]:
    """Enables gradients: nodes run in inference mode, and the host's fused kernels have no gradients."""
    before, comfy.model_management.in_training = getattr(comfy.model_management, "in_training", False), True
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        comfy.model_management.in_training = before


class NodeProgress(Progress):
    """The node's progress bar and, in words, what it is doing and how long that takes. The interrupt button stops the
    job."""

    def __init__(self, total: int = 1):
        self.bar = comfy.utils.ProgressBar(total)
        self.name, self.estimate = "", Estimate()
        self.said = self.logged = self.begun = time.monotonic()

    def phase(self, name: str) -> None:
        super().phase(name)
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.name, self.estimate = name, Estimate()
        self.said = self.logged = time.monotonic()
        runs.say(name)

    def text(self, done: int, total: int) -> None:
        self._show(done, total)

    def picture(self, done: int, total: int) -> None:
        self._show(done, total)

    def _show(self, done: int, total: int, preview: tuple | None = None) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(done, total, preview)
        left, now = self.estimate.left(done, total), time.monotonic()
        if not self.name or now - self.said < _TEXT_SECONDS:
            return
        self.said = now
        line = f"{self.name}: {done:,} of {total:,}{left and ', '}{left}"
        runs.say(line)
        if now - self.logged >= _LOG_SECONDS:
            self.logged = now
            log.info("%s", line)


class TrainingProgress(NodeProgress):
    """The same, with a loss chart as preview. title: what is trained."""

    def __init__(self, title: str, steps: int):
        super().__init__(steps)
        self.title, self.steps, self.shown = title, steps, 0.0
        self.losses: list[tuple[int, float]] = []

    def end(self) -> None:
        """The result is there."""
        runs.say(f"{self.title}: done in {in_words(time.monotonic() - self.begun)}")

    def step(self, done: int, loss: float) -> None:
        self.losses.append((done, loss))
        preview = None
        if time.monotonic() - self.shown > _PREVIEW_SECONDS:
            self.shown = time.monotonic()
            preview = ("PNG", self.chart(), None)
        self._show(done, self.steps, preview)

    def chart(self) -> Image.Image:
        """The loss so far."""
        return draw_loss(self.losses, self.steps, self.title)
