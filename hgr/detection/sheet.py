"""A report card's contact sheet: prompts from top to bottom, methods from left to right."""

from __future__ import annotations

import textwrap
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..core.excerpt import excerpt
from .card import METHODS, PLAIN, SAFE, how_made, small_picture
from .censor import censor

_SIDE = 192  # of a picture on the sheet, at most
_ROWS = 24  # prompts on a page
_MARGIN, _GAP, _BETWEEN, _LINE, _CORNER = 24, 4, 20, 18, 26
PAPER, INK, GREY, RED, RULE = "#fbfaf7", "#22202a", "#706c7a", "#ce2c2c", "#dedad2"
_GREEN = "#11803c"


@dataclass(frozen=True)
class Cell:
    """A picture, bytes (H, W, 3), whether the HGR's probe and another judge see harm in it, and a word on it."""

    picture: Tensor
    harmful: bool
    outside: bool
    says: str


@dataclass(frozen=True)
class Row:
    """A prompt, the concepts that fire in it, and for each method its pictures."""

    prompt: str
    fired: list[str]
    cells: list[list[Cell]]


def draw_card(report: Mapping[str, Any], pictures: Sequence[Tensor], *, blur: bool) -> list[Image.Image]:
    """The contact sheet of a report (`hgr.detection.card`), in pages of one size.

    pictures: bytes (H, W, 3), in the report's order.
    blur: makes pictures unrecognisable that may be harmful: those that a judge flags; of a prompt that is known to be
        harmful or in which a concept fires, all that are not SafeCFG's, and SafeCFG's own where it is the plain one or
        no judge says.
    """
    rows = card_rows(report, pictures, blur=blur)
    heads = [_head(report, name) for name in METHODS]
    about = [how_made(report)]
    if report["judge"] or report["outside"] is not None:
        about.append("harmful: of the pictures of prompts in which a concept fires")
    about += ["red frame: the HGR's own probe sees harm"] if report["judge"] else []
    about += [f"red corner: {report['outside']} sees harm"] if report["outside"] is not None else []
    parts = [rows[at : at + _ROWS] for at in range(0, len(rows), _ROWS)]
    pages = []
    for number, part in enumerate(parts, 1):
        page = f"page {number} of {len(parts)}" if len(parts) > 1 else ""
        pages.append(_page(part, heads, heading="; ".join(filter(None, [*about, page]))))
    height = max(page.height for page in pages)
    return [_taller(page, height) for page in pages]


def card_rows(report: Mapping[str, Any], pictures: Sequence[Tensor], *, blur: bool) -> list[Row]:
    """What the sheet shows of a report. Arguments as of `draw_card`."""
    left, rows = iter(pictures), []
    for item in report["prompts"]:
        suspect = item["harmful"] or bool(item["fired"])
        cells = []
        for name in METHODS:
            about = item["methods"][name]
            judged = zip(about["identical"], about["harmful"], about["outside"], strict=True)
            cells.append([_cell(next(left), name, said, suspect=suspect, blur=blur) for said in judged])
        rows.append(Row(item["prompt"], item["fired"], cells))
    return rows


def _cell(
    picture: Tensor, name: str, said: tuple[bool, bool | None, bool | None], *, suspect: bool, blur: bool
) -> Cell:
    """said: whether the picture is the plain one, and what the probe and the other judge say; None: nothing."""
    same, harmful, outside = said
    made_safe = name == SAFE and not same and (harmful is not None or outside is not None)
    hidden = blur and (bool(harmful) or bool(outside) or (suspect and not made_safe))
    shown = small_picture(picture.float() / 255, _SIDE)
    if hidden:
        shown = small_picture(censor(shown[None].float() / 255, [True], "blur")[0][0])
    return Cell(shown, bool(harmful), bool(outside), "blurred" if hidden else "identical" * (same and name != PLAIN))


def _head(report: Mapping[str, Any], name: str) -> list[str]:
    """A method's name, and the share of its pictures that each judge flags where a concept fires."""
    found, shares = report["summary"]["methods"][name], []
    for judge, key in (("", "harmful"), (f" by {report['outside']}", "outside")):
        if (share := found[f"{key}_where_a_concept_fires"]) is not None:
            shares.append(f"{share:.0%} harmful{judge}")  # the figure first: a long name is cut
    return [name, *shares]


def _page(rows: Sequence[Row], heads: Sequence[Sequence[str]], *, heading: str) -> Image.Image:
    sizes = [cell.picture.shape[:2] for row in rows for cells in row.cells for cell in cells]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    count = len(rows[0].cells[0])
    column = max(count * (width + _GAP) - _GAP, 150)
    total = 2 * _MARGIN + len(METHODS) * (column + _BETWEEN) - _BETWEEN
    fonts = {size: ImageFont.load_default(size) for size in (13, 15, 20)}
    letters = max(20, int((total - 2 * _MARGIN) / 7.2))
    captions = [textwrap.wrap(row.prompt, letters, max_lines=2, placeholder=" ...") for row in rows]
    about = textwrap.wrap(heading, letters, max_lines=5, placeholder=" ...")
    top = 52 + _LINE * len(about)
    tops, y = [], top + 8 + _LINE * max(map(len, heads))
    for lines in captions:
        tops.append(y)
        y += _LINE * (len(lines) + 1) + height + 22
    sheet = Image.new("RGB", (total, y + _MARGIN - 12), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, 20), "The same noise, three ways", INK, fonts[20])
    for i, line in enumerate(about):
        pen.text((_MARGIN, 48 + i * _LINE), fit(line, fonts[13], total - 2 * _MARGIN), GREY, fonts[13])
    lefts = [_MARGIN + i * (column + _BETWEEN) for i in range(len(METHODS))]
    for left, (method, *shares) in zip(lefts, heads, strict=True):
        pen.text((left, top), method, INK, fonts[15])
        for i, share in enumerate(shares, 1):
            pen.text((left, top + 2 + i * _LINE), fit(share, fonts[13], column), GREY, fonts[13])
    for row, lines, at in zip(rows, captions, tops, strict=True):
        pen.line((_MARGIN, at - 4, total - _MARGIN, at - 4), RULE)
        for i, line in enumerate(lines):
            pen.text((_MARGIN, at + i * _LINE), line, INK, fonts[13])
        says = f"fires: {', '.join(row.fired)}" if row.fired else "nothing fires"
        says = fit(says, fonts[13], total - 2 * _MARGIN)
        pen.text((_MARGIN, at + len(lines) * _LINE), says, RED if row.fired else _GREEN, fonts[13])
        y = at + _LINE * (len(lines) + 1) + 4
        for left, cells in zip(lefts, row.cells, strict=True):
            for i, cell in enumerate(cells):
                x = left + i * (width + _GAP)
                paste(sheet, cell.picture, (x, y), framed=cell.harmful)
                high, wide = cell.picture.shape[:2]
                if cell.outside:
                    right = x + wide - 1
                    pen.polygon([(right - _CORNER, y), (right, y), (right, y + _CORNER)], RED, PAPER)
                if cell.says:
                    pen.rectangle((x + 4, y + high - 19, x + 12 + 6 * len(cell.says), y + high - 4), PAPER)
                    pen.text((x + 8, y + high - 19), cell.says, GREY, fonts[13])
    return sheet


def _taller(page: Image.Image, height: int) -> Image.Image:
    if page.height == height:
        return page
    whole = Image.new("RGB", (page.width, height), PAPER)
    whole.paste(page)
    return whole


def paste(sheet: Image.Image, picture: Tensor, corner: tuple[int, int], *, framed: bool) -> None:
    """Put a picture, bytes (H, W, 3), on a sheet. framed: in red."""
    sheet.paste(Image.fromarray(picture.numpy()), corner)
    if framed:
        height, width = picture.shape[:2]
        x, y = corner
        ImageDraw.Draw(sheet).rectangle((x, y, x + width - 1, y + height - 1), outline=RED, width=3)


def fit(text: str, font: Any, width: float) -> str:
    """A text on one line, cut to this width: the longest beginning that fits, with an ellipsis."""
    text = excerpt(text, int(width))  # no letter is narrower than a pixel
    if font.getlength(text) <= width:
        return text
    kept = bisect_right(range(len(text)), width, key=lambda count: font.getlength(text[:count] + "…"))
    return text[: max(0, kept - 1)] + "…"
