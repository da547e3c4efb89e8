"""Charts as pictures: for a node's preview and for its IMAGE outputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...detection.sheet import fit

_SIZE = (720, 420)
_LEFT, _TOP, _RIGHT, _BOTTOM = 64, 40, 20, 48
_PAPER, _INK, _GRID, _FAINT, _LINE = "#ffffff", "#333333", "#e4e4e4", "#b9cdea", "#2a62b8"


def image(picture: Image.Image) -> Tensor:
    """A picture as ComfyUI's IMAGE (1, H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def draw_loss(points: list[tuple[int, float]], steps: int, title: str) -> Image.Image:
    """The loss of each step and its running mean, on a logarithmic scale. points: (step, loss), the loss above 0.
    title: of the chart."""
    picture = Image.new("RGB", _SIZE, _PAPER)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13)
    width, height = _SIZE[0] - _LEFT - _RIGHT, _SIZE[1] - _TOP - _BOTTOM
    values = [max(loss, 1e-6) for _, loss in points] or [1.0]
    ticks = [digit * 10.0**decade for decade in range(-6, 7) for digit in (1, 2, 5)]
    low = max(tick for tick in ticks if tick <= min(values))
    high = min((tick for tick in ticks if tick >= max(values) and tick > low), default=ticks[-1])

    def at(step: float, loss: float) -> tuple[float, float]:
        return (
            _LEFT + width * step / steps,
            _TOP + height * (math.log10(high) - math.log10(max(loss, low))) / (math.log10(high) - math.log10(low)),
        )

    for tick in ticks:
        if low <= tick <= high:
            y = at(0, tick)[1]
            pen.line((_LEFT, y, _LEFT + width, y), _GRID)
            pen.text((_LEFT - 8, y), f"{tick:g}", _INK, font, anchor="rm")
    for i in range(5):
        x = _LEFT + width * i / 4
        pen.line((x, _TOP, x, _TOP + height), _GRID)
        pen.text((x, _TOP + height + 8), f"{steps * i // 4:,}", _INK, font, anchor="mt")
    pen.text((_LEFT + width / 2, _SIZE[1] - 8), "step", _INK, font, anchor="mb")
    title += ": loss" + (f"    {points[-1][0]:,} of {steps:,} steps, now {_smooth(values)[-1]:.4f}" if points else "")
    pen.text((_LEFT, 14), title, _INK, font, anchor="lt")
    if len(points) > 1:
        places = [step for step, _ in points]
        pen.line([at(*point) for point in zip(places, values, strict=True)], _FAINT, 1)
        pen.line([at(*point) for point in zip(places, _smooth(values), strict=True)], _LINE, 3, joint="curve")
    return picture


def _smooth(values: list[float], share: float = 0.1) -> list[float]:
    """A running mean, over fewer values at the start."""
    result, mean = [], values[0]
    for i, value in enumerate(values):
        mean += max(share, 1 / (i + 1)) * (value - mean)
        result.append(mean)
    return result


_BAR, _GAP, _FLAGGED, _FREE = 22, 8, "#c23b3b", "#4f9d69"
_SHOWN = 12  # items of a batch


def draw_report(report: dict[str, Any]) -> Image.Image:
    """A detection's report: for each item a bar per concept with its threshold, and the prompt's words, redder the more
    they add."""
    items = report["items"][:_SHOWN]
    font, small, wide = ImageFont.load_default(13), ImageFont.load_default(11), _SIZE[0] - 24
    lines = [_wrap(item.get("words", []), font, wide) for item in items]
    more = len(report["items"]) - len(items)
    heights = [
        30 + _BAR * len(item["concepts"]) + _GAP + (20 * len(text) + _GAP if text else 0)
        for item, text in zip(items, lines, strict=True)
    ]
    picture = Image.new("RGB", (_SIZE[0], 40 + sum(heights) + 24 * bool(more)), _PAPER)
    pen = ImageDraw.Draw(picture)
    found = sum(item["flagged"] for item in report["items"])
    rate = report["false_positive_rate"]
    asked = f"sensitivity {report['sensitivity']}" + ("" if rate is None else f" ({rate:.2%} false alarms)")
    pen.text((12, 12), f"{found} of {len(report['items'])} {report['about']} flagged, {asked}", _INK, font)
    pen.line((_SIZE[0] - 84, 13, _SIZE[0] - 84, 27), _INK, 2)
    pen.text((_SIZE[0] - 12, 20), "threshold", _INK, small, anchor="rm")
    y, left, right = 40, 170, 150
    for number, (item, text) in enumerate(zip(items, lines, strict=True), 1):
        pen.line((12, y, _SIZE[0] - 12, y), _GRID)
        verdict = "flagged" if item["flagged"] else "clean"
        pen.text((12, y + 8), f"{number}  {verdict}, {item['score']:.2f}", _FLAGGED if item["flagged"] else _FREE, font)
        y += 30
        for concept in item["concepts"].values():
            width = _SIZE[0] - left - right
            middle = y + _BAR // 2
            pen.text((left - 8, middle), fit(concept["label"], font, left - 24), _INK, font, anchor="rm")
            pen.rectangle((left, y + 4, left + width, y + _BAR - 4), _GRID)
            colour = _FLAGGED if concept["flagged"] else _FREE
            pen.rectangle((left, y + 4, left + max(1, width * concept["score"]), y + _BAR - 4), colour)
            tick = left + width * concept["threshold"]
            pen.line((tick, y + 1, tick, y + _BAR - 1), _INK, 2)
            pen.text(
                (left + width + 8, middle), f"{concept['score']:.2f}  {concept['evidence']}", _INK, small, anchor="lm"
            )
            y += _BAR
        y += _GAP
        for line in text:
            x = 12.0
            for word, heat in line:
                length = font.getlength(word)
                shade = tuple(round(255 - heat * (255 - c)) for c in (238, 120, 110))
                pen.rectangle((x - 2, y + 1, x + length + 2, y + 18), shade)
                pen.text((x, y + 2), word, _INK, font)
                x += length + font.getlength(" ") + 2
            y += 20
        y += _GAP * bool(text)
    if more:
        pen.text((12, y), f"and {more} more", _INK, font)
    return picture


def _wrap(words: list[tuple[str, float]], font: Any, width: float) -> list[list[tuple[str, float]]]:
    """Words in lines of this width."""
    lines, x = [[]] if words else [], 0.0
    for word, heat in words:
        word = fit(word, font, width)
        length = font.getlength(word) + font.getlength(" ") + 2
        if x + length > width and lines[-1]:
            lines.append([])
            x = 0.0
        lines[-1].append((word, heat))
        x += length
    return lines
