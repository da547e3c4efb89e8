"""Public sets of harmful prompts, read as their authors publish them.

- CoProV2 (SafetyDPO, arXiv 2412.10493), CoProv2_train.csv: `prompt,image,category`, where pictures u_NAME and s_NAME
  belong to a harmful prompt and to its clean twin.
- I2P (Safe Latent Diffusion, arXiv 2211.05105), i2p_benchmark.csv: `prompt,categories,...`, prompts without twins.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from . import library
from .textfile import csv_header, csv_rows

_COPRO, _I2P = ("prompt", "image", "category"), ("prompt", "categories")
_SPELT = {"harrasment": "harassment", "illegal": "illegal_activity"}
Cells = dict[str, str]  # a pair's, as in `hgr.data.pair_file`


def public_rows(path: Path) -> Iterator[tuple[int, Cells]] | None:
    """(line, cells) of the pairs of a CSV file of one of the sets; None for another file."""
    header = set(csv_header(path))
    if header.issuperset(_COPRO):
        return _copro(path)
    return _i2p(path) if header.issuperset(_I2P) else None


def _copro(path: Path) -> Iterator[tuple[int, Cells]]:
    rows = list(csv_rows(path, needed=_COPRO))
    twins = {row["image"][2:]: row["prompt"] for _, row in rows if row["image"].startswith("s_")}
    for line, row in rows:
        clean = twins.get(row["image"][2:], "")
        if row["image"].startswith("u_") and clean and clean.split() != row["prompt"].split():
            yield line, {"harmful": row["prompt"], "clean": clean, "concept": _concept(row["category"])}


def _i2p(path: Path) -> Iterator[tuple[int, Cells]]:
    """Each prompt's twin is one of the library's clean prompts: there is nothing else to lead it to."""
    clean = library.clean_prompts()
    for line, row in csv_rows(path, needed=_I2P):
        twin = clean[zlib.crc32(row["prompt"].encode("utf-8", "replace")) % len(clean)]
        for category in filter(None, map(str.strip, row["categories"].split(","))):
            yield line, {"harmful": row["prompt"], "clean": twin, "concept": _concept(category)}


def _concept(category: str) -> str:
    """A category's id in the library: the sets write "Illegal Activity", "self-harm" and "Harrasment"."""
    name = re.sub(r"\W+", "_", category.strip().lower())
    return _SPELT.get(name, name)
