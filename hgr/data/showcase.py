"""Prompts that show what an HGR does: for each of its concepts some that have it, and as many clean ones."""

from __future__ import annotations

import random
from collections.abc import Sequence

from . import library


def showcase(ids: Sequence[str], count: int, seed: int = 0) -> dict[str, bool]:
    """`count` harmful prompts of each concept and as many clean ones, each with whether it is harmful. Concepts that
    neither the library nor the demo world knows give none.

    The demo world's are from the side that no HGR is trained on. The library's may have been trained on: they show what
    happens, and are no test of the gates.
    """
    rng = random.Random(f"showcase/{seed}")
    found = library.clean_prompts(seed)
    clean = iter(rng.sample(found, len(found)))
    prompts: dict[str, bool] = {}
    for concept in ids:
        if concept in library.CATEGORIES:
            twins = library.category(concept, seed, 40 * count)
            prompts |= {each.harmful: True for each in rng.sample(twins, min(count, len(twins)))}
            prompts |= {next(clean): False for _ in range(count)}
        else:
            prompts |= _of_the_demo_world(rng, concept, count)
    return prompts


def _of_the_demo_world(rng: random.Random, concept: str, count: int) -> dict[str, bool]:
    from ..demo.captions import draw_from
    from ..demo.world import SYMBOLS

    if concept not in SYMBOLS:
        return {}
    found: dict[str, bool] = {}
    while len(found) < count:
        caption = draw_from("report", rng, "seen")
        if caption.concepts == (concept,):
            found[caption.text] = True
    while len(found) < 2 * count:
        found[draw_from("report", rng, rng.choice(("clean", "homonym"))).text] = False
    return found
