"""Charts as pictures: for a node's preview and for its IMAGE outputs."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_SIZE = (720, 420)
_LEFT, _TOP, _RIGHT, _BOTTOM = 64, 40, 20, 48
_PAPER, _INK, _GRID, _FAINT, _LINE = "#ffffff", "#333333", "#e4e4e4", "#b9cdea", "#2a62b8"


def image(picture: Image.Image) -> Tensor:
    """A picture as ComfyUI's IMAGE (1, H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def draw_loss(points: list[tuple[int, float]], steps: int) -> Image.Image:
    """The loss of each step and its running mean, on a logarithmic scale. points: (step, loss), the loss above 0."""
    picture = Image.new("RGB", _SIZE, _PAPER)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13)
    width, height = _SIZE[0] - _LEFT - _RIGHT, _SIZE[1] - _TOP - _BOTTOM
    values = [max(loss, 1e-6) for _, loss in points] or [1.0]
    ticks = [digit * 10.0 ** decade for decade in range(-6, 7) for digit in (1, 2, 5)]
    low = max(tick for tick in ticks if tick <= min(values))
    high = min((tick for tick in ticks if tick >= max(values) and tick > low), default=ticks[-1])

    def at(step: float, loss: float) -> tuple[float, float]:
        return (_LEFT + width * step / steps,
                _TOP + height * (math.log10(high) - math.log10(max(loss, low))) / (math.log10(high) - math.log10(low)))

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
    title = "HGR training: loss" + (f"    {points[-1][0]:,} of {steps:,} steps, now {_smooth(values)[-1]:.4f}" if points else "")
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
