"""Cross-attention layers of a denoiser as functions of the text features alone, on a bank of real queries.

Works on any module with `to_q`, `to_k`, `to_v`, `to_out` and `heads`: diffusers' and ComfyUI's attention have these names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn


def query_bank(layers: Sequence[nn.Module], run: Callable[[], object], queries: int, generator: torch.Generator) -> list[Tensor]:
    """Record `queries` random queries (Q, C) of each cross-attention layer while `run` evaluates the denoiser."""
    bank: list[Tensor] = [torch.empty(0)] * len(layers)

    def record(index: int):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            rows = rearrange(states.detach(), "b t c -> (b t) c")
            pick = torch.randperm(len(rows), generator=generator)[:queries].to(rows.device)
            bank[index] = module.to_q(rows[pick]).detach().clone()
        return hook

    handles = [layer.register_forward_pre_hook(record(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return bank


def attend(layer: nn.Module, queries: Tensor, features: Tensor) -> Tensor:
    """A layer's output (B, Q, C) for queries (Q, C) and text features (B, T, D)."""
    q = repeat(queries, "q (h d) -> b h q d", b=len(features), h=layer.heads)
    k, v = (rearrange(x, "b t (h d) -> b h t d", h=layer.heads) for x in (layer.to_k(features), layer.to_v(features)))
    return layer.to_out[0](rearrange(F.scaled_dot_product_attention(q, k, v), "b h q d -> b q (h d)"))
