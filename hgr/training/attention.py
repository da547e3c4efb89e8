"""Cross-attention layers of a denoiser as functions of only the text features, on a bank of real queries.

Works on any module with `to_q`, `to_k`, `to_v`, `to_out` and `heads`, the names in both diffusers and ComfyUI.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

MAX_LAYERS = 16  # of a denoiser with more, this many are taken, evenly spread
_TENSORS = ("queries", "key", "value", "output", "bias")  # of an `AttentionLayer`
_ROWS = 64  # queries kept each time a layer runs


@dataclass(frozen=True)
class AttentionLayer:
    """A frozen copy of one cross-attention layer, so that training does not need the denoiser in memory.

    queries (Q, C): the bank.
    key, value (D, C), output (C, C): the layer's linear maps.
    bias (C,): the output's.
    """

    queries: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    bias: Tensor
    heads: int

    def __call__(self, features: Tensor) -> Tensor:
        """The layer's output (B, Q, C) for text features (B, T, D)."""
        q = rearrange(self.queries, "q (h d) -> h q d", h=self.heads).expand(len(features), -1, -1, -1)
        k, v = (rearrange(features @ x, "b t (h d) -> b h t d", h=self.heads) for x in (self.key, self.value))
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b h q d -> b q (h d)") @ self.output + self.bias

    def some(self, count: int, generator: torch.Generator) -> AttentionLayer:
        """The same layer with `count` random queries of its bank."""
        pick = torch.randint(len(self.queries), (count,), generator=generator).to(self.queries.device)
        return replace(self, queries=self.queries[pick])

    def to(self, device: torch.device | str) -> AttentionLayer:
        return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS})


def cross_attention(denoiser: nn.Module, name: str = "attn2") -> list[nn.Module]:
    """A UNet's cross-attention modules, at most `MAX_LAYERS`. Raises ValueError if none has this name."""
    modules = [
        module for key, module in denoiser.named_modules() if key.rpartition(".")[2] == name and hasattr(module, "to_k")
    ]
    if not modules:
        raise ValueError(
            f"{type(denoiser).__name__} has no cross-attention layers as in Stable Diffusion 1.x, 2.x and XL, which "
            'the attention losses need: choose the losses "text".'
        )
    if len(modules) <= MAX_LAYERS:
        return modules
    return [modules[round(i * (len(modules) - 1) / (MAX_LAYERS - 1))] for i in range(MAX_LAYERS)]


def record(
    modules: Sequence[Any], run: Callable[[], object], *, queries: int, generator: torch.Generator
) -> list[AttentionLayer]:
    """Copy cross-attention layers while `run` evaluates the denoiser at least once, on any input.

    At most `queries` random queries of each layer are kept. The linear maps are the layers' outputs for the identity,
    so patched, cast and offloaded weights are copied as the denoiser uses them. In float32, on the CPU.
    """
    rows: list[list[Tensor]] = [[] for _ in modules]
    maps: list[tuple[Tensor, ...]] = [()] * len(modules)

    def hook(index: int):
        def keep(module: Any, args: tuple, kwargs: dict) -> None:
            states = kwargs["hidden_states"] if "hidden_states" in kwargs else kwargs["x"] if "x" in kwargs else args[0]
            flat = rearrange(states.detach(), "b t c -> (b t) c")
            pick = torch.randperm(len(flat), generator=generator)[:_ROWS].to(flat.device)
            rows[index].append(module.to_q(flat[pick]).float().cpu())
            if not maps[index]:
                eye = torch.eye(module.to_k.in_features).to(flat)
                inner = torch.eye(module.to_q.out_features).to(flat)
                bias = module.to_out[0](torch.zeros_like(inner[:1]))
                found = (module.to_k(eye), module.to_v(eye), module.to_out[0](inner) - bias, bias[0])
                maps[index] = tuple(x.detach().float().cpu() for x in found)

        return keep

    handles = [module.register_forward_pre_hook(hook(i), with_kwargs=True) for i, module in enumerate(modules)]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    layers = []
    for module, kept, found in zip(modules, rows, maps, strict=True):
        bank = torch.cat(kept)
        bank = bank[torch.randperm(len(bank), generator=generator)[:queries]]
        # cloned, because a host may run its denoiser in inference mode, and gradients cannot pass its tensors
        tensors = zip(_TENSORS, (bank, *found), strict=True)
        layers.append(AttentionLayer(**{name: x.clone() for name, x in tensors}, heads=module.heads))
    return layers
