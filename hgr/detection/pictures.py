"""ComfyUI's IMAGE: which tensors are pictures, and what of them is seen."""

from __future__ import annotations

from torch import Tensor


def colours(images: Tensor, name: str = "image") -> Tensor:
    """(B, H, W, 3): the colours of pictures (B, H, W, C), without alpha. Grey pictures, C = 1, have three equal ones.

    name: of the input, for the error. Raises ValueError for tensors of another shape, and for empty ones.
    """
    if images.dim() != 4 or images.shape[-1] not in (1, 3, 4) or min(images.shape) == 0:
        raise ValueError(
            f"{name}: expected pictures (batch, height, width, channels) with 1, 3 or 4 channels, "
            f"got shape {tuple(images.shape)}."
        )
    return images.expand(-1, -1, -1, 3) if images.shape[-1] == 1 else images[..., :3]
