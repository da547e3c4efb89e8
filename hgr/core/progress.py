"""The callbacks of a long job."""

from __future__ import annotations

import logging
import time

log = logging.getLogger("safecfg")

_FIRST = 3.0  # seconds after which a phase's speed is known


class Progress:
    """Called during training and detection; this one only logs the phases. A method may stop the job by raising."""

    def phase(self, name: str) -> None:
        """Another part of the job begins, in words: "encoding 11,725 prompts". The counts that follow are about it."""
        log.info("%s", name)

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


class Estimate:
    """How long a phase still takes, by its speed so far."""

    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None

    def left(self, done: int, total: int) -> str:
        """In words; empty as long as nobody can tell."""
        now = time.monotonic()
        if self.first is None or done < self.first[1]:
            self.first = now, done  # a part may be there already, of an interrupted training
        start, before = self.first
        if done == before or now - start < _FIRST or done >= total:
            return ""
        return f"{in_words((now - start) / (done - before) * (total - done))} left"


def in_words(seconds: float) -> str:
    """A duration for people: "less than a minute", "about 4 minutes", "about 3 hours"."""
    if seconds < 50:
        return "less than a minute"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"about {minutes} minute{'s' * (minutes > 1)}"
    return f"about {round(seconds / 3600)} hours"
