"""How people write around a subject: quality tags, other fragments, typing errors. Each is put on both sides of a pair
alike, because what stands on one side alone becomes a sign of that side."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

_TAGGED, _AMONG, _MISSPELT = 0.12, 0.15, 0.06  # shares of all prompts
_WORDS = 45  # of a prompt, at most: more would not fit CLIP's 77 tokens
_TAGS, _FRAGMENTS = (2, 12), (1, 10)  # how many


def in_some_manner(
    texts: Sequence[str], rng: random.Random, *, tags: Sequence[str], fragments: Sequence[str]
) -> tuple[str, ...]:
    """The texts, or all of them between the same tags or fragments, or with the same typing error."""
    kind, room = rng.random(), _WORDS - max(len(text.split()) for text in texts)
    if kind < _TAGGED:
        drawn = _fitting(tags, _TAGS, room, rng)
        return _around(texts, *((drawn, []) if rng.random() < 0.5 else ([], drawn)))
    if kind < _TAGGED + _AMONG:
        drawn = _fitting(fragments, _FRAGMENTS, room, rng)
        at = rng.randint(0, len(drawn))
        return _around(texts, drawn[:at], drawn[at:])
    return _misspelt(texts, rng) if kind < _TAGGED + _AMONG + _MISSPELT else tuple(texts)


def _fitting(parts: Sequence[str], count: tuple[int, int], room: int, rng: random.Random) -> list[str]:
    """Some of the parts, `count` of them or as many as fit into `room` words."""
    found: list[str] = []
    for part in rng.sample(parts, min(len(parts), rng.randint(*count))):
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
