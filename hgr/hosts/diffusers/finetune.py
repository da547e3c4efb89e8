"""What safe fine-tuning needs of a diffusers pipeline: a LoRA on its denoiser, by PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ...core.progress import SILENT, Progress
from ...training import lora_file as lora
from ...training.train_lora import Adapted
from .denoiser import denoiser_of
from .picture_file import PictureError, read_picture

_NAME = "safecfg"


def adapt(pipe: DiffusionPipeline, rank: int, seed: int = 0) -> Adapted:
    """Put a LoRA on the pipeline's denoiser. seed: for painting; the LoRA's initial weights follow torch's own seed.

    A float16 pipeline is set to bfloat16, because float16 is too coarse for the gradients of small differences. The
    LoRA is in float32.
    """
    unet = pipe.unet
    if unet.dtype == torch.float16:
        pipe.to(torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32)
    found = denoiser_of(pipe, seed)
    layers = [name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear) and lora.is_adapted(name)]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), adapter_name=_NAME)
    cast_training_params(unet)
    unet.enable_gradient_checkpointing()

    @contextmanager
    def frozen() -> Iterator[None]:
        unet.disable_adapters()
        try:
            yield
        finally:
            unet.enable_adapters()

    return Adapted(found, unet, frozen)


def lora_state_dict(unet: nn.Module) -> dict[str, Tensor]:
    """The LoRA of `adapt` as a LoRA file's tensors (`hgr.training.lora_file`)."""
    found = {}
    layers: list[tuple[str, Any]] = [(name, x) for name, x in unet.named_modules() if isinstance(x, LoraLayer)]
    for name, layer in layers:
        up, down = layer.lora_B[_NAME].weight, layer.lora_A[_NAME].weight
        found |= lora.lora_tensors(lora.unet_name(name), up, down, alpha=layer.lora_alpha[_NAME])
    return found


@torch.no_grad()
def encode_pictures(pipe: DiffusionPipeline, files: list[Path], progress: Progress = SILENT) -> Tensor:
    """(N, C, h, w): the user's pictures as latents for the denoiser, scaled and centre-cropped to the size that it was
    made for. The pipeline's autoencoder is set to float32, as SDXL's gives NaN in lower precision.

    Raises PictureError, naming the file, for one that cannot be read.
    """
    vae, side, found = pipe.vae.float(), pipe.unet.config.sample_size * pipe.vae_scale_factor, []
    for file in files:
        try:
            picture = read_picture(file)
        except PictureError as error:
            raise PictureError(f"{file}: {error}") from None
        sides = [max(side, round(n * side / min(picture.shape[2:]))) for n in picture.shape[2:]]
        picture = F.interpolate(picture, sides, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((n - side) // 2 for n in sides)
        picture = picture[..., top : top + side, left : left + side].to(vae.device)
        found.append((vae.encode(2 * picture - 1).latent_dist.mode() * vae.config.scaling_factor).cpu())
        progress.picture(len(found), len(files))
    return torch.cat(found)
