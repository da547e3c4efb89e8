"""How a message shows what a user gave."""

from __future__ import annotations

_MOST = 80


def excerpt(given: object, most: int = _MOST) -> str:
    """What a user gave, for a message of one line: at most `most` letters, with the middle of a longer text left out,
    since a path is recognised by its end; what cannot be printed, such as a line break, becomes the letter for that."""
    text = str(given)
    if len(text) > most:
        kept = most - 1
        text = f"{text[: kept // 2]}…{text[-(kept - kept // 2) :]}"
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
