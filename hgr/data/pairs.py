"""Prompt pairs for training an HGR: a prompt with a concept, and its twin of the same wording without it."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ..core.excerpt import excerpt
from . import library
from .library import CATEGORIES
from .textfile import DataError

MAX_TEXT = 2000  # characters of a prompt
MAX_NAME = 100  # characters of a concept's id or label


@dataclass(frozen=True)
class Topic:
    """A concept.

    words: what names it in any prompt, if the user gave a name or words. Prompts from other sources that contain one of
    them are left out of a mixture, because they would teach the opposite.
    """

    id: str
    label: str
    description: str = ""
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """A prompt with a concept, and the same prompt without it.

    Pairs of one group (the same term, or neighbouring rows of a file) stay on one side of a split. A prompt may have
    several concepts: those of all pairs whose harmful side it is. The twin lacks this pair's, and those of the others
    that it is not the harmful side of.
    """

    concept: str
    harmful: str
    clean: str
    group: str


@dataclass(frozen=True)
class Pairs:
    """A training set. clean: prompts without any concept."""

    topics: tuple[Topic, ...]
    pairs: tuple[Pair, ...]
    clean: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(topic.id for topic in self.topics)

    def __add__(self, other: Pairs) -> Pairs:
        return merge_pairs(self, other)

    def of(self, concept: str) -> tuple[Pair, ...]:
        """The pairs of one concept."""
        return tuple(pair for pair in self.pairs if pair.concept == concept)

    def with_clean(self, count: int | None) -> Pairs:
        """The same with `count` of its clean prompts, chosen by hash; with all of them for None."""
        kept = set(sorted(self.clean, key=lambda text: _share(0, f"kept/{text}"))[:count])
        return replace(self, clean=tuple(text for text in self.clean if text in kept))

    def split(self, held_out: float, seed: int = 0) -> tuple[Pairs, Pairs]:
        """(training, held-out). Each group and each clean prompt is placed by its own hash, so that more rows do not
        move the others. Each concept with two or more groups of its own has some on both sides."""
        if not 0 <= held_out < 1:
            raise DataError(f"the held-out share is {held_out}; it must be at least 0 and below 1.")
        owners: dict[str, set[str]] = {}
        groups_of: dict[str, dict[str, None]] = {}
        for pair in self.pairs:
            owners.setdefault(pair.group, set()).add(pair.concept)
            groups_of.setdefault(pair.concept, {})[pair.group] = None
        away = {group for group in owners if _share(seed, group) < held_out}
        for groups in groups_of.values() if held_out else ():
            # only groups that no other concept shares: moving these cannot empty another concept's side
            own = sorted((group for group in groups if len(owners[group]) == 1), key=lambda group: _share(seed, group))
            if len(own) > 1 and away.isdisjoint(groups):
                away.add(own[0])
            elif len(own) > 1 and away.issuperset(groups):
                away.remove(own[-1])
        sides = []
        for held in (False, True):
            pairs = tuple(pair for pair in self.pairs if (pair.group in away) == held)
            sides.append(
                Pairs(self.topics, pairs, tuple(text for text in self.clean if (_share(seed, text) < held_out) == held))
            )
        return sides[0], sides[1]


def concepts_by_text(pairs: Iterable[Pair]) -> dict[str, frozenset[str]]:
    """The concepts of each text in the pairs: those of the pairs whose harmful side it is; none for a clean twin."""
    found: dict[str, frozenset[str]] = {}
    for pair in pairs:
        found[pair.harmful] = found.get(pair.harmful, frozenset()) | {pair.concept}
        found.setdefault(pair.clean, frozenset())
    return found


def _share(seed: int, text: str) -> float:
    """A number in [0, 1) that depends only on the text and the seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{text}".encode()).digest()[:6], "big") / 2**48


def merge_pairs(*sets: Pairs) -> Pairs:
    """The mixture: concepts in order, nothing twice. Raises DataError for a concept id with two labels."""
    topics = merge_topics(topic for each in sets for topic in each.topics)
    claims = _claims(topics)
    pairs: dict[tuple[str, str, str], Pair] = {}
    for pair in (pair for each in sets for pair in each.pairs):
        pairs.setdefault((pair.concept, pair.harmful, pair.clean), pair)
    kept = tuple(p for p in pairs.values() if not (claims(p.clean, p.concept) or claims(p.harmful, p.concept)))
    harmful = {pair.harmful for pair in kept}
    clean = dict.fromkeys(text for each in sets for text in each.clean)
    return Pairs(topics, kept, tuple(t for t in clean if t not in harmful and not claims(t)))


def merge_topics(given: Iterable[Topic]) -> tuple[Topic, ...]:
    """Each concept once, with all its words. Raises DataError for a concept id with two labels."""
    topics: dict[str, Topic] = {}
    for topic in given:
        known = topics.setdefault(topic.id, topic)
        if known.label != topic.label:
            raise DataError(
                f'two concepts have the id "{excerpt(topic.id)}": "{excerpt(known.label)}" and '
                f'"{excerpt(topic.label)}". Rename one of them.'
            )
        topics[topic.id] = Topic(
            topic.id,
            topic.label,
            known.description or topic.description,
            tuple(dict.fromkeys((*known.words, *topic.words))),
        )
    return tuple(topics.values())


def _claims(topics: Iterable[Topic]) -> Callable[..., bool]:
    """Whether a text contains one of the topics' words, other than those of the concept named second."""
    # by the first part of each word, as there may be hundreds of topics and a hundred thousand texts
    words: dict[str, list[tuple[str, str]]] = {}
    for topic in topics:
        for word in topic.words:
            words.setdefault(_parts(word)[0], []).append((topic.id, word))

    def claims(text: str, concept: str = "") -> bool:
        parts = {stem for part in _parts(text) for stem in (part, part.removesuffix("s"), part.removesuffix("es"))}
        found = (each for part in parts & words.keys() for each in words[part])
        return any(id != concept and library.mentions(text, (word,)) for id, word in found)

    return claims


def _parts(text: str) -> list[str]:
    return [part.casefold() for part in re.findall(r"\w+", text)]


def describe_pairs(pairs: Pairs, samples: int = 2) -> str:
    """The counts by concept, and a few pairs of each, for people."""
    by_concept: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs.pairs:
        by_concept[pair.concept].append(pair)
    groups = {concept: len({pair.group for pair in some}) for concept, some in by_concept.items()}
    lines = [
        f"{topic.label} ({topic.id}): {len(by_concept[topic.id])} pairs in {groups.get(topic.id, 0)} groups"
        for topic in pairs.topics
    ]
    lines.append(f"clean prompts: {len(pairs.clean)}")
    for topic in pairs.topics if samples else ():
        some = by_concept[topic.id]
        lines += ["", topic.label]
        for pair in some[:: max(1, len(some) // samples)][:samples]:
            lines += [f"  - {pair.harmful}", f"  + {pair.clean}"]
    return "\n".join(lines)


def topic_of(id: str, label: str = "") -> Topic:
    """The library's topic of this id, or a new one with this label."""
    if id not in CATEGORIES:
        return Topic(id, label or id.replace("_", " ").capitalize())
    file = library.data(id)
    return Topic(id, label or file["label"], file["description"])
