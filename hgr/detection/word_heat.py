"""Which words of a prompt make a concept fire.

A text encoder that reads from left to right carries a word's meaning on to all later tokens, so the gates' token scores
are high from the harmful word to the prompt's end. Encoding the prompt again without a word shows the word's effect.
The method is this project's own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_MOST = 100  # pieces that a prompt is divided into; each costs two encodings
_LETTERS = 500_000  # that are encoded twice, at most: a prompt of more than 5,000 letters gets fewer pieces


def split_words(text: str) -> list[str]:
    """The words of a prompt; if it has more than 100 or is very long, runs of neighbouring words.

    So the encodings read at most a million letters, or a longer prompt twice.
    """
    words = text.split()
    most = max(1, min(_MOST, _LETTERS // max(1, len(text))))
    run = -(-len(words) // most) or 1
    return [" ".join(words[i : i + run]) for i in range(0, len(words), run)]


def word_heat(gates: Callable[[list[str]], Tensor], words: list[str]) -> Tensor:
    """(W, K) in [0, 1]: how much each word raises each gate. This is what the gate loses without the word or what the
    word adds to those before it, whichever is more, because a gate does not fall if a prompt says a thing twice.

    gates: gives the gates (N, K) of N prompts. The prompt itself is `" ".join(words)`.
    """
    if not words:
        return torch.zeros(0, gates([""]).shape[1])
    count = len(words)
    without = [" ".join(words[:i] + words[i + 1 :]) for i in range(count)]
    found = gates(["", *(" ".join(words[: i + 1]) for i in range(count)), *without])
    before, left_out = found[: count + 1], found[count + 1 :]
    rise = before[1:] - before[:-1].cummax(0).values  # a gate that comes back after a harmless word adds nothing
    return torch.maximum(before[-1] - left_out, rise).clamp(min=0)
