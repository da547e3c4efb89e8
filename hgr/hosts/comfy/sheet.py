"""A contact sheet: prompts from top to bottom, methods from left to right."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .chart import fit, image

_SIDE = 192  # of a picture on the sheet, at most
_MARGIN, _GAP, _BETWEEN, _LINE = 24, 4, 20, 18
_PAPER, _INK, _GREY, _RED, _GREEN, _RULE = "#fbfaf7", "#22202a", "#706c7a", "#ce2c2c", "#11803c", "#dedad2"


@dataclass(frozen=True)
class Cell:
    """A picture (H, W, 3) in [0, 1], whether a judge sees harm in it, and a word on it."""

    picture: Tensor
    harmful: bool
    says: str


@dataclass(frozen=True)
class Row:
    """A prompt, the concepts that fire in it, and for each method its pictures."""

    prompt: str
    fired: list[str]
    cells: list[list[Cell]]


def thumbnail(picture: Tensor) -> Tensor:
    """A picture (H, W, 3) as large as the sheet shows it."""
    scale = min(1.0, _SIDE / max(picture.shape[:2]))
    size = [max(1, round(scale * side)) for side in picture.shape[:2]]
    return F.interpolate(picture.movedim(-1, 0)[None], size, mode="area")[0].movedim(0, -1)


def draw_sheet(methods: Sequence[str], rows: Sequence[Row], *, heading: str) -> Tensor:
    """The sheet as an IMAGE (1, H, W, 3). All pictures have one size, that of a `thumbnail`."""
    height, width, _ = rows[0].cells[0][0].picture.shape
    count = len(rows[0].cells[0])
    column = max(count * (width + _GAP) - _GAP, 150)
    total = 2 * _MARGIN + len(methods) * (column + _BETWEEN) - _BETWEEN
    fonts = {size: ImageFont.load_default(size) for size in (13, 15, 20)}
    letters = max(20, int((total - 2 * _MARGIN) / 7.2))
    captions = [textwrap.wrap(row.prompt, letters, max_lines=2, placeholder=" ...") for row in rows]
    tops, y = [], 100
    for lines in captions:
        tops.append(y)
        y += _LINE * (len(lines) + 1) + height + 22
    sheet = Image.new("RGB", (total, y + _MARGIN - 12), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, 20), "The same noise, three ways", _INK, fonts[20])
    pen.text((_MARGIN, 48), fit(heading, fonts[13], total - 2 * _MARGIN), _GREY, fonts[13])
    lefts = [_MARGIN + i * (column + _BETWEEN) for i in range(len(methods))]
    for left, method in zip(lefts, methods, strict=True):
        pen.text((left, 74), method, _INK, fonts[15])
    for row, lines, top in zip(rows, captions, tops, strict=True):
        pen.line((_MARGIN, top - 4, total - _MARGIN, top - 4), _RULE)
        for i, line in enumerate(lines):
            pen.text((_MARGIN, top + i * _LINE), line, _INK, fonts[13])
        says = f"fires: {', '.join(row.fired)}" if row.fired else "nothing fires"
        pen.text((_MARGIN, top + len(lines) * _LINE), says, _RED if row.fired else _GREEN, fonts[13])
        y = top + _LINE * (len(lines) + 1) + 4
        for left, cells in zip(lefts, row.cells, strict=True):
            for i, cell in enumerate(cells):
                x = left + i * (width + _GAP)
                sheet.paste(_pixels(cell.picture), (x, y))
                if cell.harmful:
                    pen.rectangle((x, y, x + width - 1, y + height - 1), outline=_RED, width=3)
                if cell.says:
                    pen.rectangle((x + 4, y + height - 19, x + 12 + 6 * len(cell.says), y + height - 4), _PAPER)
                    pen.text((x + 8, y + height - 19), cell.says, _GREY, fonts[13])
    return image(sheet)


def _pixels(picture: Tensor) -> Image.Image:
    return Image.fromarray((255 * picture.clamp(0, 1)).round().byte().numpy())
