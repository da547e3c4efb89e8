"""What a detection or a fine-tuning looks at: prompts and pictures, from files."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..prompts import decoded, lines

log = logging.getLogger("safecfg")

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Item:
    """A prompt, a picture, or a picture with its prompt; name: what it is called in the output."""

    name: str
    prompt: str | None = None
    image: Path | None = None

    @property
    def key(self) -> str:
        """The same for the same item; another one for a picture that has changed."""
        try:
            found = self.image.stat() if self.image else None
        except OSError:
            found = None
        return json.dumps([self.name, self.prompt, found and [found.st_size, found.st_mtime_ns]])


def from_file(path: Path) -> list[Item]:
    """The prompts of a text file, one a line; or those of a CSV file with a column "prompt", and the pictures of its column "image", whose
    paths are relative to the file. A row may have one of both.

    Raises ValueError, naming the file and the line, for whatever is wrong with it.
    """
    if path.suffix.lower() not in (".txt", ".csv"):
        raise ValueError(f"--prompts {path}: not a .txt or .csv file.")
    text = decoded(path)
    found = list(_rows(path, text)) if path.suffix.lower() == ".csv" else [Item(line, line) for line in lines(text)]
    if not found:
        raise ValueError(f"{path.name}: holds no prompt.")
    return found


def from_folder(folder: Path) -> list[Item]:
    """The pictures in a folder and in the folders in it. Raises ValueError where there are none."""
    if not folder.is_dir():
        raise ValueError(f"--images {folder}: no such folder.")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = [Item(path.relative_to(folder).as_posix(), image=path) for path in files if path.suffix.lower() in PICTURES]
    if not found:
        raise ValueError(f"--images {folder}: holds no picture; these end in {', '.join(PICTURES)}.")
    if len(files) > len(found):
        log.warning("--images %s: files that are not looked at: %d; pictures end in %s.", folder, len(files) - len(found),
                    ", ".join(PICTURES))
    return found


def _rows(path: Path, text: str) -> Iterator[Item]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = [name.strip().lower() for name in reader.fieldnames or ()]
        if names.count("prompt") != 1 or names.count("image") > 1:
            raise ValueError(f"{path.name}: the header must name a column \"prompt\", and may name \"image\", each once.")
        reader.fieldnames = names
        for row in reader:
            if None in row or None in row.values():  # more cells than columns, or fewer
                raise ValueError(f"{path.name}, line {reader.line_num}: has not as many cells as the header; put a prompt that holds "
                                 "commas in quotes.")
            prompt, image = row["prompt"].strip(), row.get("image", "").strip()
            if not prompt and not image:
                raise ValueError(f"{path.name}, line {reader.line_num}: has neither a prompt nor an image.")
            yield Item(image or prompt, prompt or None, path.parent / image if image else None)
    except csv.Error as error:
        raise ValueError(f"{path.name}, line {reader.line_num}: not sound CSV ({error}).") from None
