"""The error of everything that reads or uses an HGR."""

from __future__ import annotations


class HGRError(ValueError):
    """A file or an input that cannot be used, in one sentence that says why."""


class EncoderMismatch(HGRError):
    """An HGR that was made for another text encoder. The sentence begins with the HGR's name and "was made for": the
    editor marks the file by it (`web/js/verdicts.js`)."""
