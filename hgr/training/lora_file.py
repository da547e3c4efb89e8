"""LoRA files: which layers get one, and the names by which ComfyUI and diffusers know it."""

from __future__ import annotations

import re

import torch
from torch import Tensor

# The blocks of transformers, within UNets too; their linear layers get a LoRA each.
_BLOCKS = re.compile(r"(?:^|\.)(?:(?:single_)?transformer_blocks|(?:double_|single_|joint_)?blocks|layers)\.\d+\.")


def is_adapted(layer: str) -> bool:
    """Whether the linear layer of this name gets a LoRA: those in the blocks of transformers do."""
    return _BLOCKS.search(layer) is not None


def unet_name(layer: str) -> str:
    """The name of a layer of a UNet in LoRA files, which ComfyUI and diffusers both read. layer: its name in
    diffusers."""
    return "lora_unet_" + layer.replace(".", "_")


def lora_tensors(name: str, up: Tensor, down: Tensor, *, alpha: float) -> dict[str, Tensor]:
    """What a LoRA file holds of the layer of this name: `W + alpha / rank * up @ down`. up (O, rank), down (rank,
    I)."""
    parts = {"lora_up.weight": up, "lora_down.weight": down}
    return {f"{name}.{part}": x.detach().to("cpu", torch.float16).contiguous() for part, x in parts.items()} | {
        f"{name}.alpha": torch.tensor(float(alpha))
    }
