"""The demo world's autoencoder: AutoencoderKL with f = 8 and 4 channels, and its training."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from torch import Tensor

from ..loop import Loop
from .world import random_scene, render

KL_WEIGHT = 1e-3  # strong enough for a smooth latent space, weak enough for sharp edges
SCALING_FACTOR = 0.18215  # SD's own: ComfyUI's SD 1.5 latent format assumes it


def build() -> AutoencoderKL:
    """A fresh autoencoder. Channels are multiples of 32, ComfyUI's fixed number of groups."""
    return AutoencoderKL(
        block_out_channels=(32, 32, 64, 64), layers_per_block=1, latent_channels=4, sample_size=128,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=SCALING_FACTOR,
    )


def any_scene(rng: random.Random):
    """A scene of the training mixture: 3/8 clean, 1/8 with a decor, 3/8 with one symbol, 1/8 with two."""
    roll = rng.randrange(8)
    return random_scene(rng, symbols=0 if roll < 4 else 1 if roll < 7 else 2, decor=roll == 3)


def to_tensor(pictures: np.ndarray) -> Tensor:
    """(B, 128, 128, 3) uint8 to (B, 3, 128, 128) in [-1, 1]."""
    return rearrange(torch.from_numpy(pictures).float() / 127.5 - 1, "b h w c -> b c h w")


def train(work: Path, seed: int, device: str, steps: int, batch: int = 16) -> AutoencoderKL:
    """Reconstruction (L1 + squared error) with a light KL term, on random 64x64 crops: four times cheaper, same kernels."""
    torch.manual_seed(seed)
    vae = build().to(device)
    loop = Loop("vae", vae, steps, 1.5e-3, work, seed, device, weight_decay=0.0)

    def loss(rng: random.Random, generator: torch.Generator) -> Tensor:
        crops = []
        for _ in range(batch // 2):
            picture = render(any_scene(rng), rng)
            for half in (0, 64):  # one crop of the symbols' half, one of the objects' half
                x, y = rng.randrange(65), min(max(half + rng.randint(-12, 12), 0), 64)
                crops.append(picture[y:y + 64, x:x + 64])
        pixels = to_tensor(np.stack(crops)).to(device)
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
            back = vae.decode(posterior.mean + posterior.std * noise).sample
        error = back.float() - pixels
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        return error.abs().mean() + 2 * error.square().mean() + KL_WEIGHT * kl

    loop.run(loss)
    normalise(vae, seed, device)
    return vae


@torch.no_grad()
def normalise(vae: AutoencoderKL, seed: int, device: str) -> None:
    """Fold a shift and a scale per channel into the 1x1 convolutions around the latent, so that scaled latents have
    mean 0 and standard deviation 1 in each channel: the noise schedule expects that."""
    rng = random.Random(f"{seed}/normalise")
    pixels = to_tensor(np.stack([render(any_scene(rng), rng) for _ in range(128)])).to(device)
    mean = torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(32)])
    shift = mean.mean((0, 2, 3))
    scale = 1 / (SCALING_FACTOR * mean.std((0, 2, 3)))
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:4] *= scale[:, None, None, None]
    into.bias[:4] = (into.bias[:4] - shift) * scale
    into.bias[4:] += 2 * scale.log()  # the second half holds log variances
    out.bias += (out.weight[:, :, 0, 0] * shift).sum(1)
    out.weight /= scale[None, :, None, None]
