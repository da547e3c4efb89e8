"""A LATENT as the trainers use it: pictures, or only a size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_SIZE = torch.Size((1, 4, 64, 64))  # of a latent: 512 x 512


def given_pictures(latents: dict[str, Any] | None) -> Tensor | None:
    """The pictures (N, ...) of a LATENT; None for an empty one, which only sets a size."""
    if latents is None:
        return None
    if latents["samples"].is_nested:
        raise ValueError("latents: pictures with sound cannot be used here; give pictures or an empty latent.")
    return latents["samples"].float().cpu() if latents["samples"].any() else None


def picture_size(latents: dict[str, Any] | None) -> torch.Size:
    """The size of one picture in a LATENT, (1, C, H, W); 512 x 512 pixels without a LATENT."""
    return _SIZE if latents is None else one_picture(latents["samples"].shape)


def one_picture(shape: torch.Size) -> torch.Size:
    """The size of one picture in latents of this shape; for videos, of one frame."""
    return torch.Size((1, shape[1], 1, *shape[3:]) if len(shape) == 5 else (1, *shape[1:]))
