"""Pictures that a model makes itself, to look at in training: nobody needs a data set."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.fingerprint import fingerprint
from ..core.progress import SILENT, Progress
from ..core.tensor_file import save_tensors
from ..data.examples import Examples


@dataclass(frozen=True)
class Pictures:
    """latents (N, ...) with their texts; twins: of a harmful prompt's picture the number of its clean twin's."""

    latents: Tensor
    texts: list[str]
    twins: dict[int, int]


def choose(examples: Examples, count: int, rng: random.Random) -> tuple[list[str], dict[int, int]]:
    """Prompts to paint, and the number of each harmful one's twin: half of them harmful, of each concept as many; a
    quarter of their twins; the rest clean."""
    harmful = [rng.choice(examples.starts[i % len(examples.starts)]) for i in range(count // 2)]
    texts, twins = list(harmful), {}
    for i in rng.sample(range(len(harmful)), count // 4):
        twins[i] = len(texts)
        texts.append(rng.choice(examples.steps[harmful[i]]).clean)
    return texts + [rng.choice(examples.clean) for _ in range(count - len(texts))], twins


def paint_pairs(
    denoiser: Denoiser, examples: Examples, path: Path, *, count: int, seed: int, progress: Progress = SILENT
) -> Pictures:
    """The model's pictures of prompts that `choose` finds; see `paint`."""
    texts, twins = choose(examples, count, random.Random(f"{seed}/pictures"))
    return Pictures(paint(denoiser, texts, path, progress=progress), texts, twins)


def paint(
    denoiser: Denoiser, texts: list[str], path: Path, *, made_for: str = "", progress: Progress = SILENT
) -> Tensor:
    """The model's pictures of these prompts, latents (N, ...).

    They are kept in the file `path`, from which an interrupted training takes them when it is run again. made_for: the
    fingerprint of what they depend on beside the prompts.
    """
    wanted = {"fingerprint": fingerprint(texts, made_for)}
    try:
        with safe_open(path, "pt") as file:
            if file.metadata() == wanted:
                return file.get_tensor("latents")
    except (OSError, SafetensorError):
        pass
    latents = denoiser.paint(texts, progress)
    save_tensors({"latents": latents}, path, wanted)
    return latents
