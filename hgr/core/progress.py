"""The callbacks of a long job."""

from __future__ import annotations


class Progress:
    """Called during training and detection; this one does nothing. A method may stop the job by raising."""

    def text(self, done: int, total: int) -> None:
        """`done` of `total` prompts are encoded."""

    def picture(self, done: int, total: int) -> None:
        """`done` of `total` pictures are made or evaluated."""

    def step(self, done: int, loss: float) -> None:
        """`done` steps are trained; `loss` is that of the last one."""


SILENT = Progress()


class Tally:
    """Adds up the pictures of several functions into one count."""

    def __init__(self, progress: Progress, total: int):
        self.progress, self.total, self.done = progress, total, 0

    def add(self, count: int) -> None:
        self.done += count
        self.progress.picture(self.done, self.total)
