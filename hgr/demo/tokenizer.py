"""The demo world's tokenizer, as transformers and diffusers expect it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerFast

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a `tokenizers` file; it pads to 77 with the end token."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=END,
        model_max_length=MAX_LENGTH,
    )


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Token ids (B, 77)."""
    return tokenizer(texts, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt").input_ids
