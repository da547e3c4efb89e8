"""A model's denoiser as training and detection ask for it, whatever host holds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .progress import Progress

# What a prediction for features (B, T, D) and pooled (B, P) or None is wrong by, (B, ...): prediction minus truth.
Predict = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Denoiser:
    """module: to find layers in. batch: how many pictures go through it at once.

    at: takes latents (B, ...), where in sampling each is, percent (B,) in [0, 1] with 0 for pure noise, and noise (B,
    ...); returns the errors of the predictions there. Whether these are of the noise, of the picture or of a velocity
    is the model's affair.
    paint: samples latents (N, ...) for N prompts; its second argument's `picture` is called after every few.
    """

    module: nn.Module
    at: Callable[[Tensor, Tensor, Tensor], Predict]
    paint: Callable[[list[str], Progress], Tensor]
    batch: int = 8

    def draw(self, pictures: Tensor, count: int, generator: torch.Generator) -> Predict:
        """The errors for random ones of `pictures` (N, ...) at random places of sampling."""
        clean = pictures[torch.randint(len(pictures), (count,), generator=generator)]
        noise = torch.randn(clean.shape, generator=generator)
        return self.at(clean, torch.rand(count, generator=generator).clamp(0.01, 0.99), noise)


def middle(denoiser: nn.Module) -> nn.Module:
    """The middle of a denoiser: a UNet's middle block, else the middle one of a transformer's blocks. Raises ValueError
    for a denoiser with neither."""
    for name in ("mid_block", "middle_block"):
        if getattr(denoiser, name, None) is not None:
            found = getattr(denoiser, name)
            return (
                found[-1] if isinstance(found, nn.Sequential) else found
            )  # ComfyUI calls the layers of a sequence one by one
    blocks = max((child for child in denoiser.modules() if isinstance(child, nn.ModuleList)), key=len, default=())
    if not blocks:
        raise ValueError(
            f"{type(denoiser).__name__} has no middle block that SafeCFG knows: pictures cannot be looked at with it."
        )
    return blocks[len(blocks) // 2]


@contextmanager
def middle_features(denoiser: nn.Module) -> Iterator[list[Tensor]]:
    """Keeps, in a list of one, what the denoiser's middle gave last: mean and spread over the picture, (B, 2 C) in
    float32."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: tuple, result: Tensor | tuple[Tensor, ...]) -> None:
        # transformers give text tokens and the picture's; of these there are more
        parts = [
            x for x in (result if isinstance(result, tuple) else (result,)) if isinstance(x, Tensor) and x.dim() >= 3
        ]
        x = max(parts, key=Tensor.numel).detach().float()
        x = x.transpose(1, 2) if x.dim() == 3 else x.flatten(2)
        kept[:] = [torch.cat([x.mean(2), x.std(2)], 1)]

    hook = middle(denoiser).register_forward_hook(keep)
    try:
        yield kept
    finally:
        hook.remove()
