"""The error of everything that reads or uses an HGR."""

from __future__ import annotations


class HGRError(ValueError):
    """A file or an input that cannot be used, in one sentence that says why."""
