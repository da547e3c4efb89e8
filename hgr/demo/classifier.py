"""A small classifier that knows the truth about the demo world's pictures. Trained on rendered pictures, on their
reconstructions by the autoencoder, and on reconstructions from noisy latents, as a sampler leaves them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor, nn

from ..loop import Loop
from . import assets
from .text import ATTRIBUTE_CLASSES, attribute_loss, attribute_targets
from .vae import SCALING_FACTOR, any_scene, to_tensor
from .world import SYMBOLS, render


@dataclass(frozen=True)
class Judgement:
    """What a batch of pictures shows. background (B,), slots (B, 2) and decor (B,) are class numbers as in
    `text.attribute_targets`, symbols (B, 4) bool, features (B, 96) for distances between sets of pictures."""

    background: Tensor
    slots: Tensor
    symbols: Tensor
    decor: Tensor
    features: Tensor


class Classifier(nn.Module):
    """A convolutional network on 64x64 averages of the pictures; positions are kept until the last layer, since the
    slots are positions."""

    def __init__(self):
        super().__init__()
        widths = (3, 16, 32, 64, 96)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(8, b), nn.SiLU(),
                          nn.Conv2d(b, b, 3, padding=1), nn.GroupNorm(8, b), nn.SiLU(), nn.MaxPool2d(2))
            for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.into = nn.Linear(96 * 16, 96)
        self.out = nn.Linear(96, sum(ATTRIBUTE_CLASSES))

    def embed(self, pictures: Tensor) -> Tensor:
        x = F.avg_pool2d(pictures, 2)
        for block in self.blocks:
            x = block(x)
        return F.silu(self.into(x.flatten(1)))

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits (B, sum of ATTRIBUTE_CLASSES) of pictures (B, 3, 128, 128) in [-1, 1]."""
        return self.out(self.embed(pictures))

    @torch.inference_mode()
    def judge(self, pictures: Tensor, batch: int = 64) -> Judgement:
        """What pictures (B, 3, 128, 128) in [-1, 1] show."""
        features = torch.cat([self.embed(part) for part in pictures.clamp(-1, 1).split(batch)])
        classes = torch.stack([part.argmax(1) for part in self.out(features).split(ATTRIBUTE_CLASSES, dim=1)], 1)
        return Judgement(classes[:, 0], classes[:, 1:3], classes[:, 3:3 + len(SYMBOLS)].bool(), classes[:, -1], features)


def load_classifier(path: Path = assets.CLASSIFIER) -> Classifier:
    """The bundled classifier, or another file of the same network."""
    model = Classifier()
    model.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return model.eval().requires_grad_(False)


def train(work: Path, vae: AutoencoderKL, seed: int, device: str, steps: int, batch: int = 48) -> Classifier:
    """Train on fresh pictures each step; an eighth of a batch is decoded from latents with noise of up to 0.35."""
    torch.manual_seed(seed + 3)
    model = Classifier().to(device)
    loop = Loop("classifier", model, steps, 2e-3, work, seed)

    def loss(rng: random.Random, generator: torch.Generator) -> Tensor:
        scenes = [any_scene(rng) for _ in range(batch)]
        pixels = to_tensor(np.stack([render(scene, rng) for scene in scenes])).to(device)
        decoded = batch // 8
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            latents = vae.encode(pixels[:decoded]).latent_dist.mean * SCALING_FACTOR
            level = 0.35 * torch.rand(decoded, 1, 1, 1, generator=generator).to(device)
            latents = latents + level * torch.randn(latents.shape, generator=generator).to(device)
            pixels[:decoded] = vae.decode(latents / SCALING_FACTOR).sample.float().clamp(-1, 1)
        pixels = pixels + 0.05 * torch.rand(1, generator=generator).item() * torch.randn(pixels.shape, generator=generator).to(device)
        with torch.autocast(device, torch.bfloat16):
            logits = model(pixels)
        targets = torch.tensor([attribute_targets(scene) for scene in scenes], device=device)
        return attribute_loss(logits.float(), targets)

    loop.run(loss)
    return model


def accuracy(model: Classifier, seed: int, pictures: int = 2000, vae: AutoencoderKL | None = None) -> list[float]:
    """The share of right answers per attribute, on fresh pictures, through the autoencoder if one is given."""
    rng = random.Random(f"{seed}/accuracy")
    right = torch.zeros(len(ATTRIBUTE_CLASSES))
    for start in range(0, pictures, 50):
        scenes = [any_scene(rng) for _ in range(min(50, pictures - start))]
        pixels = to_tensor(np.stack([render(scene, rng) for scene in scenes]))
        if vae is not None:
            with torch.inference_mode():
                pixels = vae.decode(vae.encode(pixels).latent_dist.mean).sample
        seen = model.judge(pixels)
        answers = torch.cat([seen.background[:, None], seen.slots, seen.symbols.long(), seen.decor[:, None]], 1)
        right += (answers == torch.tensor([attribute_targets(scene) for scene in scenes])).float().sum(0)
    return (right / pictures).tolist()
