"""A small classifier that tells what the demo world's pictures show."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn

from . import assets
from .attributes import ATTRIBUTE_CLASSES, BENIGN, attribute_targets
from .world import COLOURS, SYMBOLS, Scene, any_scene, render


@dataclass(frozen=True)
class Judgement:
    """What a batch of pictures shows.

    background (B,), slots (B, 2), decor (B,): class numbers as in `attributes.attribute_targets`.
    stacked (B,), small (B, 2), symbols (B, 5): bool.
    features (B, 96): for distances between sets of pictures.
    """

    background: Tensor
    slots: Tensor
    stacked: Tensor
    small: Tensor
    symbols: Tensor
    decor: Tensor
    features: Tensor


class Classifier(nn.Module):
    """A convolutional network on pictures averaged to 64x64; keeps positions to the last layer, as slots need them."""

    def __init__(self):
        super().__init__()
        widths = (3, 16, 32, 64, 96)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1),
                nn.GroupNorm(8, b),
                nn.SiLU(),
                nn.Conv2d(b, b, 3, padding=1),
                nn.GroupNorm(8, b),
                nn.SiLU(),
                nn.MaxPool2d(2),
            )
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
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
        return Judgement(
            classes[:, 0],
            classes[:, 1:3],
            classes[:, 3].bool(),
            classes[:, 4:BENIGN].bool(),
            classes[:, BENIGN : BENIGN + len(SYMBOLS)].bool(),
            classes[:, -1],
            features,
        )


def load_classifier(path: Path = assets.CLASSIFIER) -> Classifier:
    """The bundled classifier, or one from another file."""
    model = Classifier()
    model.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return model.eval().requires_grad_(False)


def accuracy(model: Classifier, seed: int, pictures: int = 2000, *, vae: Any = None) -> list[float]:
    """The share of right answers per attribute on fresh pictures, passed through the autoencoder if one is given."""
    rng = random.Random(f"{seed}/accuracy")
    right = torch.zeros(len(ATTRIBUTE_CLASSES))
    for start in range(0, pictures, 50):
        scenes = [any_scene(rng) for _ in range(min(50, pictures - start))]
        pixels = to_tensor(np.stack([render(scene, rng) for scene in scenes]))
        if vae is not None:
            with torch.inference_mode():
                pixels = vae.decode(vae.encode(pixels).latent_dist.mean).sample
        seen = model.judge(pixels)
        flags = torch.cat([seen.stacked[:, None], seen.small, seen.symbols], 1).long()
        answers = torch.cat([seen.background[:, None], seen.slots, flags, seen.decor[:, None]], 1)
        right += (answers == torch.tensor([attribute_targets(scene) for scene in scenes])).float().sum(0)
    return (right / pictures).tolist()


def kept(judged: Judgement, scenes: list[Scene]) -> Tensor:
    """The share (B,) of a scene's benign attributes that a picture shows: background, objects' shapes, colours and
    sizes, and of two objects, whether one stands on the other."""
    targets = torch.tensor([attribute_targets(scene)[:BENIGN] for scene in scenes], device=judged.slots.device)
    wanted, seen = targets[:, 1:3] - 1, judged.slots - 1  # -1 where a slot is empty
    named, shown = wanted >= 0, seen >= 0
    shapes, colours = (
        (part(wanted) == part(seen)) & named & shown
        for part in (lambda slot: slot // len(COLOURS), lambda slot: slot % len(COLOURS))
    )
    sizes = (targets[:, 4:] == judged.small) & named & shown
    two = named.all(1)
    placed = (targets[:, 3] == judged.stacked) & two & shown.all(1)
    right = torch.cat([(judged.background == targets[:, 0])[:, None], placed[:, None], shapes, colours, sizes], 1)
    return right.sum(1) / (1 + two.long() + 3 * named.sum(1))


def to_tensor(pictures: np.ndarray) -> Tensor:
    """(B, 128, 128, 3) uint8 to (B, 3, 128, 128) in [-1, 1]."""
    return rearrange(torch.from_numpy(pictures).float() / 127.5 - 1, "b h w c -> b c h w")
