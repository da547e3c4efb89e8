"""Safetensors files of any kind: checkpoints, pictures, LoRAs, HGRs."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save as to_bytes
from torch import Tensor

from .atomic import write_bytes


def tensor_bytes(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The content of a safetensors file."""
    return to_bytes({key: x.detach().cpu().contiguous() for key, x in tensors.items()}, metadata)


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all. Raises WriteError if it cannot be written."""
    # not safetensors' save_file, whose files only their owner can read: models are shared
    write_bytes(path, tensor_bytes(tensors, metadata))
