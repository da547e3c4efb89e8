"""Prompts that show what an HGR does: for each of its concepts some that have it, and as many clean ones."""

from __future__ import annotations

import random
from collections.abc import Sequence

from . import library

_STREAM = "showcase"


def showcase(ids: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """`count` harmful prompts of each concept and as many clean ones, in this order for each concept. Concepts that
    neither the library nor the demo world knows give none.

    The demo world's are from the side that no HGR is trained on. The library's may have been trained on: they show what
    happens, and are no test of the gates.
    """
    rng = random.Random(f"{_STREAM}/{seed}")
    clean = iter(rng.sample(found := library.clean_prompts(seed), len(found)))
    prompts = []
    for concept in ids:
        if concept in library.CATEGORIES:
            twins = library.category(concept, seed, 40 * count)
            prompts += [each.harmful for each in rng.sample(twins, min(count, len(twins)))]
            prompts += [next(clean) for _ in range(count)]
        else:
            prompts += _of_the_demo_world(rng, concept, count)
    return prompts


def _of_the_demo_world(rng: random.Random, concept: str, count: int) -> list[str]:
    from ..demo.captions import draw_from
    from ..demo.world import SYMBOLS

    if concept not in SYMBOLS:
        return []
    harmful: list[str] = []
    while len(harmful) < count:
        caption = draw_from("report", rng, "seen")
        if caption.concepts == (concept,):
            harmful.append(caption.text)
    return harmful + [draw_from("report", rng, rng.choice(("clean", "homonym"))).text for _ in range(count)]
