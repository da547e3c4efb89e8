"""Prompt pairs for training an HGR: a prompt with a concept, and its twin of the same wording without it.

Pairs come from the built-in library, from a style's name, from words for an own concept, from the demo world, or from a CSV or JSONL
file; `merge` mixes them. Plain Python: nothing here needs a tensor.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import library, rows
from .library import CATEGORIES
from .rows import MAX_NAME, MAX_TEXT, PairsError, Row

PER_CONCEPT = 800  # pairs a concept unless told otherwise
_BLOCK = 10  # rows of a file that make a group


@dataclass(frozen=True)
class Topic:
    """A concept. words: what names it in any prompt, where the user gave a name or words; prompts of other sources that hold one
    of them are left out of a mixture, for they would teach the opposite."""

    id: str
    label: str
    description: str = ""
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """A prompt with the concept and the same without it. Pairs of one group (the same term, or neighbouring rows of a file) stay on
    one side of a split. A prompt may have several concepts: those of all the pairs whose harmful side it is. The twin then lacks the
    pair's own one alone."""

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
        return merge(self, other)

    def of(self, concept: str) -> tuple[Pair, ...]:
        """The pairs of one concept."""
        return tuple(pair for pair in self.pairs if pair.concept == concept)

    def split(self, held_out: float, seed: int = 0) -> tuple[Pairs, Pairs]:
        """(training, held-out). Groups and clean prompts go by a hash of their own, so that more rows do not move the others. Each
        concept with two groups or more of its own has some on both sides."""
        if not 0 <= held_out < 1:
            raise PairsError(f"the held-out share is {held_out}; it must be at least 0 and below 1.")
        owners: dict[str, set[str]] = {}
        for pair in self.pairs:
            owners.setdefault(pair.group, set()).add(pair.concept)
        away = {group for group in owners if _share(seed, group) < held_out}
        for concept in self.ids if held_out else ():
            # only groups that no other concept shares: moving those cannot empty another one's side
            groups = sorted((group for group in owners if owners[group] == {concept}), key=lambda group: _share(seed, group))
            if len(groups) > 1 and not any(concept in owners[group] for group in away):
                away.add(groups[0])
            elif len(groups) > 1 and all(group in away for group in owners if concept in owners[group]):
                away.remove(groups[-1])
        sides = []
        for held in (False, True):
            pairs = tuple(pair for pair in self.pairs if (pair.group in away) == held)
            sides.append(Pairs(self.topics, pairs, tuple(text for text in self.clean if (_share(seed, text) < held_out) == held)))
        return sides[0], sides[1]


def _share(seed: int, text: str) -> float:
    """A number in [0, 1) that hangs on the text and the seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{text}".encode()).digest()[:6], "big") / 2**48


def merge(*sets: Pairs) -> Pairs:
    """The mixture: the concepts in their order, nothing twice. A concept's id with two labels is a PairsError."""
    topics: dict[str, Topic] = {}
    for topic in (topic for each in sets for topic in each.topics):
        known = topics.setdefault(topic.id, topic)
        if known.label != topic.label:
            raise PairsError(f"two concepts have the id \"{topic.id}\": \"{known.label}\" and \"{topic.label}\". Rename one of them.")
        topics[topic.id] = Topic(topic.id, topic.label, known.description or topic.description,
                                 tuple(dict.fromkeys((*known.words, *topic.words))))
    claimed = {topic.id: topic.words for topic in topics.values() if topic.words}

    def claims(text: str, concept: str = "") -> bool:
        return any(id != concept and library.mentions(text, words) for id, words in claimed.items())

    pairs: dict[tuple[str, str, str], Pair] = {}
    for pair in (pair for each in sets for pair in each.pairs):
        pairs.setdefault((pair.concept, pair.harmful, pair.clean), pair)
    kept = tuple(p for p in pairs.values() if not (claims(p.clean, p.concept) or claims(p.harmful, p.concept)))
    harmful = {pair.harmful for pair in kept}
    clean = dict.fromkeys(text for each in sets for text in each.clean)
    return Pairs(tuple(topics.values()), kept, tuple(t for t in clean if t not in harmful and not claims(t)))


# --- sources -----------------------------------------------------------------------------------------------------------


def built_in(ids: Iterable[str] = CATEGORIES, seed: int = 0, limit: int | None = None) -> Pairs:
    """The library's pairs of these categories, `limit` of each, and its clean prompts; of no category, the clean prompts alone."""
    ids = tuple(dict.fromkeys(ids))
    for each in ids:
        if each not in CATEGORIES:
            raise PairsError(f"\"{each}\" is not a built-in concept; there are {', '.join(CATEGORIES)}.")
    pairs = [Pair(each, *twins) for each in ids for twins in library.category(each, seed, limit or PER_CONCEPT)]
    return Pairs(tuple(map(_topic, ids)), tuple(pairs), tuple(library.clean_prompts(seed)))


def art_style(name: str, seed: int = 0, limit: int | None = None) -> Pairs:
    """Pairs for the style of an artist or school, by its name; with the library's clean prompts, other styles among them."""
    name = _name(name, "a style")
    topic = Topic(_id(f"style {name}"), f"Style: {name}", f"Pictures in the style of {name}.", library.style_words(name))
    return _with_clean(topic, library.style(name, seed, limit or PER_CONCEPT), seed)


def own(name: str, words: Sequence[str] = (), seed: int = 0, limit: int | None = None) -> Pairs:
    """Pairs for an own concept: a name, and a few words for it in prompts (without any, the name is the word)."""
    name = _name(name, "a concept")
    words = tuple(dict.fromkeys(_name(word, f"a word of \"{name}\"") for word in words)) or (name,)
    topic = Topic(_id(name), name, f"{name}: {', '.join(words)}."[:MAX_TEXT], words)
    return _with_clean(topic, library.own(words, seed, limit or PER_CONCEPT), seed)


def demo_world(count: int = PER_CONCEPT, seed: int = 0) -> Pairs:
    """`count` pairs of each concept for the bundled demo model, and twice as many clean prompts: from its training captions only.
    Captions with two symbols give pairs that remove one of them, and the rest."""
    from .library import demo_world as world  # draws scenes, which needs numpy and Pillow

    pairs, clean = world.draw(count, seed)
    return Pairs(tuple(Topic(*topic) for topic in world.TOPICS), tuple(Pair(*pair) for pair in pairs), tuple(clean))


def read(path: str | Path) -> Pairs:
    """Pairs from a CSV (a header with harmful, clean, concept) or JSONL file (objects with these keys). Rows with `clean` alone are
    clean prompts; `label` and `group` are optional. Without `group`, neighbouring rows of a concept make one, as they often share a term.

    Raises PairsError, naming the file and the line, for whatever is wrong.
    """
    path = Path(path)
    topics: dict[str, Topic] = {}
    pairs, clean, count = [], [], Counter()
    for line, row in rows.read(path):
        if not row.concept:
            clean.append(row.clean)
            continue
        known = topics.setdefault(row.concept, _topic(row.concept, row.label))
        if row.label not in ("", known.label):
            raise PairsError(f"{path.name}, line {line}: concept \"{row.concept}\" has the label \"{row.label}\" here, "
                             f"but \"{known.label}\" before.")
        group = row.group or f"{row.concept}, rows from {count[row.concept] // _BLOCK * _BLOCK}"
        count[row.concept] += 1
        pairs.append(Pair(row.concept, row.harmful, row.clean, group))
    if not pairs and not clean:
        raise PairsError(f"{path.name}: holds no row.")
    return merge(Pairs(tuple(topics.values()), tuple(pairs), tuple(clean)))


def write(pairs: Pairs, path: str | Path) -> None:
    """Write a CSV that `read` reads; only the topics' descriptions and words are not in it."""
    labels = {topic.id: topic.label for topic in pairs.topics}
    rows.write([*(Row(p.harmful, p.clean, p.concept, labels[p.concept], p.group) for p in pairs.pairs),
                *(Row("", text, "") for text in pairs.clean)], Path(path))


def gather(concepts: Iterable[str] = (), styles: Iterable[str] = (), owns: Iterable[str] = (), demo: bool = False,
           file: Path | None = None, limit: int | None = None) -> Pairs:
    """The mixture that a user chose; a PairsError where that is nothing.

    owns: lines as "name: word, word". limit: pairs a concept; a file is used whole, and gets the library's clean prompts if it
    has none.
    """
    if limit is not None and limit < 1:
        raise PairsError(f"the limit is {limit}; it must be at least 1 pair a concept.")
    sources = [built_in(concepts, limit=limit)] if (concepts := tuple(concepts)) else []
    sources += [art_style(style, limit=limit) for style in styles if style.strip()]
    for line in owns:
        name, _, words = line.partition(":")
        if line.strip():
            sources.append(own(name, [word for word in words.split(",") if word.strip()], limit=limit))
    if demo:
        sources.append(demo_world(limit or PER_CONCEPT))
    if file is not None:
        given = read(file)
        sources += [given] if given.clean else [given, built_in(())]
    if not sources:
        raise PairsError("no concept is chosen: switch a built-in concept on, or give a style, an own concept or a file.")
    return merge(*sources)


def report(pairs: Pairs, samples: int = 2) -> str:
    """What there is: the counts by concept, and a few pairs of each."""
    counts = Counter(pair.concept for pair in pairs.pairs)
    groups = Counter(concept for concept, _ in {(pair.concept, pair.group) for pair in pairs.pairs})
    lines = [f"{topic.label} ({topic.id}): {counts[topic.id]} pairs in {groups[topic.id]} groups" for topic in pairs.topics]
    lines.append(f"clean prompts: {len(pairs.clean)}")
    for topic in pairs.topics if samples else ():
        some = pairs.of(topic.id)
        lines += ["", topic.label]
        for pair in some[::max(1, len(some) // samples)][:samples]:
            lines += [f"  - {pair.harmful}", f"  + {pair.clean}"]
    return "\n".join(lines)


def _topic(id: str, label: str = "") -> Topic:
    """The library's topic of this id, or a new one with this label."""
    if id not in CATEGORIES:
        return Topic(id, label or id.replace("_", " ").capitalize())
    file = library.data(id)
    return Topic(id, label or file["label"], file["description"])


def _with_clean(topic: Topic, twins: Iterable[library.Twins], seed: int) -> Pairs:
    pairs = Pairs((topic,), tuple(Pair(topic.id, each.harmful, each.clean, f"{topic.id}/{each.group}") for each in twins))
    if not pairs.pairs:
        raise PairsError(f"\"{topic.label}\" is too common a word: there are no neutral prompts without it.")
    return merge(pairs, built_in((), seed))


def _name(text: str, what: str) -> str:
    text = _tidy(text)
    if not re.search(r"[^\W_]", text) or len(text) > MAX_NAME or "\0" in text:
        raise PairsError(f"\"{text[:40]}\" cannot be the name of {what}: it needs a letter or digit, and at most {MAX_NAME} characters.")
    return text


def _id(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower()).strip("_")


def _tidy(text: str) -> str:
    return " ".join(text.split())
