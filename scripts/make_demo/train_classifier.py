"""Trains the demo world's classifier, on rendered pictures and on reconstructions by the autoencoder from latents with
noise, as a sampler leaves it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from hgr.demo.attributes import ATTRIBUTE_CLASSES, attribute_targets
from hgr.demo.classifier import Classifier, to_tensor
from hgr.demo.world import any_scene, render
from hgr.training.loop import Loop

from .train_vae import SCALING_FACTOR


def attribute_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over attributes. logits (B, sum of ATTRIBUTE_CLASSES), targets (B, attributes): classes."""
    parts = logits.split(ATTRIBUTE_CLASSES, dim=1)
    return torch.stack([F.cross_entropy(part, target) for part, target in zip(parts, targets.T, strict=True)]).mean()


def train_classifier(
    work: Path, vae: AutoencoderKL, *, seed: int, device: str, steps: int, batch: int = 48
) -> Classifier:
    """Train on fresh pictures in each step; an eighth of a batch is decoded from latents with noise of up to 0.35."""
    torch.manual_seed(seed + 3)
    model = Classifier().to(device)
    loop = Loop("classifier", model, work, steps=steps, learning_rate=2e-3, seed=seed)

    def loss(rng: random.Random, generator: torch.Generator) -> Tensor:
        scenes = [any_scene(rng) for _ in range(batch)]
        pixels = to_tensor(np.stack([render(scene, rng) for scene in scenes])).to(device)
        decoded = batch // 8
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            latents = vae.encode(pixels[:decoded]).latent_dist.mean * SCALING_FACTOR
            level = 0.35 * torch.rand(decoded, 1, 1, 1, generator=generator).to(device)
            latents = latents + level * torch.randn(latents.shape, generator=generator).to(device)
            pixels[:decoded] = vae.decode(latents / SCALING_FACTOR).sample.float().clamp(-1, 1)
        pixels = pixels + 0.05 * torch.rand(1, generator=generator).item() * torch.randn(
            pixels.shape, generator=generator
        ).to(device)
        with torch.autocast(device, torch.bfloat16):
            logits = model(pixels)
        targets = torch.tensor([attribute_targets(scene) for scene in scenes], device=device)
        return attribute_loss(logits.float(), targets)

    loop.run(loss)
    return model
