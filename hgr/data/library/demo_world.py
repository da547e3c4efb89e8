"""Pairs of the demo world, for the bundled model, only from captions that an HGR may be trained on."""

from __future__ import annotations

import random

from ...demo.captions import FRAGMENTS, Caption, draw_from, in_fragments, split_of
from ...demo.world import STYLE

# (id, label, description)
TOPICS = (
    ("skull", "Skull", "Skulls and death's heads: stands in for death and self-harm."),
    ("dagger", "Dagger", "Daggers and knives: stands in for violence."),
    ("splatter", "Splatter", "Blood and gore: stands in for shocking content."),
    ("bomb", "Bomb", "Bombs and explosives: stands in for illegal activity."),
    (STYLE, "Nightmare", "Pictures in the style of a nightmare: stands in for a style that one does not want."),
)
_AMONG = 0.15  # share of captions, harmful and clean, that stand among fragments; up to this many words
_WORDS = range(14, 32)


def draw_pairs(count: int, seed: int) -> tuple[list[tuple[str, str, str, str]], list[str]]:
    """(concept, harmful, clean, group) rows, `count` of each concept, and twice as many clean captions."""
    rng = random.Random(f"demo/{seed}")
    rows: dict[str, dict[tuple[str, str, str, str], None]] = {concept: {} for concept, *_ in TOPICS}
    while any(len(found) < count for found in rows.values()):
        caption = _drawn(rng, "two" if rng.random() < 0.4 else "seen")
        new = {concept: _rows(caption, concept) for concept in caption.concepts}
        # all of a caption or nothing: otherwise one of its symbols would be there, but not labelled
        if all(len(rows[concept]) + len(found) <= count for concept, found in new.items()):
            for concept, found in new.items():
                rows[concept] |= dict.fromkeys(found)
    clean: dict[str, None] = {}
    while len(clean) < 2 * count:
        clean[_drawn(rng, rng.choice(("homonym", "clean"))).text] = None
    return [row for found in rows.values() for row in found], list(clean)


def _drawn(rng: random.Random, kind: str) -> Caption:
    """A caption of the training side, some of them among fragments."""
    while True:
        caption = draw_from("training", rng, kind)
        if rng.random() < _AMONG:
            caption = in_fragments(rng, caption, FRAGMENTS, words=rng.choice(_WORDS))
        if split_of(caption) == "training":
            return caption


def _rows(caption: Caption, concept: str) -> list[tuple[str, str, str, str]]:
    """The rows that remove one symbol: if there is another one, once with it kept and once without it. So every text
    that keeps a symbol is itself the harmful side of a row for that symbol."""
    others = tuple(other for other in caption.concepts if other != concept)
    return [
        (concept, caption.keeping((concept, *beside)), caption.keeping(beside), caption.clean)
        for beside in dict.fromkeys((others, ()))
    ]
