"""Pictures that a model makes itself, to look at in training: nobody needs a data set."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .denoiser import Denoiser
from .examples import Examples
from .file import save_safely


@dataclass(frozen=True)
class Pictures:
    """latents (N, ...) with their texts; twins: of a harmful prompt's picture the number of its clean twin's."""

    latents: Tensor
    texts: list[str]
    twins: dict[int, int]


def choose(examples: Examples, count: int, rng: random.Random) -> tuple[list[str], dict[int, int]]:
    """Prompts to paint, and the number of each harmful one's twin: half of them harmful, of each concept as many; a quarter of their
    twins; the rest clean."""
    harmful = [rng.choice(examples.starts[i % len(examples.starts)]) for i in range(count // 2)]
    texts, twins = list(harmful), {}
    for i in rng.sample(range(len(harmful)), count // 4):
        twins[i] = len(texts)
        texts.append(rng.choice(examples.steps[harmful[i]]).clean)
    return texts + [rng.choice(examples.clean) for _ in range(count - len(texts))], twins


def paint_pairs(denoiser: Denoiser, examples: Examples, count: int, seed: int, path: Path,
                on_picture: Callable[[int, int], None] = lambda done, total: None) -> Pictures:
    """The model's pictures of prompts that `choose` finds; see `paint`."""
    texts, twins = choose(examples, count, random.Random(f"{seed}/pictures"))
    return Pictures(paint(denoiser, texts, path, on_picture), texts, twins)


def paint(denoiser: Denoiser, texts: list[str], path: Path, on_picture: Callable[[int, int], None] = lambda done, total: None,
          model: str = "") -> Tensor:
    """The model's pictures of these prompts, latents (N, ...); kept in the file `path`, and taken from there when an interrupted training
    is run again. model: names what else they depend on."""
    digest = hashlib.sha256(json.dumps([texts, model] if model else texts).encode()).hexdigest()
    try:
        with safe_open(path, "pt") as file:
            if file.metadata() == {"prompts": digest}:
                return file.get_tensor("latents")
    except (OSError, SafetensorError):
        pass
    latents = denoiser.paint(texts, on_picture)
    save_safely({"latents": latents}, path, {"prompts": digest})
    return latents
