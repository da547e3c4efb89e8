"""Normalized attention guidance, NAG (Chen et al., 2025, arXiv 2505.21179)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hgr.demo.captions import Caption

from .method import Guide, Method, predictions

SCALE, TAU, ALPHA = 5.0, 2.5, 0.25  # of the authors' ComfyUI nodes


def normalised(positive: Tensor, negative: Tensor) -> Tensor:
    """`Z~ = s Z+ - (s - 1) Z-`, its norm at most tau times that of Z+, blended: `alpha Z~ + (1 - alpha) Z+`. Z+, Z-
    (..., D); L1 norms over D."""
    pushed = SCALE * positive - (SCALE - 1) * negative
    ratio = pushed.norm(p=1, dim=-1, keepdim=True) / positive.norm(p=1, dim=-1, keepdim=True).clamp(min=1e-8)
    pushed = pushed * (ratio.clamp(max=TAU) / ratio.clamp(min=1e-8))
    return ALPHA * pushed + (1 - ALPHA) * positive


@contextmanager
def pushed_attention(unet: nn.Module, negative: Tensor) -> Iterator[None]:
    """Cross-attention whose last B rows are pushed away from what negative (B, T, D) would give there."""

    def push(attention: Any, args: tuple[Tensor, ...], named: dict[str, Any], result: Tensor) -> Tensor:
        rows = args[0][-len(negative) :]
        other = attention.processor(attention, rows, encoder_hidden_states=negative)
        own = result[-len(negative) :]
        return torch.cat([result[: -len(negative)], normalised(own, other)])

    layers = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    hooks = [layer.register_forward_hook(push, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class NAG(Method):
    """Plain guidance with the positive side's cross-attention pushed away from that of all concepts' words. No more
    evaluations: in each layer, only the attention is done once more."""

    label = "NAG"

    def guide(self, captions: list[Caption]) -> Guide:
        positive, empty = self.encode([c.text for c in captions]), self.encode([""])
        negative = self.encode([self.given.list]).expand_as(positive)

        def guide(latents: Tensor, t: Tensor, step: int) -> tuple[Tensor, Tensor]:
            with pushed_attention(self.pipe.unet, negative):
                u, p = predictions(self.pipe, latents, t, empty, positive)
            return latents, u + self.given.cfg * (p - u)

        return guide
