"""Examples with words added, changed or taken out, made from pairs: slips, and what gets a prompt past a gate.

What a text encoder makes of a word depends on the words around it, so a gate that has seen a concept only in orderly
prompts may miss it beside a word that belongs to a harmless namesake.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from ..data.examples import Example
from ..data.pairs import Pair, Pairs, concepts_by_text
from ..data.young import YOUNG
from .bare import bare_word, difference

_PAIRS = 2  # of a concept, for one edited example
_EDITS = (1, 1, 2, 3)  # of a prompt
_CLEAN = 0.15  # edited clean prompts, as a share of the clean ones
_LOOKS = {"a": "@4", "e": "3", "i": "1!", "o": "0", "s": "5$", "l": "1", "t": "7"}


class EditedExamples:
    """Examples whose two sides have the same changes outside of what makes them differ: a misspelt concept may be no
    concept any more. clean: clean prompts with words added at their ends, or with a typing error.

    Words are added as often as they tell clean prompts from harmful ones: a gate may take them for a sign that all is
    well, such as the "leaf" of a dagger-shaped leaf.
    """

    def __init__(self, pairs: Pairs, clean: Sequence[str], seed: int):
        rng = random.Random(f"{seed}/edited")
        words = _Words(pairs, clean)
        found = concepts_by_text(pairs.pairs)
        self.examples: list[Example] = []
        self._labels: dict[str, frozenset[str]] = {}
        for concept in pairs.ids:
            own = pairs.of(concept)
            for pair in rng.sample(own, len(own) // _PAIRS):
                if not (sides := _sides(pair)):
                    continue
                text, target = _edited(pair, *sides, words=words, rng=rng)
                labels, kept = found[pair.harmful], found[pair.clean]
                self.examples.append(Example(text, labels, target, labels - kept))
                self._labels[text] = self._labels.get(text, frozenset()) | labels
                self._labels[target] = self._labels.get(target, frozenset()) | kept
        self.clean = [_edited_clean(text, words, rng) for text in rng.sample(list(clean), int(_CLEAN * len(clean)))]

    @property
    def texts(self) -> list[str]:
        """All prompts that training may need."""
        return list(dict.fromkeys((*self._labels, *self.clean)))

    def labels(self, text: str) -> frozenset[str]:
        """The concepts of a prompt; none for a clean one."""
        return self._labels.get(text, frozenset())

    def draw(self, rng: random.Random) -> Example:
        """One example. Raises IndexError if there are none."""
        return rng.choice(self.examples)


class _Words:
    """The words of clean prompts, in the measure in which harmful ones do not have them."""

    def __init__(self, pairs: Pairs, clean: Sequence[str]):
        harmless = Counter(
            word for text in dict.fromkeys((*clean, *(p.clean for p in pairs.pairs))) for word in _in(text)
        )
        harmful = Counter(word for text in dict.fromkeys(p.harmful for p in pairs.pairs) for word in _in(text))
        self.words = [word for word in harmless if not YOUNG.search(word)]
        self.weights = list(accumulate(harmless[word] / (1 + harmful[word]) for word in self.words))

    def draw(self, text: str, rng: random.Random) -> str:
        """A word to add to this clean prompt: beside words for the young, only one of its own."""
        if not self.words or YOUNG.search(text):
            return rng.choice(text.split() or [""])
        return rng.choices(self.words, cum_weights=self.weights)[0]


def _in(text: str) -> dict[str, None]:
    """The words of a text, each once, in an order that is the same in every process."""
    return dict.fromkeys(word for word in map(bare_word, text.split()) if word)


def typo(word: str, rng: random.Random) -> str:
    """The word with a letter left out, doubled, swapped with the one before, replaced by a lookalike or cut off; words
    of less than four letters stay."""
    if len(word) < 4:
        return word
    i = rng.randrange(1, len(word))
    look = rng.choice(_LOOKS.get(word[i].lower(), word[i] * 2))
    return rng.choice(
        (
            word[:i] + word[i + 1 :],
            word[:i] + word[i] + word[i:],
            word[: i - 1] + word[i] + word[i - 1] + word[i + 1 :],
            word[:i] + look + word[i + 1 :],
            word[:i] + rng.choice("-. ") + word[i:],
        )
    )


def _sides(pair: Pair) -> tuple[list[str], list[str]] | None:
    """The words before and after the place in which a pair's prompts differ, if there is one such place, and no words
    for the young in it."""
    text, twin = pair.harmful.split(), pair.clean.split()
    span = difference(pair.harmful, pair.clean)
    before, after = text[: span.start], text[span.stop :]
    if not span or not twin or len(before) + len(after) > len(twin):
        return None
    if YOUNG.search(pair.harmful) and not YOUNG.search(pair.clean):
        return None
    same = twin[: len(before)] == before and twin[len(twin) - len(after) :] == after
    return (before, after) if same else None


def _edited(pair: Pair, before: list[str], after: list[str], *, words: _Words, rng: random.Random) -> tuple[str, str]:
    """Both sides of a pair with the same edits around the place in which they differ."""
    text, twin = pair.harmful.split(), pair.clean.split()
    own, other = (side[len(before) : len(side) - len(after)] for side in (text, twin))
    # a word right behind the concept may make another thing of it: a skull cap
    left, behind, right = list(before), after[:1], after[1:]
    sides = [left, right] if behind else [left]
    for _ in range(rng.choice(_EDITS)):
        side = rng.choice([side for side in sides for _ in range(len(side) + 1)])
        _edit(side, words.draw(pair.clean, rng), rng)
    return " ".join((*left, *own, *behind, *right)), " ".join((*left, *other, *behind, *right))


def _edit(side: list[str], word: str, rng: random.Random) -> None:
    """Put this word somewhere or in the place of another, or take one out or misspell one."""
    at = rng.randrange(len(side) + 1)
    way = rng.choice(("add", "add", "add", "replace", "remove", "typo"))
    if way == "add" or at == len(side):
        side.insert(at, word)
    elif way == "replace":
        side[at] = word
    elif way == "remove":
        del side[at]
    else:
        side[at] = typo(side[at], rng)


def _edited_clean(text: str, words: _Words, rng: random.Random) -> str:
    """A clean prompt with words at an end of it, where they cannot make another thing of it, or with a typing error."""
    own = text.split()
    for _ in range(rng.choice(_EDITS)):
        if own and rng.random() < 1 / 3:
            at = rng.randrange(len(own))
            own[at] = typo(own[at], rng)
        else:
            own.insert(rng.choice((0, len(own))), words.draw(text, rng))
    return " ".join(own)
