"""From prompt pairs to training examples: which concepts a prompt has, and what is left when some are removed."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .pairs import Pair, Pairs, concepts_by_text
from .young import YOUNG

_WORDS = 40  # of a joined prompt, at most: more would not fit CLIP's 77 tokens
_TOGETHER = 2 / 3  # how often all concepts that a twin lacks are on, if it lacks more than the pair's own


@dataclass(frozen=True)
class Example:
    """A harmful prompt `text` with its concepts, `labels`; and `target`, the same without the `removed` ones."""

    text: str
    labels: frozenset[str]
    target: str
    removed: frozenset[str]


class Examples:
    """Draws examples from pairs. A pair is a step that removes one concept. If its clean side is the harmful side of
    another pair, an example may take that step too, so examples remove one concept of several, or several at once."""

    def __init__(self, pairs: Pairs, seed: int):
        drawn = random.Random(f"{seed}/join"), random.Random(f"{seed}/among")
        steps = (*pairs.pairs, *join(pairs, drawn[0]), *among(pairs, drawn[1]))
        self._labels = concepts_by_text(steps)
        self.steps: dict[str, list[Pair]] = defaultdict(list)
        starts: dict[str, dict[str, None]] = {topic.id: {} for topic in pairs.topics}
        for pair in steps:
            self.steps[pair.harmful].append(pair)
            starts[pair.concept][pair.harmful] = None
        self.starts = [list(texts) for texts in starts.values()]
        self.clean = _clean(pairs)

    @property
    def texts(self) -> list[str]:
        """All prompts that training may need."""
        twins = (pair.clean for steps in self.steps.values() for pair in steps)
        return list(dict.fromkeys((*self.steps, *twins, *self.clean)))

    def labels(self, text: str) -> frozenset[str]:
        """The concepts of a prompt; none for a clean one."""
        return self._labels.get(text, frozenset())

    def draw(self, rng: random.Random) -> Example:
        """One example; all concepts are equally likely."""
        text = target = rng.choice(rng.choice(self.starts))
        removed: set[str] = set()
        while target in self.steps and (not removed or rng.random() < 0.5):
            pair = rng.choice(self.steps[target])
            removed.add(pair.concept)
            target = pair.clean
        labels = self.labels(text)
        # the pairs form a loop, or a step adds a concept that the start lacks: take a single step instead
        if not removed <= labels or self.labels(target) & removed:
            pair = rng.choice(self.steps[text])
            target, removed = pair.clean, {pair.concept}
        # gates of related concepts fire together, and their displacements add up; each must also do alone
        if rng.random() < _TOGETHER:
            removed |= labels - self.labels(target)
        return Example(text, labels, target, frozenset(removed))


def join(pairs: Pairs, rng: random.Random) -> list[Pair]:
    """One prompt with two concepts for every eight pairs, joined from the prompts of two that have one each, with all
    the steps to its clean twin. None if the pairs have such steps themselves, or only one concept.

    A concept's displacement learns to leave other concepts alone only from prompts that have several.
    """
    concepts = concepts_by_text(pairs.pairs)
    by_concept = defaultdict(list)
    for pair in pairs.pairs:
        if len(concepts[pair.harmful]) == 1:
            by_concept[pair.concept].append(pair)
    joined: list[Pair] = []
    if len(by_concept) < 2 or any(concepts[pair.clean] for pair in pairs.pairs):
        return joined
    for _ in range(len(pairs.pairs) // 8):
        a, b = (rng.choice(by_concept[concept]) for concept in rng.sample(sorted(by_concept), 2))
        if len(f"{a.harmful} {b.harmful}".split()) > _WORDS or any(
            YOUNG.search(text) for each in (a, b) for text in (each.harmful, each.clean)
        ):
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


def among(pairs: Pairs, rng: random.Random) -> list[Pair]:
    """One prompt among one to four clean ones for every eight pairs, with all its steps; a twin has the same around it.

    Clean prompts are long too, and lists of several things: without these, that would be a sign of a clean prompt.
    """
    steps = defaultdict(list)
    for pair in pairs.pairs:
        steps[pair.harmful].append(pair)
    texts = list(steps)
    clean = [text for text in _clean(pairs) if not YOUNG.search(text)]
    found: dict[Pair, None] = {}
    for _ in range(len(pairs.pairs) // 8 if clean else 0):
        start, parts = rng.choice(texts), rng.choices(clean, k=rng.randint(1, 4))
        while parts and len(" ".join((start, *parts)).split()) > _WORDS:
            parts.pop()
        at = rng.randint(0, len(parts))
        reached = [start] if parts else []
        for text in reached:  # which grows
            for pair in steps[text]:
                harmful, twin = (listed((*parts[:at], each, *parts[at:])) for each in (text, pair.clean))
                found[replace(pair, harmful=harmful, clean=twin)] = None
                if pair.clean in steps and pair.clean not in reached:
                    reached.append(pair.clean)
    return list(found)


def listed(parts: Iterable[str]) -> str:
    """One prompt of several."""
    return ", ".join(part.rstrip(".") for part in parts)


def _clean(pairs: Pairs) -> list[str]:
    """The prompts without any concept. If there are no clean prompts, the clean twins replace them."""
    harmful = {pair.harmful for pair in pairs.pairs}
    return list(pairs.clean) or [pair.clean for pair in pairs.pairs if pair.clean not in harmful]
