"""The demo world's tokenizer: a byte-level BPE in one `tokenizers` file, which splits a misspelt word into known pieces
instead of making it unknown."""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from hgr.demo.captions import web_example
from hgr.demo.tokenizer import END, START


def train_tokenizer(path: Path, *, seed: int, size: int = 1534, captions: int = 30_000) -> None:
    """Learn the byte-pair merges from captions. The two special tokens take the highest ids, as in CLIP."""
    rng = random.Random(f"{seed}/tokenizer")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), min_frequency=20, show_progress=False
    )
    tokenizer.train_from_iterator((web_example(rng)[0] for _ in range(captions)), trainer)
    tokenizer.add_special_tokens([START, END])
    ids = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{START} $A {END}", None, ids)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
