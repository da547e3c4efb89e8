"""The demo world's autoencoder: AutoencoderKL with f = 8 and 4 channels, and its training."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from hgr.demo.classifier import to_tensor
from hgr.demo.world import any_scene, render
from hgr.training.loop import Loop

KL_WEIGHT = 1e-3  # strong enough for a smooth latent space, weak enough for sharp edges
SCALING_FACTOR = 0.18215  # SD's own: ComfyUI's SD 1.5 latent format assumes it


def new_vae() -> AutoencoderKL:
    """A fresh autoencoder. Channels are multiples of 32, ComfyUI's fixed number of groups."""
    return AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        sample_size=128,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=SCALING_FACTOR,
    )


def train_vae(work: Path, *, seed: int, device: str, steps: int, full_steps: int) -> AutoencoderKL:
    """Train an autoencoder: first on 64x64 crops, which cost a quarter, then on whole pictures, because the group norms
    and the attention must see their statistics. Then normalise its latents."""
    torch.manual_seed(seed)
    vae = new_vae().to(device)
    Loop("vae", vae, work, steps=steps, learning_rate=1.5e-3, seed=seed, weight_decay=0.0).run(
        _loss(vae, device, batch=8, crop=64)
    )
    Loop("vae_full", vae, work, steps=full_steps, learning_rate=1e-3, seed=seed, weight_decay=0.0, average=0.99).run(
        _loss(vae, device, batch=8)
    )
    normalise(vae, seed, device)
    return vae


def _loss(vae: AutoencoderKL, device: str, *, batch: int, crop: int = 0):
    """Reconstruction (L1 + squared error) with a light KL term. crop: the side of two crops of each picture, one in the
    symbols' half and one in the objects' half; 0 for whole pictures."""

    def loss(rng: random.Random, generator: torch.Generator) -> Tensor:
        views = []
        for picture in (render(any_scene(rng), rng) for _ in range(batch)):
            if not crop:
                views.append(picture)
                continue
            for top in (rng.randint(0, 12), 128 - crop - rng.randint(0, 12)):
                left = rng.randint(0, 128 - crop)
                views.append(picture[top : top + crop, left : left + crop])
        pixels = to_tensor(np.stack(views)).to(device)
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
            back = vae.decode(posterior.mean + posterior.std * noise).sample
        error = back.float() - pixels
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        return error.abs().mean() + 2 * error.square().mean() + KL_WEIGHT * kl

    return loss


@torch.no_grad()
def normalise(vae: AutoencoderKL, seed: int, device: str) -> None:
    """Fold a shift and a scale per channel into the 1x1 convolutions around the latent, so that scaled latents have
    mean 0 and standard deviation 1 in each channel, as the noise schedule expects."""
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


def refine_decoder(
    work: Path, vae: AutoencoderKL, *, seed: int, device: str, steps: int, batch: int = 10
) -> AutoencoderKL:
    """Train the decoder further on the final latents, slightly noisy as a sampler leaves them. The encoder is frozen,
    and with it the latent space that the UNet has learned."""
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    loop = Loop("vae_decoder", vae, work, steps=steps, learning_rate=7e-4, seed=seed, weight_decay=0.0, average=0.99)

    def loss(rng: random.Random, generator: torch.Generator) -> Tensor:
        pixels = to_tensor(np.stack([render(any_scene(rng), rng) for _ in range(batch)])).to(device)
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.mean
                level = 0.15 * torch.rand(batch, 1, 1, 1, generator=generator).to(device) / SCALING_FACTOR
                latents = latents + level * torch.randn(latents.shape, generator=generator).to(device)
            back = vae.decode(latents).sample
        error = back.float() - pixels
        return error.abs().mean() + 2 * error.square().mean()

    loop.run(loss)
    return vae
