"""The user's pictures as latents, from a file."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor


def read_latents(path: Path) -> Tensor:
    """The tensor "latents" (N, C, H, W) of a safetensors file. Raises ValueError where it holds none that can be used."""
    if not path.is_file():
        raise ValueError(f"--latents {path}: no such file.")
    try:
        with safe_open(path, "pt") as file:
            latents = file.get_tensor("latents").float()
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name}: no safetensors file with a tensor \"latents\" ({error}).") from None
    if latents.dim() != 4 or not latents.numel() or not latents.isfinite().all():
        raise ValueError(f"{path.name}: \"latents\" has shape {tuple(latents.shape)}; it must be (N, C, H, W), and finite.")
    return latents


def check_latents(latents: Tensor, path: Path, channels: int) -> None:
    """Raise ValueError for latents of another model."""
    if latents.shape[1] != channels:
        raise ValueError(f"{path.name}: the latents have {latents.shape[1]} channels, the model's {channels}.")
