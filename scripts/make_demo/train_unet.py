"""The demo world's denoiser: UNet2DConditionModel with eps-prediction on SD's noise schedule, and its training."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from hgr.core.tensor_file import save_tensors
from hgr.demo.captions import web_example
from hgr.demo.classifier import to_tensor
from hgr.demo.tokenizer import tokenize
from hgr.demo.world import render
from hgr.training.loop import Loop

from .train_text_encoder import WIDTH
from .train_vae import SCALING_FACTOR

log = logging.getLogger("safecfg")
EMPTY_SHARE = 0.1  # share of captions replaced by the empty one, for classifier-free guidance
MAX_SNR = 5.0  # Min-SNR weighting, arXiv 2303.09556, gamma


def new_unet() -> UNet2DConditionModel:
    """A fresh denoiser. Channels are whole multiples of the first, as ComfyUI's configuration requires."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
    )


def new_scheduler() -> DDIMScheduler:
    """SD 1.x's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


@torch.no_grad()
def picture_set(vae: AutoencoderKL, work: Path, *, seed: int, size: int) -> tuple[Tensor, list[str]]:
    """Latents (N, 4, 16, 16) and captions of `size` rendered pictures, made once and kept in `work`."""
    path, texts_path = work / "latents.safetensors", work / "captions.json"
    if not path.exists():
        rng = random.Random(f"{seed}/pictures")
        device, latents, texts = next(vae.parameters()).device, [], []
        for start in range(0, size, 64):
            examples = [web_example(rng) for _ in range(min(64, size - start))]
            pixels = to_tensor(np.stack([render(scene, rng) for _, scene in examples])).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                latents.append(vae.encode(pixels).latent_dist.mean.float().cpu() * SCALING_FACTOR)
            texts += [text for text, _ in examples]
            if start % 2048 == 0:
                log.info("pictures: %d of %d", start, size)
        texts_path.write_text(json.dumps(texts))
        save_tensors({"latents": torch.cat(latents)}, path)
    return load_file(path)["latents"], json.loads(texts_path.read_text())


@torch.no_grad()
def encoded(encoder: CLIPTextModel, tokenizer: PreTrainedTokenizerFast, texts: list[str], *, device: str) -> Tensor:
    """Features (N, 77, WIDTH) of texts in bfloat16: each is used many times."""
    parts = []
    for part in tokenize(tokenizer, texts).split(256):
        with torch.autocast(device, torch.bfloat16):
            parts.append(encoder(part.to(device)).last_hidden_state.bfloat16().cpu())
    return torch.cat(parts)


def train_unet(
    work: Path,
    vae: AutoencoderKL,
    encoder: CLIPTextModel,
    *,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    device: str,
    steps: int,
    batch: int = 48,
    pictures: int = 32_000,
) -> UNet2DConditionModel:
    """Train the denoiser on rendered pictures with their captions; the text encoder is frozen."""
    torch.manual_seed(seed + 2)
    unet = new_unet().to(device)
    latents, texts = picture_set(vae, work, seed=seed, size=pictures)
    features = encoded(encoder, tokenizer, [*texts, ""], device=device)
    signal = new_scheduler().alphas_cumprod
    loop = Loop("unet", unet, work, steps=steps, learning_rate=1e-3, seed=seed)

    def loss(rng: random.Random, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(texts), (batch,), generator=generator)
        clean = latents[rows].to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        t = torch.randint(1000, (batch,), generator=generator)
        a = signal[t].to(device)[:, None, None, None]
        rows[torch.rand(batch, generator=generator) < EMPTY_SHARE] = len(texts)
        with torch.autocast(device, torch.bfloat16):
            out = unet(
                a.sqrt() * clean + (1 - a).sqrt() * noise, t.to(device), features[rows].to(device).float()
            ).sample.float()
        weight = (MAX_SNR * (1 - a) / a).clamp(max=1).flatten()
        return ((out - noise).square().mean((1, 2, 3)) * weight).mean()

    loop.run(loss)
    return unet
