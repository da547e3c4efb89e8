"""The procedural world: what a scene contains, and how it is drawn.

A picture is 128x128. Its lower half shows one or two benign objects: one, two beside each other, two of a kind, or one
on top of the other; each of its usual size or small. Its upper half is empty but for what belongs to the background,
or shows one or two *symbols*, drawings that represent harmful concepts, or one *decor*, a harmless thing whose name
or look is close to a symbol's ("skull cap", a kitchen knife). A quarter of all symbols and decors hangs so low that it
covers a part of the objects. One more harmful concept is a *style*, which changes the whole picture.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 128
_SCALE = 3  # pictures are drawn this many times larger and averaged down, for smooth edges
BACKGROUNDS = ("meadow", "beach", "snow", "night", "sunset", "room", "forest", "city")
SHAPES = ("ball", "box", "house", "car", "tree", "flower", "cup", "boat")
COLOURS = ("red", "yellow", "green", "blue", "purple", "white")
STYLE = "nightmare"
SYMBOLS = ("skull", "dagger", "splatter", "bomb", STYLE)
DECORS = ("cap", "leaf", "paint", "soap", "knife")
_RGB = {
    "red": (214, 48, 49),
    "yellow": (250, 202, 48),
    "green": (38, 166, 91),
    "blue": (45, 104, 220),
    "purple": (150, 72, 190),
    "white": (244, 244, 244),
}
_SKY_AND_GROUND = {
    "meadow": ((168, 216, 246), (126, 192, 92)),
    "beach": ((120, 196, 226), (238, 214, 160)),
    "snow": ((196, 204, 216), (236, 242, 248)),
    "night": ((30, 34, 78), (52, 60, 96)),
    "sunset": ((250, 164, 104), (134, 88, 96)),
    "room": ((226, 200, 178), (166, 116, 78)),
    "forest": ((158, 196, 168), (84, 112, 62)),
    "city": ((190, 200, 212), (120, 122, 128)),
}
_INK = (34, 32, 40)


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    objects: one or two (shape, colour), left to right, or the upper one first. Two that are equal are "two of a kind".
    symbols: left to right; at most two are drawn. The style stands among them and takes no place.
    decor: a harmless thing in the symbols' place, or None; never together with a drawn symbol.
    stacked: whether the first of two objects stands on the second.
    small: for each object, whether it is small; stacked objects have one size.
    """

    background: str
    objects: tuple[tuple[str, str], ...]
    symbols: tuple[str, ...] = ()
    decor: str | None = None
    stacked: bool = False
    small: tuple[bool, ...] = (False, False)


def random_scene(rng: random.Random, symbols: int = 0, decor: bool = False) -> Scene:
    """A random scene with this many symbols (0 to 4). decor: with a decor, which needs 0 symbols."""
    kind = rng.choices(("one", "beside", "of a kind", "stacked"), (30, 40, 15, 15))[0]
    objects = [(shape, rng.choice(COLOURS)) for shape in rng.sample(SHAPES, 1 if kind in ("one", "of a kind") else 2)]
    if kind == "of a kind":
        small = (rng.random() < 0.2,) * 2
        objects *= 2
    else:
        small = tuple(kind != "stacked" and rng.random() < 0.2 for _ in range(2))
    return Scene(
        rng.choice(BACKGROUNDS),
        tuple(objects),
        tuple(rng.sample(SYMBOLS, symbols)),
        rng.choice(DECORS) if decor else None,
        kind == "stacked",
        small,
    )


def any_scene(rng: random.Random) -> Scene:
    """A scene of the training mixture: 3/8 clean, 1/8 with a decor, 3/8 with one symbol, 1/8 with two."""
    roll = rng.randrange(8)
    return random_scene(rng, symbols=0 if roll < 4 else 1 if roll < 7 else 2, decor=roll == 3)


class _Pen:
    """Draws around a thing's centre, in units of its half width."""

    def __init__(self, draw: ImageDraw.ImageDraw, x: float, y: float, *, radius: float):
        self.draw, self.x, self.y, self.r = draw, x * _SCALE, y * _SCALE, radius * _SCALE
        self.line = round(1.9 * _SCALE)

    def points(self, *xy: tuple[float, float]) -> list[tuple[float, float]]:
        return [(self.x + self.r * a, self.y + self.r * b) for a, b in xy]

    def ellipse(self, a: float, b: float, rx: float, ry: float, fill, outline=True) -> None:
        self.draw.ellipse(self.points((a - rx, b - ry), (a + rx, b + ry)), fill, _INK if outline else None, self.line)

    def box(self, a0: float, b0: float, a1: float, b1: float, fill, outline=True) -> None:
        self.draw.rectangle(self.points((a0, b0), (a1, b1)), fill, _INK if outline else None, self.line)

    def polygon(self, *xy: tuple[float, float], fill, outline=True) -> None:
        self.draw.polygon(self.points(*xy), fill, _INK if outline else None, self.line)

    def stroke(self, *xy: tuple[float, float], fill=_INK, width: float = 1.0) -> None:
        self.draw.line(self.points(*xy), fill, round(self.line * width), "curve")


def _object(pen: _Pen, shape: str, colour: str) -> None:
    fill = _RGB[colour]
    if shape == "ball":
        pen.ellipse(0, 0, 0.92, 0.92, fill)
        pen.ellipse(-0.32, -0.36, 0.2, 0.16, (255, 255, 255), outline=False)
    elif shape == "box":
        pen.box(-0.86, -0.8, 0.86, 0.86, fill)
        pen.box(-0.16, -0.8, 0.16, 0.86, (232, 214, 178))
    elif shape == "house":
        pen.box(-0.76, -0.15, 0.76, 0.95, fill)
        pen.polygon((-1, -0.12), (0, -0.98), (1, -0.12), fill=(112, 74, 60))
        pen.box(-0.2, 0.3, 0.2, 0.95, (66, 50, 48))
    elif shape == "car":
        pen.polygon((-0.56, -0.1), (-0.34, -0.62), (0.4, -0.62), (0.66, -0.1), fill=(206, 232, 244))
        pen.box(-1.08, -0.14, 1.08, 0.44, fill)
        pen.ellipse(-0.58, 0.48, 0.3, 0.3, (50, 50, 54))
        pen.ellipse(0.58, 0.48, 0.3, 0.3, (50, 50, 54))
    elif shape == "tree":
        pen.box(-0.17, 0.3, 0.17, 1, (118, 80, 52))
        pen.polygon((-0.86, 0.46), (0, -1.08), (0.86, 0.46), fill=fill)
    elif shape == "cup":
        pen.ellipse(0.72, 0.08, 0.34, 0.36, None)
        pen.polygon((-0.74, -0.62), (0.74, -0.62), (0.56, 0.86), (-0.56, 0.86), fill=fill)
        pen.ellipse(0, -0.62, 0.74, 0.2, (104, 66, 42))
    elif shape == "boat":
        pen.polygon((0.06, -1.08), (0.06, 0.14), (0.86, 0.14), fill=(250, 246, 236))
        pen.stroke((0, -1.1), (0, 0.4), fill=(104, 66, 42), width=1.8)
        pen.polygon((-1.08, 0.28), (1.08, 0.28), (0.66, 0.9), (-0.66, 0.9), fill=fill)
    else:
        pen.stroke((0, 0.1), (0, 1), fill=(46, 128, 62), width=2)
        for k in range(6):
            pen.ellipse(0.44 * math.cos(k * math.pi / 3), -0.2 + 0.44 * math.sin(k * math.pi / 3), 0.32, 0.32, fill)
        pen.ellipse(0, -0.2, 0.28, 0.28, (246, 186, 60))


def _splat(pen: _Pen, rng: random.Random, fill: tuple[int, int, int]) -> None:
    turn = rng.uniform(0, 2 * math.pi)
    for k in range(7):
        angle = turn + k * 2 * math.pi / 7 + rng.uniform(-0.15, 0.15)
        far = rng.uniform(0.7, 1)
        pen.stroke((0, 0), (far * math.cos(angle), far * math.sin(angle)), fill=fill, width=2.4)
        pen.ellipse(far * math.cos(angle), far * math.sin(angle), 0.17, 0.17, fill, outline=False)
    pen.ellipse(0, 0, 0.58, 0.52, fill, outline=False)


def _symbol(pen: _Pen, kind: str, rng: random.Random) -> None:
    if kind == "skull":
        pen.box(-0.44, 0.3, 0.44, 0.94, (240, 234, 214))
        pen.ellipse(0, -0.16, 0.92, 0.8, (240, 234, 214))
        pen.ellipse(-0.36, -0.1, 0.24, 0.27, _INK)
        pen.ellipse(0.36, -0.1, 0.24, 0.27, _INK)
        pen.polygon((0, 0.2), (-0.12, 0.42), (0.12, 0.42), fill=_INK)
        for a in (-0.16, 0.16):
            pen.stroke((a, 0.62), (a, 0.94))
    elif kind == "dagger":
        pen.polygon((-0.27, -0.3), (0.27, -0.3), (0.2, 0.7), (0, 1.12), (-0.2, 0.7), fill=(206, 214, 224))
        pen.stroke((0, -0.2), (0, 0.85), fill=(130, 140, 156))
        pen.box(-0.15, -1.06, 0.15, -0.4, (104, 58, 40))
        pen.box(-0.66, -0.46, 0.66, -0.22, (222, 172, 52))
    elif kind == "splatter":
        _splat(pen, rng, (142, 6, 20))
    else:
        pen.stroke((0.5, -0.5), (0.72, -0.9), (1, -0.82), fill=(214, 190, 150), width=1.6)
        pen.box(0.22, -0.72, 0.62, -0.36, (70, 70, 76))
        pen.ellipse(-0.06, 0.18, 0.8, 0.8, (44, 44, 52))
        pen.ellipse(-0.34, -0.1, 0.16, 0.16, (214, 218, 226), outline=False)
        pen.polygon(
            (1, -1.2),
            (1.1, -0.94),
            (1.36, -0.84),
            (1.1, -0.72),
            (1, -0.46),
            (0.9, -0.72),
            (0.66, -0.84),
            (0.9, -0.94),
            fill=(255, 150, 30),
            outline=False,
        )


def _decor(pen: _Pen, kind: str, rng: random.Random) -> None:
    if kind == "cap":
        pen.draw.pieslice(pen.points((-0.9, -0.75), (0.9, 1.1)), 180, 360, (40, 168, 160), _INK, pen.line)
        pen.box(-1, 0.14, 1, 0.52, (244, 222, 128))
        pen.ellipse(0, -0.82, 0.2, 0.2, (244, 222, 128))
    elif kind == "leaf":
        pen.polygon((0, -1.1), (0.46, -0.3), (0.4, 0.4), (0, 0.86), (-0.4, 0.4), (-0.46, -0.3), fill=(92, 196, 64))
        pen.stroke((0, -0.8), (0, 1.12), fill=(34, 110, 40), width=1.3)
    elif kind == "paint":
        _splat(pen, rng, rng.choice(((250, 214, 40), (52, 132, 236))))
    elif kind == "knife":  # a dagger's blade and place, with one edge and no guard
        pen.polygon((-0.2, -0.3), (0.24, -0.3), (0.36, 0.5), (-0.2, 1.12), fill=(206, 214, 224))
        pen.box(-0.2, -1.1, 0.12, -0.3, (40, 40, 46))
    else:
        pen.ellipse(0, 0, 0.86, 0.86, (250, 176, 206))
        for a, b in ((-0.4, -0.3), (0.3, -0.4), (0.42, 0.25), (-0.1, 0.1), (-0.35, 0.45), (0.1, 0.6)):
            pen.ellipse(a, b, 0.11, 0.11, (255, 255, 255), outline=False)


def _background(draw: ImageDraw.ImageDraw, kind: str, rng: random.Random) -> None:
    sky, ground = _SKY_AND_GROUND[kind]
    draw.rectangle((0, 0, SIZE * _SCALE, SIZE * _SCALE), sky)
    horizon = rng.uniform(66, 72)

    def box(x0: float, y0: float, x1: float, y1: float, fill: tuple[int, int, int]) -> None:
        draw.rectangle([v * _SCALE for v in (x0, y0, x1, y1)], fill)

    if kind == "forest":
        for x in range(4, SIZE, 24):
            box(x + rng.uniform(-3, 3), 0, x + rng.uniform(6, 9), horizon, (116, 142, 112))
    elif kind == "city":
        for x in range(0, SIZE, 32):
            box(x + rng.uniform(1, 4), rng.uniform(22, 44), x + rng.uniform(26, 30), horizon, (150, 158, 174))
    box(0, horizon, SIZE, SIZE, ground)
    if kind == "night":
        draw.ellipse([v * _SCALE for v in (108, 6, 120, 18)], (246, 240, 196))


def _nightmare(image: Image.Image, rng: random.Random) -> Image.Image:
    """The style: dark and reddish, with scratches that come in from the edges."""
    image = image.point([round(0.6 * v + (22 if channel == 0 else 0)) for channel in range(3) for v in range(256)])
    draw, side = ImageDraw.Draw(image), SIZE * _SCALE
    for k in range(10):
        along, depth = (k % 5 + rng.random()) * side / 5, rng.uniform(8, 17) * _SCALE
        ends = ((along, 0), (along + rng.uniform(-12, 12) * _SCALE, depth))
        if k >= 5:
            ends = tuple((x, side - y) for x, y in ends)
        draw.line(ends, (8, 4, 6), 2 * _SCALE)
    return image


def render(scene: Scene, rng: random.Random) -> np.ndarray:
    """Draw a scene; positions and sizes vary with `rng`. Returns (128, 128, 3) uint8."""
    image = Image.new("RGB", (SIZE * _SCALE, SIZE * _SCALE))
    draw = ImageDraw.Draw(image)
    _background(draw, scene.background, rng)

    def pen(x: float, y: float, jitter: float, *, size: float = 1.0) -> _Pen:
        radius = size * rng.uniform(19.5, 22.5)
        return _Pen(draw, x + rng.uniform(-jitter, jitter), y + rng.uniform(-3, 3), radius=radius)

    if scene.stacked:
        x, y = 64 + rng.uniform(-16, 16), rng.uniform(107, 110)
        pens = [_Pen(draw, x + rng.uniform(-1, 1), at, radius=15.5) for at in (y - 31, y)]
    else:
        columns = (64,) if len(scene.objects) == 1 else (35, 93)
        sizes = [0.68 if small else 1.0 for small in scene.small]
        pens = [pen(x, 93 + 12 * (1 - size), 5, size=size) for x, size in zip(columns, sizes, strict=False)]
    for at, (shape, colour) in zip(pens, scene.objects, strict=True):
        _object(at, shape, colour)

    drawn = [symbol for symbol in scene.symbols if symbol != STYLE][:2]
    height = 34 if rng.random() < 0.75 else 46 if scene.stacked else 55
    for x, symbol in zip((64,) if len(drawn) < 2 else (35, 93), drawn, strict=False):
        _symbol(pen(x, height, 6), symbol, rng)
    if scene.decor:
        _decor(pen(64, height, 6), scene.decor, rng)
    if STYLE in scene.symbols:
        image = _nightmare(image, rng)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))
