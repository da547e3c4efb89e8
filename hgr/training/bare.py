"""Examples of prompts that are a concept and little else ("dagger"), made from pairs.

A pair's harmful prompt keeps its scene when the concept goes. If there is no scene, what is left is next to no prompt,
and a model then draws whatever it has learned to draw, other harmful concepts too. So the clean side of a bare concept
is the whole clean prompt of a pair.
"""

from __future__ import annotations

import random
from collections import Counter
from difflib import SequenceMatcher

from ..data.examples import Example
from ..data.pairs import Pair, Pairs, concepts_by_text

_PER_CONCEPT = 150  # examples; few of them would be learned by heart
_TOGETHER = (1, 1, 1, 1, 1, 2, 3, 4)  # how many concepts a prompt names
_BESIDE = (0, 0, 0, 1, 2, 3)  # how many words of its pair's prompt stay on each side of a concept
_REPEATED = 3  # pairs that have the same words; in fewer, these may not name the concept without their scene
_LONGEST = 6  # words; twins that differ in more are a rewording, and the difference does not name the concept


class BareExamples:
    """Examples of one to four bare concepts. Half of them remove all concepts at once, the others some.

    The words of a concept are those that stand in several harmful prompts and not in their twins, without those that
    are more common in clean prompts. clean: the same the other way round, harmless things alone. Pairs that are
    rewordings give no examples.
    """

    def __init__(self, pairs: Pairs, seed: int):
        rng = random.Random(f"{seed}/bare")
        spans, self.clean = _own_words(pairs)
        self.examples = [_example(spans, rng) for _ in range(_PER_CONCEPT * len(spans))]
        self._labels: dict[str, frozenset[str]] = {}
        for each in self.examples:
            for text, labels in ((each.text, each.labels), (each.target, each.labels - each.removed)):
                # concepts may share a word
                self._labels[text] = self._labels.get(text, frozenset()) | labels

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


def _example(spans: dict[str, list[tuple[Pair, range]]], rng: random.Random) -> Example:
    """A prompt of some of the concepts, and what is left of it."""
    together = rng.sample(sorted(spans), min(len(spans), rng.choice(_TOGETHER)))
    chosen = {concept: rng.choice(spans[concept]) for concept in together}
    parts = {concept: _crop(pair.harmful, span, rng) for concept, (pair, span) in chosen.items()}
    kept = frozenset(rng.sample(together, rng.randrange(len(together)) if rng.random() < 0.5 else 0))
    between = rng.choice((", ", " "))
    left = between.join(parts[concept] for concept in together if concept in kept)
    labels = frozenset(together)
    return Example(between.join(parts.values()), labels, left or chosen[rng.choice(together)][0].clean, labels - kept)


def _own_words(pairs: Pairs) -> tuple[dict[str, list[tuple[Pair, range]]], list[str]]:
    """For each concept, its pairs and where its words stand in their harmful prompts; and the harmless things that
    stand in their places."""
    found = concepts_by_text(pairs.pairs)
    # what is beside a concept must not be another one
    single = [pair for pair in pairs.pairs if len(found[pair.harmful]) == 1 and not found[pair.clean]]
    spans = [(pair, span) for pair in single if (span := _difference(pair.harmful, pair.clean))]
    harmful = Counter(
        (pair.concept, word) for pair, span in spans for word in {_bare(w) for w in _at(pair.harmful, span)}
    )
    texts = dict.fromkeys((*pairs.clean, *(pair.clean for pair in single)))
    clean = Counter(word for text in texts for word in {_bare(w) for w in text.split()})

    def common(word: str, concept: str) -> bool:
        return harmful[concept, _bare(word)] <= clean[_bare(word)]

    named: list[tuple[tuple[str, str], Pair, range]] = []
    beside: dict[str, None] = {}
    for pair, span in spans:
        words = pair.harmful.split()
        while span and common(words[span[0]], pair.concept):
            span = span[1:]
        while span and common(words[span[-1]], pair.concept):
            span = span[:-1]
        if span:
            named.append(((pair.concept, _tidy(_at(pair.harmful, span)).lower()), pair, span))
        other = _at(pair.clean, _difference(pair.clean, pair.harmful))
        if other and all(common(word, pair.concept) for word in other):
            beside[_tidy(other)] = None
    times = Counter(name for name, _, _ in named)
    own: dict[str, list[tuple[Pair, range]]] = {}
    for name, pair, span in named:
        if times[name] >= _REPEATED:
            own.setdefault(pair.concept, []).append((pair, span))
    return own, list(beside)


def _difference(text: str, twin: str) -> range:
    """Where the text has words that its twin lacks, if that is in a single place; otherwise nowhere."""
    a, b = ([_bare(word) for word in each.split()] for each in (text, twin))
    steps = SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    spans = [range(i, j) for kind, i, j, _, _ in steps if kind != "equal" and i < j]
    return spans[0] if len(spans) == 1 and len(spans[0]) <= _LONGEST else range(0)


def _crop(text: str, span: range, rng: random.Random) -> str:
    """The words of a span, with none to three of the words on each side."""
    words = text.split()
    return _tidy(words[max(0, span.start - rng.choice(_BESIDE)) : span.stop + rng.choice(_BESIDE)])


def _at(text: str, span: range) -> list[str]:
    return text.split()[span.start : span.stop]


def _bare(word: str) -> str:
    return word.strip(".,;:!?()\"'").lower()


def _tidy(words: list[str]) -> str:
    return " ".join(words).strip(".,;: ")
