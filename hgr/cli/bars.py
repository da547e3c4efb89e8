"""Progress on a terminal."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..core.progress import Progress


class Bars(Progress):
    """One progress bar after another. A context that writes log lines above the bar and not through it.

    shown: whether there are any bars; there are none if stderr is not a terminal.
    """

    def __init__(self, shown: bool = True):
        self.disable = None if shown else True
        self.name, self.redirected = "", logging_redirect_tqdm()
        self.bar: tqdm | None = None

    def __enter__(self) -> Bars:
        self.redirected.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._close()
        self.redirected.__exit__(*error)

    def text(self, done: int, total: int) -> None:
        self.show("prompts", done, total)

    def picture(self, done: int, total: int) -> None:
        self.show("pictures", done, total)

    def show(self, name: str, done: int, total: int, *, note: str = "") -> None:
        """Show the bar of this name at `done` of `total`. A new name or a count that falls starts a new bar."""
        if self.bar is None or name != self.name or done < self.bar.n:
            self._close()
            self.name, self.bar = name, tqdm(desc=name, total=total, initial=max(0, done - 1), disable=self.disable)
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(done - self.bar.n)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
