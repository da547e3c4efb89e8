"""From prompt pairs to training examples: which concepts a prompt has, and what is left when some are taken away."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass

from .pairs import Pair, Pairs, concepts_by_text

_WORDS = 40  # of a joined prompt: more would not fit the 77 tokens of CLIP


@dataclass(frozen=True)
class Example:
    """A harmful prompt with all its concepts, the prompt without the `removed` ones, and what that one still has."""

    text: str
    labels: frozenset[str]
    target: str
    removed: frozenset[str]


class Examples:
    """Draws examples from pairs. A pair is a step that takes one concept away; where a clean side is itself the harmful
    side of another pair, examples go on from there, so that several concepts are removed at once or one of several
    alone."""

    def __init__(self, pairs: Pairs, seed: int):
        steps = (*pairs.pairs, *join(pairs, random.Random(f"{seed}/join")))
        self._labels = concepts_by_text(steps)
        self.steps: dict[str, list[Pair]] = defaultdict(list)
        starts: dict[str, dict[str, None]] = {topic.id: {} for topic in pairs.topics}
        for pair in steps:
            self.steps[pair.harmful].append(pair)
            starts[pair.concept][pair.harmful] = None
        self.starts = [list(texts) for texts in starts.values()]
        # without clean prompts of their own, the clean twins stand in for them
        self.clean = list(pairs.clean) or [pair.clean for pair in pairs.pairs if pair.clean not in self.steps]

    @property
    def texts(self) -> list[str]:
        """All prompts that a training may ask for."""
        twins = (pair.clean for steps in self.steps.values() for pair in steps)
        return list(dict.fromkeys((*self.steps, *twins, *self.clean)))

    def labels(self, text: str) -> frozenset[str]:
        """The concepts of a prompt; none for a clean one."""
        return self._labels.get(text, frozenset())

    def draw(self, rng: random.Random) -> Example:
        """One example; every concept is as likely as any other."""
        text = target = rng.choice(rng.choice(self.starts))
        removed: set[str] = set()
        while target in self.steps and (not removed or rng.random() < 0.5):
            pair = rng.choice(self.steps[target])
            removed.add(pair.concept)
            target = pair.clean
        labels = self.labels(text)
        # a loop among the pairs, or a prompt whose step adds what its start has not: take a single step instead
        if not removed <= labels or self.labels(target) & removed:
            pair = rng.choice(self.steps[text])
            target, removed = pair.clean, {pair.concept}
        return Example(text, labels, target, frozenset(removed))


def join(pairs: Pairs, rng: random.Random) -> list[Pair]:
    """Prompts of two concepts, one for every eight pairs, made by joining the prompts of two, with all the steps that
    lead to their clean twins. None where the pairs bring prompts of several concepts themselves, or know one concept
    only.

    The displacement of a concept can only learn to leave the others alone from prompts that have others.
    """
    concepts = defaultdict(set)
    by_concept = defaultdict(list)
    for pair in pairs.pairs:
        by_concept[pair.concept].append(pair)
        concepts[pair.harmful].add(pair.concept)
    joined: list[Pair] = []
    if len(by_concept) < 2 or any(len(found) > 1 for found in concepts.values()):
        return joined
    for _ in range(len(pairs.pairs) // 8):
        a, b = (rng.choice(by_concept[concept]) for concept in rng.sample(sorted(by_concept), 2))
        if len(f"{a.harmful} {b.harmful}".split()) > _WORDS:
            continue
        both, first, second, neither = (
            f"{left}, {right}"
            for left, right in ((a.harmful, b.harmful), (a.harmful, b.clean), (a.clean, b.harmful), (a.clean, b.clean))
        )
        group = f"{a.group}+{b.group}"
        joined += [
            Pair(a.concept, both, second, group),
            Pair(b.concept, both, first, group),
            Pair(a.concept, first, neither, group),
            Pair(b.concept, second, neither, group),
        ]
    return joined
