"""Safetensors files of any kind: checkpoints, pictures, LoRAs, HGRs."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save as to_bytes
from torch import Tensor

from .atomic import replacing


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all."""
    with replacing(path) as part:
        # not safetensors' save_file, whose files only their owner can read: models are shared
        part.write_bytes(to_bytes({key: x.detach().cpu().contiguous() for key, x in tensors.items()}, metadata))
