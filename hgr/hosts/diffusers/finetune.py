"""What safe fine-tuning asks of a diffusers pipeline: a LoRA on its denoiser, by PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ... import lora
from ...finetune import Adapted
from .training import denoiser

_NAME = "safecfg"


def adapt(pipe: DiffusionPipeline, rank: int, seed: int = 0) -> Adapted:
    """Put a LoRA on the pipeline's denoiser. seed: of the pictures that it paints; the LoRA's weights follow torch's own seed."""
    unet = pipe.unet
    if unet.dtype == torch.float16:  # too coarse for the gradients of small differences
        unet.to(torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32)
    found = denoiser(pipe, seed)
    layers = [name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear) and lora.is_adapted(name)]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), adapter_name=_NAME)
    unet.enable_gradient_checkpointing()

    @contextmanager
    def frozen() -> Iterator[None]:
        unet.disable_adapters()
        try:
            yield
        finally:
            unet.enable_adapters()

    return Adapted(found, unet, frozen)


def state_dict(unet: nn.Module) -> dict[str, Tensor]:
    """The LoRA of `adapt` as its file holds it (`hgr.lora`)."""
    found = {}
    for name, layer in unet.named_modules():
        if isinstance(layer, LoraLayer):
            found |= lora.tensors(lora.unet_name(name), layer.lora_B[_NAME].weight, layer.lora_A[_NAME].weight, layer.lora_alpha[_NAME])
    return found
