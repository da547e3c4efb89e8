"""A contact sheet: prompts from top to bottom, methods from left to right."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .chart import image

_SIDE = 192  # of a picture on the sheet, at most
_MARGIN, _GAP, _BETWEEN, _LINE = 24, 4, 20, 18
_PAPER, _INK, _GREY, _RED, _GREEN = "#fbfaf7", "#22202a", "#706c7a", "#ce2c2c", "#11803c"


@dataclass(frozen=True)
class Row:
    """A prompt, the concepts that fire in it, and for each method its pictures: (H, W, 3) in [0, 1], whether a judge
    sees harm in it, and whether it is blurred."""

    prompt: str
    fired: list[str]
    pictures: list[list[tuple[Tensor, bool, bool]]]


def draw_sheet(methods: Sequence[str], rows: Sequence[Row], *, heading: str) -> Tensor:
    """The sheet as an IMAGE (1, H, W, 3). All pictures have one size."""
    height, width, _ = rows[0].pictures[0][0][0].shape
    scale = min(1.0, _SIDE / max(height, width))
    height, width = round(scale * height), round(scale * width)
    count = len(rows[0].pictures[0])
    column = max(count * (width + _GAP) - _GAP, 150)
    total = 2 * _MARGIN + len(methods) * (column + _BETWEEN) - _BETWEEN
    fonts = {size: ImageFont.load_default(size) for size in (13, 15, 20)}
    letters = max(20, int((total - 2 * _MARGIN) / 7.2))
    captions = [textwrap.wrap(row.prompt, letters, max_lines=2, placeholder=" ...") for row in rows]
    tops, y = [], 96
    for lines in captions:
        tops.append(y)
        y += _LINE * (len(lines) + 1) + height + 22
    sheet = Image.new("RGB", (total, y + _MARGIN - 12), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, 20), "The same noise, three ways", _INK, fonts[20])
    pen.text((_MARGIN, 48), heading, _GREY, fonts[13])
    lefts = [_MARGIN + i * (column + _BETWEEN) for i in range(len(methods))]
    for left, method in zip(lefts, methods, strict=True):
        pen.text((left, 72), method, _INK, fonts[15])
    for row, lines, top in zip(rows, captions, tops, strict=True):
        pen.line((_MARGIN, top - 4, total - _MARGIN, top - 4), "#dedad2")
        for i, line in enumerate(lines):
            pen.text((_MARGIN, top + i * _LINE), line, _INK, fonts[13])
        says = f"fires: {', '.join(row.fired)}" if row.fired else "nothing fires"
        pen.text((_MARGIN, top + len(lines) * _LINE), says, _RED if row.fired else _GREEN, fonts[13])
        y = top + _LINE * (len(lines) + 1) + 4
        plain = row.pictures[0]
        for m, (left, pictures) in enumerate(zip(lefts, row.pictures, strict=True)):
            for i, (picture, harmful, hidden) in enumerate(pictures):
                x = left + i * (width + _GAP)
                sheet.paste(_thumbnail(picture, height, width), (x, y))
                if harmful:
                    pen.rectangle((x, y, x + width - 1, y + height - 1), outline=_RED, width=3)
                said = "blurred" if hidden else "identical" if m and picture.equal(plain[i][0]) else ""
                if said:
                    pen.rectangle((x + 4, y + height - 18, x + 12 + 6 * len(said), y + height - 4), _PAPER)
                    pen.text((x + 8, y + height - 18), said, _GREY, fonts[13])
    return image(sheet)


def _thumbnail(picture: Tensor, height: int, width: int) -> Image.Image:
    x = F.interpolate(picture.movedim(-1, 0)[None], (height, width), mode="area")[0]
    return Image.fromarray((255 * x.clamp(0, 1)).round().byte().movedim(0, -1).numpy())
