"""The crops of a picture that a probe sees. It knows features at one picture size, and misses concepts at others."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

# how much longer a side may be than in the trained shape, as a share, before the picture is also cut into parts
_SLACK = 0.15
_PARTS = 8  # at most, along a side; a longer picture is squeezed


def crops(picture: Tensor, height: int, width: int) -> list[Tensor]:
    """The given picture (1, C, H, W) scaled to (1, C, height, width); if it has another shape, also overlapping parts
    of this size, at the scale at which the picture just covers it. A concept's highest score over these counts."""
    scale = max(height / picture.shape[2], width / picture.shape[3])
    sides = [(side * scale, part) for side, part in zip(picture.shape[2:], (height, width), strict=True)]
    counts = [min(_PARTS, math.ceil(side / part - _SLACK)) for side, part in sides]
    whole = _scaled(picture, height, width)
    if counts == [1, 1]:
        return [whole]
    large = _scaled(
        picture, *(min(round(side), count * part) for (side, part), count in zip(sides, counts, strict=True))
    )
    tops, lefts = (
        [i * (side - part) // max(1, count - 1) for i in range(count)]
        for side, (_, part), count in zip(large.shape[2:], sides, counts, strict=True)
    )
    return [whole, *(large[..., top : top + height, left : left + width] for top in tops for left in lefts)]


def _scaled(picture: Tensor, height: int, width: int) -> Tensor:
    """A picture at this size; the same tensor if it has this size already."""
    if picture.shape[2:] == (height, width):
        return picture
    mode = "area" if height * width < picture.shape[2] * picture.shape[3] else "bicubic"
    return F.interpolate(picture, (height, width), mode=mode).clamp(0, 1)
