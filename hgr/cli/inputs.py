"""What a command evaluates or learns from: prompts and pictures, from files."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.excerpt import excerpt
from ..data.prompt_file import SUFFIX, prompt_lines
from ..data.textfile import DataError, bad_line, csv_rows, read_text

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("safecfg")

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Item:
    """A prompt, a picture, or a picture with its prompt. name: its name in the output."""

    name: str
    prompt: str | None = None
    image: Path | None = None

    @property
    def key(self) -> str:
        """Identifies the item; changes if its picture changes."""
        try:
            found = self.image.stat() if self.image else None
        except OSError:
            found = None
        return json.dumps([self.name, self.prompt, found and [found.st_size, found.st_mtime_ns]])


def items_from_file(path: Path) -> list[Item]:
    """The prompts of a text file, one per line; or the prompts of a CSV file's column "prompt" and the pictures of its
    column "image", whose paths are relative to the file. A row may have only one of the two.

    Raises DataError, naming the file and the line, for anything wrong with it.
    """
    suffix = path.suffix.lower()
    if suffix not in (SUFFIX, ".csv"):
        raise DataError(f"--prompts {excerpt(path)}: not a .txt or .csv file.")
    found = list(_csv_items(path)) if suffix == ".csv" else [Item(line, line) for line in prompt_lines(read_text(path))]
    if not found:
        raise DataError(f"{excerpt(path.name)}: contains no prompts.")
    return found


def items_from_folder(folder: Path) -> list[Item]:
    """The pictures in a folder and its subfolders. Raises ValueError if there are none."""
    if not folder.is_dir():
        raise ValueError(f"--images {excerpt(folder)}: no such folder.")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = [Item(_name(path.relative_to(folder)), image=path) for path in files if path.suffix.lower() in PICTURES]
    if not found:
        raise ValueError(
            f"--images {excerpt(folder)}: contains no pictures; picture files end in {', '.join(PICTURES)}."
        )
    if len(files) > len(found):
        log.warning(
            "--images %s: skipped %d files; picture files end in %s.",
            excerpt(folder),
            len(files) - len(found),
            ", ".join(PICTURES),
        )
    return found


def _name(path: Path) -> str:
    """A path as text that can be written to a file, though a name on Linux may be no UTF-8."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _csv_items(path: Path) -> Iterator[Item]:
    for line, row in csv_rows(path, needed=("prompt",), optional=("image",)):
        prompt, image = row["prompt"].strip(), row.get("image", "").strip()
        if not prompt and not image:
            raise bad_line(path, line, "has neither a prompt nor an image.")
        yield Item(image or prompt, prompt or None, path.parent / image if image else None)


def read_latents(path: Path) -> Tensor:
    """The tensor "latents" (N, C, H, W) of a safetensors file. Raises ValueError if there is none that can be used."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"--latents {excerpt(path)}: no such file.")
    try:
        with safe_open(path, "pt") as file:
            latents = file.get_tensor("latents").float()
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f'{excerpt(path.name)}: not a safetensors file with a tensor "latents" ({excerpt(error, 300)}).'
        ) from None
    if latents.dim() != 4 or not latents.numel() or not latents.isfinite().all():
        raise ValueError(
            f'{excerpt(path.name)}: "latents" has shape {tuple(latents.shape)}; it must be (N, C, H, W), with finite '
            "values."
        )
    return latents


def check_latents(latents: Tensor, path: Path, channels: int) -> None:
    """Raise ValueError for latents of another model."""
    if latents.shape[1] != channels:
        raise ValueError(
            f"{excerpt(path.name)}: the latents have {latents.shape[1]} channels, but the model's have {channels}."
        )
