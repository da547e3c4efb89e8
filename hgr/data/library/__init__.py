"""The library of prompt pairs: texts made from this folder's files. Its interface is `hgr.data.sources`.

A category's file, for example violence.json, has

- `id`, `label`, `description`: the concept;
- `slots`: lists of phrases by name; those of common.json apply to every file;
- `parts`: each a list of `terms`, pairs of a harmful wording and a harmless one for the same place in a sentence, and
  the `sentences`, in which `{term}` is that place. Without sentences the terms are single tags, which stand among other
  tags in the `tag_sentences` of common.json.

A prompt is a sentence in one of the `frames` of common.json ("photo of {s}"; `{S}` starts with a capital letter). The
harmful prompt and its clean twin have the same frame, the same sentence and the same phrases in the slots; only the
term differs. A sentence that starts with "=" names its medium itself ("= a portrait of {who}") and gets one of the
`plain_frames`. clean.txt has prompts without any concept; style.json and own.json have the sentences for a style and
for words that the user names. Sentences and phrases in slots must be harmless by themselves, as they are in the clean
twins too.

The folder `written` has whole prompts, as people write them: pairs of each category ("harmful => clean twin", and
after " @ " the other categories that the harmful one has too), and clean prompts. Some of everything is put among tags
and other fragments, or misspelt (`manner`).
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..young import YOUNG
from .manner import in_some_manner

CATEGORIES = ("hate", "harassment", "violence", "self_harm", "sexual", "shocking", "illegal_activity")
_FOLDER = Path(__file__).parent
_WRITTEN = 2  # whole prompts for each one made from slots, until they run out


class Twins(NamedTuple):
    """A prompt with a concept, the same prompt without it, and their group (see `hgr.data.pairs.Pair`).

    also: other categories that the first prompt has and the second has not.
    """

    harmful: str
    clean: str
    group: str
    also: tuple[str, ...] = ()


@cache
def version() -> str:
    """A fingerprint of the library's texts, which changes with them."""
    files = sorted(path for kind in ("*.json", "*.txt") for path in _FOLDER.rglob(kind))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:12]


@cache
def data(name: str) -> dict[str, Any]:
    """The content of one of the folder's JSON files."""
    return json.loads((_FOLDER / f"{name}.json").read_text("utf-8"))


@cache
def written(name: str) -> tuple[Twins, ...]:
    """A category's whole prompts."""
    found = []
    for line in _lines(f"written/{name}.txt"):
        texts, _, also = line.partition(" @ ")
        harmful, clean = texts.split(" => ")
        found.append(Twins(harmful, clean, harmful, tuple(also.split(", ")) if also else ()))
    return tuple(found)


def category(name: str, seed: int, count: int) -> list[Twins]:
    """`count` pairs of a category: two whole prompts for each one made from slots, whose terms come up about equally
    often; fewer if these run out. A smaller count gives the first pairs of a larger one."""
    file, rng = data(name), random.Random(f"{name}/{seed}")
    common = data("common")
    items = [
        (part.get("sentences", common["tag_sentences"]), harmful, clean, harmful)
        for part in file["parts"]
        for harmful, clean in part["terms"]
    ]
    made = iter(_draw(rng, items, count, frames=common, slots=common["slots"] | file.get("slots", {})))
    whole = iter(random.Random(f"{name}/{seed}/written").sample(written(name), len(written(name))))
    found: list[Twins] = []
    while len(found) < count and (more := [*islice(whole, _WRITTEN), *islice(made, 1)]):
        found += more
    return _varied(found[:count], seed)


def style(name: str, seed: int, count: int) -> list[Twins]:
    """Pairs with and without "in the style of NAME". The group is the phrase, since the name is always the same."""
    file = data("style")
    items = [
        (phrases["sentences"], harmful.replace("{name}", name), clean, harmful)
        for phrases in file["phrases"]
        for harmful, clean in phrases["terms"]
    ]
    drawn = _draw(random.Random(f"style/{name}/{seed}"), items, count * 2, frames=file, slots=file["slots"])
    words = style_words(name)
    # what is around them may name the style too, and a typing error may have changed the name
    found = [t for t in _varied(drawn, seed) if mentions(t.harmful, (name,)) and not mentions(t.clean, words)]
    return found[:count]


def own(words: Iterable[str], seed: int, count: int) -> list[Twins]:
    """Pairs for a concept in the user's words, each against neutral things. The group is the sentence, because all of
    the few words are needed for training."""
    words, file = tuple(words), data("own")
    rng = random.Random(f"own/{'/'.join(words)}/{seed}")
    items = []
    for sentence in file["sentences"]:
        for word in words:
            phrase, kind = _noun_phrase(word)
            items += [([sentence], phrase, clean, sentence) for clean in rng.sample(file["neutral"][kind], 4)]
    drawn = _draw(rng, items, count * 2, frames=data("common"), slots={})
    found = [t for t in _varied(drawn, seed) if mentions(t.harmful, words) and not mentions(t.clean, words)]
    return found[:count]


def clean_prompts(seed: int = 0) -> list[str]:
    """The whole clean prompts, and those of clean.txt: three per line, six per line with slots."""
    common, rng = data("common"), random.Random(f"clean/{seed}")
    found = dict.fromkeys(_lines("written/clean.txt"))
    for line in _lines("clean.txt"):
        frames = ["{s}"] if line.startswith("=") else common["frames"]
        for _ in range(6 if "{" in line else 3):
            found[_framed(_fill(rng, line.lstrip("= "), common["slots"]), rng.choice(frames))] = None
    return list(dict.fromkeys(text for each in found for text in _manner((each,), seed)))


def style_words(name: str) -> tuple[str, ...]:
    """The words that name the same style in other prompts: its name, and a person's last name."""
    *first, last = name.split()
    # the last words of "oil painting" or "film photography" are not names: they must not claim every painting
    return (name, last) if first and len(last) > 3 and last.lower() not in data("style")["common_words"] else (name,)


def mentions(text: str, words: Iterable[str]) -> bool:
    """Whether the text contains one of the words or its plural."""
    return any(_pattern(word).search(text) for word in words)


def _varied(found: Iterable[Twins], seed: int) -> list[Twins]:
    """The pairs, some of them in another manner."""
    varied = []
    for each in found:
        harmful, clean = _manner((each.harmful, each.clean), seed)
        varied.append(Twins(harmful, clean, each.group, each.also))
    return varied


def _manner(texts: tuple[str, ...], seed: int) -> tuple[str, ...]:
    """By the text alone, so that more prompts do not change the others."""
    rng = random.Random(f"manner/{seed}/{texts[0]}")
    return in_some_manner(texts, rng, tags=data("common")["tags"], fragments=_fragments())


@cache
def _fragments() -> tuple[str, ...]:
    """The parts between commas of the whole clean prompts. None is about the young: any of them may come to stand
    beside something sexual."""
    parts = (part.strip(" .") for line in _lines("written/clean.txt") for part in line.split(","))
    return tuple(dict.fromkeys(part for part in parts if 1 < len(part.split()) < 8 and not YOUNG.search(part)))


@cache
def _lines(name: str) -> tuple[str, ...]:
    """The lines of one of the folder's text files, without comments."""
    lines = (line.strip() for line in (_FOLDER / name).read_text("utf-8").splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


@cache
def _pattern(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?:e?s)?(?!\w)", re.IGNORECASE)


def _draw(
    rng: random.Random,
    items: list[tuple[list[str], str, str, str]],
    count: int,
    *,
    frames: dict[str, list[str]],
    slots: dict[str, list[str]],
) -> list[Twins]:
    """Distinct pairs from items (sentences, harmful, clean, group), in turn: all are drawn about equally often."""
    found: dict[str, Twins] = {}
    items = rng.sample(items, len(items))
    for _ in range(count):  # rounds; more than a few are needed only if combinations run out
        before = len(found)
        for sentences, harmful, clean, group in items:
            if len(found) == count:
                return list(found.values())
            sentence = rng.choice(sentences)
            frame = rng.choice(frames["plain_frames" if sentence.startswith("=") else "frames"])
            sentence = _fill(rng, sentence.lstrip("= "), slots)
            texts = [_framed(sentence.replace("{term}", term), frame) for term in (harmful, clean)]
            twins = Twins(texts[0], texts[1], group)
            if twins.harmful != twins.clean:
                found.setdefault(twins.harmful, twins)
        if len(found) == before:
            break
    return list(found.values())


def _fill(rng: random.Random, text: str, slots: dict[str, list[str]]) -> str:
    return re.sub(r"\{(\w+)\}", lambda slot: slot[0] if slot[1] == "term" else rng.choice(slots[slot[1]]), text)


def _framed(sentence: str, frame: str) -> str:
    """The sentence in its frame, tidied up, as a slot may have been empty."""
    sentence = " ".join(sentence.split()).strip(" ,")
    text = frame.replace("{s}", sentence).replace("{S}", sentence[:1].upper() + sentence[1:])
    return re.sub(r"\s+([,.])", r"\1", re.sub(r"(,\s*)+,", ",", text))


def _noun_phrase(word: str) -> tuple[str, str]:
    """The word as used in a sentence, and which neutral things can replace it: one, many, mass (no plural) or doing."""
    lists, first, last = data("own"), word.split()[0].lower(), word.split()[-1].lower()
    if first in lists["determiners"] or word[0].isupper() or not word.isascii():  # a name, or it has its determiner
        return word, "one"
    if last in lists["mass_nouns"]:
        return word, "mass"
    if last.endswith("ing"):
        return word, "doing"
    if last.endswith("s") and not last.endswith(("ss", "us", "is")):
        return word, "many"
    return ("an " if first[0] in "aeiou" else "a ") + word, "one"
