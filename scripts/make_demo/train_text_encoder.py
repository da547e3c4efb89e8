"""The demo world's text encoder: a small CLIP text transformer.

CLIP learns from pictures; this one learns from scenes. A linear head must predict the scene's attributes from the end
token and from the last padding token.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from hgr.demo.attributes import ATTRIBUTE_CLASSES, attribute_targets
from hgr.demo.captions import base_mixture
from hgr.demo.tokenizer import MAX_LENGTH, tokenize
from hgr.training.loop import Loop

WIDTH = 128


def new_text_encoder(tokenizer: PreTrainedTokenizerFast) -> CLIPTextModel:
    """A fresh text encoder."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            projection_dim=WIDTH,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def attribute_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over attributes. logits (B, sum of ATTRIBUTE_CLASSES), targets (B, attributes): classes."""
    parts = logits.split(ATTRIBUTE_CLASSES, dim=1)
    return torch.stack([F.cross_entropy(part, target) for part, target in zip(parts, targets.T, strict=True)]).mean()


def train_text_encoder(
    work: Path, tokenizer: PreTrainedTokenizerFast, *, seed: int, device: str, steps: int, batch: int = 64
) -> CLIPTextModel:
    """Train the text encoder so that its features tell what a caption's picture shows."""
    torch.manual_seed(seed + 1)
    encoder = new_text_encoder(tokenizer).to(device)
    head = nn.Linear(WIDTH, sum(ATTRIBUTE_CLASSES)).to(device)
    loop = Loop(
        "text", nn.ModuleDict({"encoder": encoder, "head": head}), work, steps=steps, learning_rate=1e-3, seed=seed
    )

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
