"""The demo world's text encoder: a small CLIP text transformer.

It learns as CLIP does, from captions and pictures that do not quite belong together, by telling which picture of a
batch a caption came with. No label says what a caption means. Each token must also foretell the next one, so that the
features of words are more than what their picture needs.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from hgr.demo.captions import web_example
from hgr.demo.classifier import to_tensor
from hgr.demo.tokenizer import MAX_LENGTH, tokenize
from hgr.demo.world import render
from hgr.training.loop import Loop

WIDTH = 128
_GROUPS = 4  # a batch is encoded in groups of like length, each padded to its longest
_NEXT_TOKEN = 0.25  # weight of its loss


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


class PictureEncoder(nn.Sequential):
    """Features (B, WIDTH) of pictures (B, 3, 128, 128), averaged to 32x32 first. For training alone."""

    def __init__(self):
        def half(a: int, b: int) -> list[nn.Module]:
            return [nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(8, b), nn.SiLU()]

        super().__init__(
            nn.AvgPool2d(4),
            nn.Conv2d(3, 32, 3, 1, 1),
            nn.SiLU(),
            *half(32, 64),
            *half(64, 96),
            nn.Flatten(),
            nn.Linear(96 * 64, WIDTH),
        )


def contrastive_loss(texts: Tensor, pictures: Tensor, scale: Tensor) -> Tensor:
    """CLIP's (arXiv 2103.00020, figure 3): each text must find its picture in the batch, and each picture its text.
    texts, pictures (B, D), scale: the logarithm of the inverse temperature."""
    logits = F.normalize(texts, dim=-1) @ F.normalize(pictures, dim=-1).T * scale.clamp(max=4.6).exp()
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def next_token_loss(features: Tensor, ids: Tensor, table: Tensor, *, end: int) -> Tensor:
    """Mean cross-entropy of each next token, up to the first end token. features (B, T, D), ids (B, T), table (V, D):
    the embeddings."""
    inside = ids[:, :-1] != end
    return F.cross_entropy((features[:, :-1] @ table.T)[inside], ids[:, 1:][inside])


def train_text_encoder(
    work: Path, tokenizer: PreTrainedTokenizerFast, *, seed: int, device: str, steps: int, batch: int = 192
) -> CLIPTextModel:
    """Train the text encoder on captions with their pictures."""
    torch.manual_seed(seed + 1)
    encoder = new_text_encoder(tokenizer).to(device)
    parts = nn.ModuleDict({"encoder": encoder, "pictures": PictureEncoder(), "words": nn.Linear(WIDTH, WIDTH)})
    parts.register_parameter("scale", nn.Parameter(torch.tensor(2.6)))
    loop = Loop("text", parts.to(device), work, steps=steps, learning_rate=1e-3, seed=seed)
    end: int = tokenizer.eos_token_id

    def loss(rng: random.Random, generator: torch.Generator) -> Tensor:
        texts, scenes = zip(*(web_example(rng) for _ in range(batch)), strict=True)
        pixels = to_tensor(np.stack([render(scene, rng) for scene in scenes])).to(device)
        ids = tokenize(tokenizer, list(texts)).to(device)
        lengths = (ids == end).int().argmax(1) + 1
        order = lengths.argsort()
        ends, following = [], []
        with torch.autocast(device, torch.bfloat16):
            for rows in order.chunk(_GROUPS):
                part = ids[rows, : lengths[rows].max()]
                out = encoder(part)
                ends.append(parts["words"](out.pooler_output))
                table = encoder.get_input_embeddings().weight
                following.append(next_token_loss(out.last_hidden_state, part, table, end=end))
            seen = parts["pictures"](pixels[order])
        told = contrastive_loss(torch.cat(ends).float(), seen.float(), parts.scale)
        return told + _NEXT_TOKEN * torch.stack(following).float().mean()

    loop.run(loss)
    return encoder
