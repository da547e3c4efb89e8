"""Makes flagged pictures unrecognisable. Pure functions on ComfyUI's IMAGE; others stay the same bit for bit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..core.excerpt import excerpt
from .pictures import colours

ACTIONS = ("blur", "pixelate", "blank", "pass")
_BLUR, _PIXEL = 0.12, 0.2  # of the shorter side, at strength 1: the blur's standard deviation, and a pixel's width


def censor(images: Tensor, flagged: list[bool], action: str, *, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """(pictures, mask): pictures with `action` applied to the flagged ones, and a mask (B, H, W) that is 1 on them.

    images: (B, H, W, C) in [0, 1], grey (C = 1), in colour, or with alpha, which stays. The tensor is never changed; it
    is returned itself if no picture changes.
    action: one of `ACTIONS`.
    strength: in (0, 1], how coarse blur and pixels are.

    Raises ValueError for an unknown action, and for tensors that are no pictures.
    """
    if action not in ACTIONS:
        raise ValueError(f'action "{excerpt(action)}" is unknown; it must be one of {", ".join(ACTIONS)}.')
    rows, mask = _flagged(images, [flag and action != "pass" for flag in flagged])
    if not rows.any():
        return images, mask
    x, side = _planes(images[rows]), strength * min(images.shape[1:3])
    if action == "blank":
        touched = torch.full_like(x, 0.5)
    elif action == "blur":
        touched = _blur(x, max(1.0, _BLUR * side))
    else:
        height, width = (max(1, round(n / max(1.0, _PIXEL * side))) for n in x.shape[2:])
        touched = F.interpolate(F.adaptive_avg_pool2d(x, (height, width)), size=x.shape[2:], mode="nearest")
    return _with_planes(images, rows, touched), mask


def substitute(images: Tensor, flagged: list[bool], replacement: Tensor) -> tuple[Tensor, Tensor]:
    """(pictures, mask) as in `censor`: flagged pictures become the first of `replacement` (N, H', W', C'), scaled and
    centre-cropped to their size; in grey if they are grey."""
    rows, mask = _flagged(images, flagged)
    if not rows.any():
        return images, mask
    height, width = _planes(images[rows]).shape[2:]
    x = _planes(replacement[:1], "replacement")
    scale = max(height / x.shape[2], width / x.shape[3])
    if scale != 1:
        x = F.interpolate(
            x,
            size=[max(n, round(side * scale)) for n, side in zip((height, width), x.shape[2:], strict=True)],
            mode="bilinear",
            antialias=True,
        ).clamp(0, 1)
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return _with_planes(images, rows, x[..., top : top + height, left : left + width]), mask


def _planes(images: Tensor, name: str = "image") -> Tensor:
    """Pictures as (B, 3, H, W). name: of the input, for the error."""
    return rearrange(colours(images, name).float(), "b h w c -> b c h w")


def _flagged(images: Tensor, flagged: list[bool]) -> tuple[Tensor, Tensor]:
    """(B,) bool, and the mask (B, H, W)."""
    rows = torch.tensor(flagged, device=images.device)
    return rows, rows.to(images.dtype)[:, None, None].expand(images.shape[:3]).contiguous()


def _with_planes(images: Tensor, rows: Tensor, x: Tensor) -> Tensor:
    """A copy of the pictures in which these rows have the colours x (N or 1, 3, H, W)."""
    result = images.clone()
    if images.shape[-1] == 1:
        x = x.mean(1, keepdim=True)
    result[rows, ..., :3] = rearrange(x, "b c h w -> b h w c").to(images)
    return result


def _blur(x: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of x (B, C, H, W) with repeated edges; sigma in pixels."""
    reach = max(1, round(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    flat = x.flatten(0, 1)[:, None]
    flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), mode="replicate"), kernel)
    flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), mode="replicate"), kernel.transpose(2, 3))
    return flat.view_as(x)
