"""What a long job calls as it proceeds."""

from __future__ import annotations


class Progress:
    """Called as a training or a detection proceeds; this one does nothing. A method may stop the job by raising."""

    def text(self, done: int, total: int) -> None:
        """So many prompts are encoded."""

    def picture(self, done: int, total: int) -> None:
        """So many pictures are made or judged."""

    def step(self, done: int, loss: float) -> None:
        """So many steps are trained, the last one with this loss."""


SILENT = Progress()


class Tally:
    """Counts pictures that several functions go through, as one count."""

    def __init__(self, progress: Progress, total: int):
        self.progress, self.total, self.done = progress, total, 0

    def add(self, count: int) -> None:
        self.done += count
        self.progress.picture(self.done, self.total)
