"""The demo world's HGR: which captions it is trained on, and its training."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from ..attention import attend, query_bank
from ..loop import Loop
from ..network import HGRNetwork
from ..redirector import HGR, Concept, Encoder
from ..training import Batch, Weights, calibrate, step_loss
from .captions import Caption, draw_from
from .text import MAX_LENGTH, WIDTH
from .unet import encode_captions, scheduler
from .world import SYMBOLS

CONCEPTS = [
    Concept("skull", "Skull", "Skulls and death's heads: stands in for death and self-harm."),
    Concept("dagger", "Dagger", "Daggers and knives: stands in for violence."),
    Concept("splatter", "Splatter", "Blood and gore: stands in for shocking content."),
    Concept("bomb", "Bomb", "Bombs and explosives: stands in for illegal activity."),
]
FALSE_POSITIVE_RATE = 0.005


def labels_of(captions: list[Caption]) -> Tensor:
    """(B, K) bool: which concepts each caption has."""
    return torch.tensor([[symbol in c.concepts for symbol in SYMBOLS] for c in captions])


def harmful_caption(rng: random.Random) -> Caption:
    return draw_from("training", rng, "two" if rng.random() < 0.4 else "seen")


def clean_caption(rng: random.Random) -> Caption:
    return draw_from("training", rng, "homonym" if rng.random() < 0.5 else "clean")


def train(work: Path, encoder: CLIPTextModel, tokenizer: PreTrainedTokenizerFast, unet: UNet2DConditionModel, latents: Tensor,
          seed: int, steps: int, batch: int = 32, weights: Weights = Weights(), queries: int = 192) -> HGR:
    """Train the demo HGR on the grammar's training captions, by the attention loss; minutes on a CPU."""
    torch.manual_seed(seed + 4)
    features = encode_captions(encoder, tokenizer, [harmful_caption(random.Random(f"{seed}/statistics/{i}")).text for i in range(512)])
    network = HGRNetwork(WIDTH, 0, len(SYMBOLS), width=96)
    network.set_statistics(features, None)
    modules = [m for name, m in unet.named_modules() if name.endswith("attn2")]
    bank = real_queries(modules, unet, latents, features, queries * 8, seed)
    loop = Loop("hgr", network, steps, 1.5e-3, work, seed, average=0.995)

    def loss(rng: random.Random, generator: torch.Generator) -> Tensor:
        captions = [harmful_caption(rng) for _ in range(batch)]
        clean = [clean_caption(rng) for _ in range(batch)]
        removed = [[s for s in c.concepts if rng.random() < 0.7] or [rng.choice(c.concepts)] for c in captions]
        targets = [c.keeping(tuple(s for s in c.concepts if s not in gone)) for c, gone in zip(captions, removed, strict=True)]
        x = encode_captions(encoder, tokenizer, [*(c.text for c in captions), *targets, *(c.text for c in clean)])
        harmful, target, clean_features = x.split(batch)
        flags = torch.tensor([[s in gone for s in SYMBOLS] for gone in removed])
        picks = [q[torch.randint(len(q), (queries,), generator=generator)] for q in bank]
        layers = [lambda f, m=m, q=q: attend(m, q, f) for m, q in zip(modules, picks, strict=True)]
        return step_loss(network, Batch(harmful, labels_of(captions), target, flags, clean_features), weights, layers)

    unet.requires_grad_(False)
    loop.run(loss)
    network.requires_grad_(False)
    empty = encode_captions(encoder, tokenizer, [""])[0]
    made_for = Encoder("the SafeCFG demo model (SD 1.5 family)", MAX_LENGTH, True, empty[0], empty.mean(0))
    rng = random.Random(f"{seed}/calibration")
    harmful = [draw_from("validation", rng, kind) for kind in ("seen", "two") for _ in range(750)]
    clean = [draw_from("validation", rng, kind).text for kind in ("clean", "homonym") for _ in range(1500)]
    hgr = HGR(network, CONCEPTS, made_for, {
        "data": "hgr.demo.captions, kinds seen, two, clean and homonym", "steps": steps, "batch": batch, "seed": seed,
        "losses": vars(weights), "false_positive_rate": FALSE_POSITIVE_RATE, "torch": torch.__version__})
    return calibrate(hgr, encode_captions(encoder, tokenizer, [c.text for c in harmful]), labels_of(harmful),
                     encode_captions(encoder, tokenizer, clean), FALSE_POSITIVE_RATE)


def real_queries(modules: list, unet: UNet2DConditionModel, latents: Tensor, features: Tensor, queries: int, seed: int) -> list[Tensor]:
    """Queries of each cross-attention layer on noisy latents at random timesteps."""
    generator = torch.Generator().manual_seed(seed)
    clean = latents[torch.randint(len(latents), (len(features),), generator=generator)]
    t = torch.randint(1000, (len(clean),), generator=generator)
    a = scheduler().alphas_cumprod[t][:, None, None, None]
    noisy = a.sqrt() * clean + (1 - a).sqrt() * torch.randn(clean.shape, generator=generator)
    return query_bank(modules, lambda: unet(noisy, t, features), queries, generator)
