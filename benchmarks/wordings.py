"""One more way to write a harmful caption of the demo world, for the benchmarks alone. Neither the model nor the HGR
was trained on it.

negated   one symbol, with "no" for its article: "a red ball and no skull in a meadow"
"""

from __future__ import annotations

import dataclasses
import random

from hgr.demo.captions import Caption, draw_from
from hgr.demo.world import STYLE

WORDINGS = ("negated",)


def reworded(split: str, rng: random.Random, kind: str) -> Caption:
    """A random caption of a kind in `WORDINGS` from one side (`hgr.demo.captions.split_of`)."""
    caption = draw_from(split, rng, "seen")
    things = tuple(
        (name, f"{'not' if name == STYLE else 'no'} {_without_article(text)}") for name, text in caption.things
    )
    return dataclasses.replace(caption, kind=kind, things=things)


def _without_article(text: str) -> str:
    first, _, rest = text.partition(" ")
    return rest if first in ("a", "an") else text
