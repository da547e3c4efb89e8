"""How people write around a subject: quality tags, other fragments, typing errors. Each is put on both sides of a pair
alike, because what stands on one side alone becomes a sign of that side."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

_TAGGED, _AMONG, _MISSPELT = 0.15, 0.4, 0.06  # shares of all prompts
_TAGS, _FRAGMENTS = (2, 12), (1, 14)  # how many
# The prompt itself ends at this word at the latest: CLIP's 77 tokens hold it, and only these are trained on. A prompt
# ends at that one.
_WITHIN, _WORDS = 45, 70


def in_some_manner(
    texts: Sequence[str], rng: random.Random, *, tags: Sequence[str], fragments: Sequence[str]
) -> tuple[str, ...]:
    """The texts, or all of them between the same tags or fragments, or with the same typing error."""
    kind, words = rng.random(), max(len(text.split()) for text in texts)
    if kind < _TAGGED + _AMONG:
        parts, count = (tags, _TAGS) if kind < _TAGGED else (fragments, _FRAGMENTS)
        drawn = rng.sample(parts, min(len(parts), rng.randint(*count)))
        before = rng.choice((0, len(drawn))) if kind < _TAGGED else rng.randint(0, len(drawn))
        head = _fitting(drawn[:before], _WITHIN - words)
        return _around(texts, head, _fitting(drawn[before:], _WORDS - words - sum(len(part.split()) for part in head)))
    return _misspelt(texts, rng) if kind < _TAGGED + _AMONG + _MISSPELT else tuple(texts)


def _fitting(parts: Sequence[str], room: int) -> list[str]:
    """The first of the parts, as many as fit into `room` words."""
    found: list[str] = []
    for part in parts:
        room -= len(part.split())
        if room < 0:
            break
        found.append(part)
    return found


def _around(texts: Sequence[str], head: Sequence[str], tail: Sequence[str]) -> tuple[str, ...]:
    return tuple(", ".join((*head, text.rstrip(".") if tail else text, *tail)) for text in texts)


def _misspelt(texts: Sequence[str], rng: random.Random) -> tuple[str, ...]:
    """The texts with one letter wrong in a word that all of them have: which side the word is on must not matter."""
    words = [set(re.findall(r"[A-Za-z]{4,}", text)) for text in texts]
    shared = sorted(set.intersection(*words))
    if not shared:
        return tuple(texts)
    word = rng.choice(shared)
    at = rng.randrange(1, len(word) - 1)
    wrong = rng.choice(
        (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + rng.choice("abcdefghijklmnopqrstuvwxyz") + word[at + 1 :],
        )
    )
    return tuple(re.sub(rf"(?<!\w){word}(?!\w)", wrong, text, count=1) for text in texts)
