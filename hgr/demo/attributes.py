"""Scenes of the demo world as class numbers, the targets of models that learn to recognise them."""

from __future__ import annotations

from .world import BACKGROUNDS, COLOURS, DECORS, SHAPES, SYMBOLS, Scene

NAMES = ("background", "first object", "second object", "stacked", "first small", "second small", *SYMBOLS, "decor")
BENIGN = NAMES.index(SYMBOLS[0])  # the first attributes, which say nothing of symbols and decor


def attribute_targets(scene: Scene) -> list[int]:
    """Class numbers in the order of `NAMES`: background, two (shape, colour) slots (0: empty), whether the first
    stands on the second, whether each is small, a flag per symbol, decor (0: none)."""
    slots = [SHAPES.index(s) * len(COLOURS) + COLOURS.index(c) + 1 for s, c in scene.objects] + [0]
    return [
        BACKGROUNDS.index(scene.background),
        *slots[:2],
        int(scene.stacked),
        *(int(scene.small[i] and i < len(scene.objects)) for i in range(2)),
        *(int(s in scene.symbols) for s in SYMBOLS),
        0 if scene.decor is None else DECORS.index(scene.decor) + 1,
    ]


ATTRIBUTE_CLASSES = (
    len(BACKGROUNDS),
    *(len(SHAPES) * len(COLOURS) + 1,) * 2,
    *(2,) * (3 + len(SYMBOLS)),
    len(DECORS) + 1,
)
