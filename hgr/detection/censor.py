"""Makes flagged pictures unrecognisable. Pure functions on ComfyUI's IMAGE; others stay the same bit for bit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

ACTIONS = ("blur", "pixelate", "blank", "pass")
_BLUR, _PIXEL = 0.12, 0.2  # of the shorter side, at strength 1: the blur's standard deviation, and a pixel's width


def censor(images: Tensor, flagged: list[bool], action: str, *, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """(pictures, mask): pictures with `action` applied to the flagged ones, and a mask (B, H, W) that is 1 on them.

    images: (B, H, W, C) in [0, 1]; a fourth channel, alpha, stays. The tensor is never changed; it is returned itself
    if no picture changes.
    action: one of `ACTIONS`.
    strength: in (0, 1], how coarse blur and pixels are.
    """
    if action not in ACTIONS:
        raise ValueError(f'action "{action}" is unknown; it must be one of {", ".join(ACTIONS)}.')
    rows = torch.tensor(flagged, device=images.device) & (action != "pass")
    mask = rows.to(images.dtype)[:, None, None].expand(images.shape[:3]).contiguous()
    if not rows.any():
        return images, mask
    result, side = images.clone(), strength * min(images.shape[1:3])
    colours = rearrange(images[rows][..., :3].float(), "b h w c -> b c h w")
    if action == "blank":
        touched = torch.full_like(colours, 0.5)
    elif action == "blur":
        touched = _blur(colours, max(1.0, _BLUR * side))
    else:
        height, width = (max(1, round(n / max(1.0, _PIXEL * side))) for n in colours.shape[2:])
        touched = F.interpolate(F.adaptive_avg_pool2d(colours, (height, width)), size=colours.shape[2:], mode="nearest")
    result[rows, ..., :3] = rearrange(touched, "b c h w -> b h w c").to(images)
    return result, mask


def substitute(images: Tensor, flagged: list[bool], replacement: Tensor) -> tuple[Tensor, Tensor]:
    """(pictures, mask) as in `censor`: flagged pictures become the first of `replacement` (N, H', W', C'), scaled and
    centre-cropped to their size."""
    rows = torch.tensor(flagged, device=images.device)
    mask = rows.to(images.dtype)[:, None, None].expand(images.shape[:3]).contiguous()
    if not rows.any():
        return images, mask
    height, width = images.shape[1:3]
    x = rearrange(replacement[:1, ..., :3].float(), "b h w c -> b c h w")
    scale = max(height / x.shape[2], width / x.shape[3])
    if scale != 1:
        x = F.interpolate(
            x,
            size=[max(n, round(side * scale)) for n, side in zip((height, width), x.shape[2:], strict=True)],
            mode="bilinear",
            antialias=True,
        ).clamp(0, 1)
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    result = images.clone()
    result[rows, ..., :3] = rearrange(x[..., top : top + height, left : left + width], "b c h w -> b h w c").to(images)
    return result, mask


def _blur(x: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of x (B, C, H, W) with repeated edges; sigma in pixels."""
    reach = max(1, round(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    flat = x.flatten(0, 1)[:, None]
    flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), mode="replicate"), kernel)
    flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), mode="replicate"), kernel.transpose(2, 3))
    return flat.view_as(x)
