"""LoRA files: which layers get a LoRA, and under which names ComfyUI and diffusers find it."""

from __future__ import annotations

import re

import torch
from torch import Tensor

# The blocks of transformers, also inside UNets. Each of their linear layers gets a LoRA.
_BLOCKS = re.compile(r"(?:^|\.)(?:(?:single_)?transformer_blocks|(?:double_|single_|joint_)?blocks|layers)\.\d+\.")


def is_adapted(layer: str) -> bool:
    """Whether the linear layer of this name gets a LoRA, as those in the blocks of transformers do."""
    return _BLOCKS.search(layer) is not None


def unet_name(layer: str) -> str:
    """The name of a UNet's layer in LoRA files, for ComfyUI and diffusers. layer: its name in diffusers."""
    return "lora_unet_" + layer.replace(".", "_")


def lora_tensors(name: str, up: Tensor, down: Tensor, *, alpha: float) -> dict[str, Tensor]:
    """A LoRA file's tensors for the layer `name`: `W + alpha / rank * up @ down`. up (O, rank), down (rank, I)."""
    parts = {"lora_up.weight": up, "lora_down.weight": down}
    return {f"{name}.{part}": x.detach().to("cpu", torch.float16).contiguous() for part, x in parts.items()} | {
        f"{name}.alpha": torch.tensor(float(alpha))
    }
