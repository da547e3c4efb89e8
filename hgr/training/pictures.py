"""Pictures that a model makes itself for training, so that no data set is needed."""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.fingerprint import fingerprint
from ..core.progress import SILENT, Progress
from ..core.tensor_file import save_tensors
from ..data.examples import Examples

log = logging.getLogger("safecfg")

KEEP_SECONDS = 20.0


@dataclass(frozen=True)
class Pictures:
    """latents (N, ...) with their texts. twins: the index of the clean twin's picture, by that of the harmful one."""

    latents: Tensor
    texts: list[str]
    twins: dict[int, int]


def choose(examples: Examples, count: int, rng: random.Random) -> tuple[list[str], dict[int, int]]:
    """Prompts to paint, and the indices of clean twins by those of harmful prompts. Half of the prompts are harmful,
    with equally many for each concept, a quarter are clean twins of these, and the rest are clean."""
    harmful = [rng.choice(examples.starts[i % len(examples.starts)]) for i in range(count // 2)]
    texts, twins = list(harmful), {}
    for i in rng.sample(range(len(harmful)), count // 4):
        twins[i] = len(texts)
        texts.append(rng.choice(examples.steps[harmful[i]]).clean)
    return texts + [rng.choice(examples.clean) for _ in range(count - len(texts))], twins


def paint_pairs(
    denoiser: Denoiser, examples: Examples, path: Path, *, count: int, seed: int, progress: Progress = SILENT
) -> Pictures:
    """The model's pictures of the prompts that `choose` draws; see `paint`."""
    texts, twins = choose(examples, count, random.Random(f"{seed}/pictures"))
    return Pictures(paint(denoiser, texts, path, progress=progress), texts, twins)


def paint(
    denoiser: Denoiser, texts: list[str], path: Path | None, *, made_for: str = "", progress: Progress = SILENT
) -> Tensor:
    """The model's pictures of these prompts, latents (N, ...).

    path: a file that keeps them while they are painted, so that an interrupted training has them when it is run again;
    a kill loses those of the last `KEEP_SECONDS`. If it cannot be written, that is a warning.
    made_for: the fingerprint of what they depend on besides the prompts.
    """
    wanted = {"fingerprint": fingerprint(texts, made_for)}
    made = _kept(path, wanted, denoiser.noise) if path else []
    count = first = sum(map(len, made))
    if count == len(texts):
        return torch.cat(made)
    kept = f"; {count:,} are painted already" if count else ""
    progress.phase(f"painting {len(texts) - count:,} pictures{kept}")
    progress.picture(count, len(texts))
    saved = time.monotonic()
    try:
        for latents in denoiser.paint(texts, first):
            made.append(latents)
            count += len(latents)
            if path and time.monotonic() - saved > KEEP_SECONDS:
                _keep(path, made, wanted=wanted, noise=denoiser.noise)
                saved = time.monotonic()
            progress.picture(count, len(texts))
    finally:  # also if it is interrupted
        if path and count > first:
            _keep(path, made, wanted=wanted, noise=denoiser.noise)
    return torch.cat(made)


def _kept(path: Path, wanted: dict[str, str], noise: torch.Generator) -> list[Tensor]:
    """The pictures that an interrupted training has kept, (N, ...) in a list of one, or none. Sets the state of
    `noise` to that after the last of them."""
    try:
        with safe_open(path, "pt") as file:
            if file.metadata() != wanted:
                return []
            latents, state = file.get_tensor("latents").clone(), file.get_tensor("noise").clone()  # not views of it
        if not latents.isfinite().all():
            return []
        noise.set_state(state)
    except (OSError, SafetensorError, RuntimeError, TypeError):
        return []
    return [latents]


def _keep(path: Path, made: list[Tensor], *, wanted: dict[str, str], noise: torch.Generator) -> None:
    try:
        save_tensors({"latents": torch.cat(made), "noise": noise.get_state()}, path, wanted)
    except OSError as error:
        log.warning("the pictures are not kept, so an interrupted training makes them again: %s", error)
