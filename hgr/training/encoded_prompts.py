"""Prompts encoded once, before training: text encoders are large, and training uses the same prompts many times."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch

from ..core.atomic import WriteError
from ..core.hgr import MAX_TOKENS, Encoder, HGRError
from ..core.progress import SILENT, Progress
from ..core.prompt import Encode, Prompt

_BATCH = 32
_LARGEST = torch.finfo(torch.float16).max


class EncodedPrompts:
    """The encoded prompts of a training, in a file that is mapped into memory: `texts * tokens * D * 2` bytes on disk,
    and no more memory than is free. 1,000 prompts take 118 MB for SD 1.5, 315 MB for SDXL and up to 1 GB for T5-XXL.

    The file has no name: the system removes it at `close` and also if the process is killed, and no other process can
    change it.
    """

    def __init__(
        self, texts: list[str], encode: Encode, folder: Path, *, limit: int = MAX_TOKENS, progress: Progress = SILENT
    ):
        """Encode `texts` into a file in `folder`, keeping the first `limit` tokens of each.

        Raises HGRError for features with NaN or infinity, WriteError if the disk is full.
        """
        self.index: dict[str, int] = {}
        self.spans: list[tuple[int, int]] = []
        pooled, masks, at = [], [], 0
        with _writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            opened = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (closed below)
        with opened as file:
            prompts = (
                prompt for start in range(0, len(texts), _BATCH) for prompt in encode(texts[start : start + _BATCH])
            )
            for text, prompt in zip(texts, prompts, strict=True):
                x = prompt.features[0, :limit].detach().float()
                if not x.isfinite().all():
                    raise HGRError(f'the text encoder gives NaN or infinity for "{text}": run it in another precision.')
                # a few channels of language models exceed the range of half precision; they are clipped, not lost
                half = x.clamp(-_LARGEST, _LARGEST).half().cpu().contiguous()
                with _writing_to(folder):
                    _write_all(file, half.numpy().tobytes())
                self.index[text] = len(self.spans)
                self.spans.append((at, at + len(x)))
                at += len(x)
                pooled.append(None if prompt.pooled is None else prompt.pooled[0].detach().float().cpu().clone())
                masks.append(None if prompt.mask is None else prompt.mask[0, :limit].detach().bool().cpu().clone())
                progress.text(len(self.spans), len(texts))
            self.width = x.shape[1]
            self.tokens = torch.from_numpy(np.memmap(file, np.float16, "c", shape=(at, self.width)))
        self.pooled = None if any(row is None for row in pooled) else torch.stack(pooled)
        even = len({b - a for a, b in self.spans}) == 1
        self.masks = None if even and all(mask is None or mask.all() for mask in masks) else masks

    def __call__(self, texts: list[str], device: torch.device | str = "cpu") -> Prompt:
        """A batch in float32: features (B, T, D), pooled (B, P) or None, mask (B, T) or None if nothing is padding."""
        rows = [self.index[text] for text in texts]
        parts = [self.tokens[slice(*self.spans[row])] for row in rows]
        length = max(map(len, parts))
        features = torch.zeros(len(parts), length, self.width, dtype=torch.float16)
        mask = torch.zeros(len(parts), length, dtype=torch.bool)
        for i, (row, part) in enumerate(zip(rows, parts, strict=True)):
            features[i, : len(part)] = part
            mask[i, : len(part)] = True if self.masks is None or self.masks[row] is None else self.masks[row]
        return Prompt(
            features.to(device).float(),
            None if self.pooled is None else self.pooled[rows].to(device),
            None if self.masks is None else mask.to(device),
        )

    def close(self) -> None:
        """Release the file, which is then gone."""
        self.tokens = torch.empty(0)


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(folder / "the encoded prompts", error) from None


def _write_all(file: IO[bytes], data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # a disk that is nearly full takes a part
        rest = rest[file.write(rest) :]


def describe_encoder(encode: Encode, family: str) -> Encoder:
    """The encoder's description for an HGR: the length of its chunks, whether its first token is the same for every
    prompt, and its fingerprint."""
    empty, short, long = (
        encode([text])[0].features[0].detach().float().cpu().clone() for text in ("", "a red house", "house " * 150)
    )
    pooled = encode([""])[0].pooled
    fixed = (empty[0] - short[0]).norm() <= 1e-2 * empty[0].norm()
    even = len(short) == len(empty) and len(long) % len(empty) == 0
    return Encoder(
        family,
        len(empty) if fixed and even else 0,
        bool(fixed),
        empty,
        None if pooled is None else pooled[0].detach().float().cpu().clone(),
    )
