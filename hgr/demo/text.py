"""The demo world's tokenizer and text encoder, and their training.

The tokenizer is a byte-level BPE in one `tokenizers` file, so a misspelt word is several known pieces and not one
unknown word. The encoder is a small CLIP text transformer. Where CLIP learns from pictures, this one learns from
the scenes: from the end token and from the last padding token a linear head must tell the scene's attributes.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from ..loop import Loop
from .captions import base_mixture
from .world import BACKGROUNDS, COLOURS, DECORS, SHAPES, SYMBOLS, Scene

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 48
WIDTH = 128


def train_tokenizer(path: Path, seed: int, size: int = 1022, captions: int = 20_000) -> None:
    """Learn the byte-pair merges from captions. The two special tokens take the highest ids, as in CLIP."""
    rng = random.Random(f"{seed}/tokenizer")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), min_frequency=20,
                                  show_progress=False)
    tokenizer.train_from_iterator((base_mixture(rng).text for _ in range(captions)), trainer)
    tokenizer.add_special_tokens([START, END])
    ids = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{START} $A {END}", None, ids)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers and diffusers want it; padded with the end token to 48."""
    return PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token=START, eos_token=END, pad_token=END, unk_token=END,
                                   model_max_length=MAX_LENGTH)


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Token ids (B, 48)."""
    return tokenizer(texts, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt").input_ids


def build(tokenizer: PreTrainedTokenizerFast) -> CLIPTextModel:
    """A fresh text encoder."""
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH, projection_dim=WIDTH, hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))


def attribute_targets(scene: Scene) -> list[int]:
    """A scene as class numbers: background, two (shape, colour) slots (0: empty), a flag per symbol, decor (0: none)."""
    slots = [SHAPES.index(s) * len(COLOURS) + COLOURS.index(c) + 1 for s, c in scene.objects] + [0]
    return [BACKGROUNDS.index(scene.background), *slots[:2], *(int(s in scene.symbols) for s in SYMBOLS),
            0 if scene.decor is None else DECORS.index(scene.decor) + 1]


ATTRIBUTE_CLASSES = (len(BACKGROUNDS), *(len(SHAPES) * len(COLOURS) + 1,) * 2, *(2,) * len(SYMBOLS), len(DECORS) + 1)


def attribute_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over attributes. logits (B, sum of ATTRIBUTE_CLASSES), targets (B, attributes) of class numbers."""
    parts = logits.split(ATTRIBUTE_CLASSES, dim=1)
    return torch.stack([F.cross_entropy(part, target) for part, target in zip(parts, targets.T, strict=True)]).mean()


def train(work: Path, tokenizer: PreTrainedTokenizerFast, seed: int, device: str, steps: int, batch: int = 64) -> CLIPTextModel:
    """Train the text encoder until its features tell what a caption's picture shows."""
    torch.manual_seed(seed + 1)
    encoder = build(tokenizer).to(device)
    head = nn.Linear(WIDTH, sum(ATTRIBUTE_CLASSES)).to(device)
    loop = Loop("text", nn.ModuleDict({"encoder": encoder, "head": head}), steps, 1e-3, work, seed)

    def loss(rng: random.Random, generator: torch.Generator) -> Tensor:
        captions = [base_mixture(rng) for _ in range(batch)]
        ids = tokenize(tokenizer, [c.text for c in captions]).to(device)
        targets = torch.tensor([attribute_targets(c.scene) for c in captions], device=device)
        with torch.autocast(device, torch.bfloat16):
            out = encoder(ids)
        ends = torch.stack([out.pooler_output, out.last_hidden_state[:, -1]]).float()
        return sum(attribute_loss(head(end), targets) for end in ends)

    loop.run(loss)
    return encoder
