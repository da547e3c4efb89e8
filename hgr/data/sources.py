"""Where prompt pairs come from: the library, a style's name, words for a user's concept, the demo world or a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..core.excerpt import excerpt
from . import library
from .library import CATEGORIES
from .pair_file import read_pairs
from .pairs import MAX_NAME, MAX_TEXT, Pair, Pairs, Topic, merge_pairs, merge_topics, topic_of
from .textfile import INVALID, DataError

_MOST_OWN, _MOST_WORDS = 100, 100  # styles and own concepts together, and words of an own concept
# Pairs per concept: by default, with all the whole pairs of a category among them; of a style, of words or of the demo
# world, which are made from slots alone; and at most.
PER_CONCEPT, _MADE, MOST_PER_CONCEPT = 1500, 800, 100_000
_NOTHING = "no concept is chosen: switch a built-in concept on, or give a style, a concept of your own or a file."


def built_in(ids: Iterable[str] = CATEGORIES, seed: int = 0, limit: int | None = None) -> Pairs:
    """`limit` library pairs of each of these categories, some of which belong to others of them too, and the library's
    clean prompts, even with no category."""
    ids = tuple(dict.fromkeys(ids))
    topics = _built_in_topics(ids)
    pairs = [
        Pair(concept, twins.harmful, twins.clean, twins.group)
        for each in ids
        for twins in library.category(each, seed, limit or PER_CONCEPT)
        for concept in (each, *(other for other in twins.also if other in ids))
    ]
    return Pairs(topics, tuple(pairs), tuple(library.clean_prompts(seed)))


def art_style(name: str, seed: int = 0, limit: int | None = None) -> Pairs:
    """Pairs for the style of an artist or school, by name, with the library's clean prompts, some in other styles."""
    return merge_pairs(_style(name, seed, limit), built_in((), seed))


def own_concept(name: str, words: Sequence[str] = (), seed: int = 0, *, limit: int | None = None) -> Pairs:
    """Pairs for the user's own concept: its name, and a few words for it in prompts (by default, the name)."""
    return merge_pairs(_own(name, words, seed, limit=limit), built_in((), seed))


def _style(name: str, seed: int, limit: int | None) -> Pairs:
    name = _name(name, "the name of a style")
    topic = Topic(
        _id(f"style {name}"), f"Style: {name}", f"Pictures in the style of {name}.", library.style_words(name)
    )
    return _of_topic(topic, library.style(name, seed, limit or _MADE))


def _own(name: str, words: Sequence[str], seed: int, *, limit: int | None) -> Pairs:
    topic = _own_topic(name, words)
    return _of_topic(topic, library.own(topic.words, seed, limit or _MADE))


def _built_in_topics(ids: Iterable[str]) -> tuple[Topic, ...]:
    for each in ids:
        if each not in CATEGORIES:
            raise DataError(f'"{excerpt(each)}" is not a built-in concept; choose from {", ".join(CATEGORIES)}.')
    return tuple(map(topic_of, ids))


def _own_topic(name: str, words: Sequence[str]) -> Topic:
    name = _name(name, "the name of a concept")
    if len(words) > _MOST_WORDS:
        raise DataError(
            f'"{excerpt(name)}" has {len(words)} words; at most {_MOST_WORDS} are allowed, and ten are enough.'
        )
    words = tuple(dict.fromkeys(_name(word, f'a word for "{excerpt(name)}"') for word in words)) or (name,)
    return Topic(_id(name), name, f"{name}: {', '.join(words)}."[:MAX_TEXT], words)


def demo_world(count: int = _MADE, seed: int = 0) -> Pairs:
    """`count` pairs of each concept for the bundled demo model, and twice as many clean prompts, all from its training
    captions. A caption with two symbols gives pairs that remove the first of them, and pairs that remove the rest."""
    from .library import demo_world as world

    pairs, clean = world.draw_pairs(count, seed)
    return Pairs(tuple(Topic(*topic) for topic in world.TOPICS), tuple(Pair(*pair) for pair in pairs), tuple(clean))


def gather(
    concepts: Iterable[str] = (),
    styles: Iterable[str] = (),
    owns: Iterable[str] = (),
    *,
    demo: bool = False,
    file: Path | None = None,
    limit: int | None = None,
) -> Pairs:
    """The mixture that the user chose. Raises DataError if that is nothing.

    owns: lines such as "name: word, word".
    limit: pairs per concept, up to `MOST_PER_CONCEPT`; a file is used in full, and gets the library's clean prompts if
        it has none.
    """
    if limit is not None and not 1 <= limit <= MOST_PER_CONCEPT:
        raise DataError(
            f"the limit is {limit}; it must be at least 1 and at most {MOST_PER_CONCEPT} pairs per concept."
        )
    styles, owns = _lines(styles, owns)
    # with the library's clean prompts, once for all
    sources = [built_in(concepts, limit=limit)] if (concepts := tuple(concepts)) or styles or owns else []
    sources += [_style(style, 0, limit) for style in styles]
    sources += [_own(*_name_and_words(line), 0, limit=limit) for line in owns]
    if demo:
        sources.append(demo_world(limit or _MADE))
    if file is not None:
        given = read_pairs(file)
        sources += [given] if given.clean else [given, built_in(())]
    if not sources:
        raise DataError(_NOTHING)
    return merge_pairs(*sources)


def gather_topics(concepts: Iterable[str], owns: Iterable[str] = ()) -> tuple[Topic, ...]:
    """The topics of `gather`, without the time that their pairs take. Raises DataError as it does, but not for words
    that are too common to have pairs."""
    _, owns = _lines((), owns)
    topics = (*_built_in_topics(tuple(concepts)), *(_own_topic(*_name_and_words(line)) for line in owns))
    if not topics:
        raise DataError(_NOTHING)
    return merge_topics(topics)


def _lines(styles: Iterable[str], owns: Iterable[str]) -> tuple[list[str], list[str]]:
    """Without the empty lines."""
    styles, owns = ([line for line in lines if line.strip()] for lines in (styles, owns))
    if (count := len(styles) + len(owns)) > _MOST_OWN:
        raise DataError(f"there are {count} styles and concepts of your own; at most {_MOST_OWN} are allowed.")
    return styles, owns


def _name_and_words(line: str) -> tuple[str, list[str]]:
    """Of a concept's line, "name: word, word"."""
    name, _, words = line.partition(":")
    return name, [word for word in words.split(",") if word.strip()]


def _of_topic(topic: Topic, twins: Iterable[library.Twins]) -> Pairs:
    pairs = Pairs(
        (topic,), tuple(Pair(topic.id, each.harmful, each.clean, f"{topic.id}/{each.group}") for each in twins)
    )
    if not pairs.pairs:
        raise DataError(f'"{excerpt(topic.label)}" is too common a word: there are no neutral prompts without it.')
    return pairs


def _name(text: str, what: str) -> str:
    text = _tidy(text)
    if not re.search(r"[^\W_]", text) or len(text) > MAX_NAME or INVALID.search(text):
        raise DataError(
            f'"{excerpt(text)}" cannot be {what}: it needs a letter or digit, and at most {MAX_NAME} characters.'
        )
    return text


def _id(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower()).strip("_")


def _tidy(text: str) -> str:
    return " ".join(text.split())
