"""Small HGRs for tests, with gates that are known."""

from collections.abc import Callable
from typing import Any

import torch

from hgr.core.hgr import HGR, Concept, Encoder
from hgr.core.network import HGRNetwork
from hgr.core.prompt import Prompt
from hgr.core.redirect import redirect

WIDTH, CHUNK = 16, 6


def small_hgr(biases=(20.0, -20.0), pooled_dim=0, fixed_start=True, seed=0) -> HGR:
    """Displacements are random; concept k's gate is open for a bias of +20 and closed for -20, whatever the prompt."""
    torch.manual_seed(seed)
    network = HGRNetwork(WIDTH, pooled_dim, len(biases), width=24, depth=1)
    torch.nn.init.normal_(network.move_out.weight)
    if pooled_dim:
        torch.nn.init.normal_(network.pooled_out.weight)
    concepts = [Concept(f"c{k}", f"Concept {k}", "", 0.5, 0.05, bias) for k, bias in enumerate(biases)]
    encoder = Encoder(
        "a test encoder", CHUNK, fixed_start, torch.ones(2, WIDTH), torch.ones(pooled_dim) if pooled_dim else None
    )
    return HGR(network.eval().requires_grad_(False), concepts, encoder, {"note": "test"})


def prompt(batch=1, chunks=1, seed=1) -> torch.Tensor:
    """Features whose every chunk starts as the test encoder's do."""
    features = torch.randn(batch, chunks * CHUNK, WIDTH, generator=torch.Generator().manual_seed(seed))
    features[:, ::CHUNK] = 1
    return features


def first_prediction(pipe: Any, run: Callable[[], Any]) -> torch.Tensor:
    """(B, ...): what the pipeline's scheduler gets in the first step of `run`, which all runs of one seed begin
    with."""
    seen, step = [], pipe.scheduler.step

    def keep(noise: torch.Tensor, *args: Any, **more: Any) -> Any:
        seen.append(noise.clone())
        return step(noise, *args, **more)

    pipe.scheduler.step = keep
    try:
        run()
    finally:
        del pipe.scheduler.step
    return seen[0]


def safe_features(hgr: HGR, features: torch.Tensor, pooled=None, *, strengths=None) -> torch.Tensor:
    """`c_safe` of features (B, T, D), with all concepts at strength 1 unless told otherwise."""
    strengths = [1.0] * len(hgr.ids) if strengths is None else strengths.tolist()
    return redirect(hgr, Prompt(features, pooled), strengths=strengths).safe.features
