"""A model's denoiser as training and detection use it, whatever the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

# The error (B, ...) of the prediction for features (B, T, D) and pooled (B, P) or None: prediction minus truth.
Predict = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Denoiser:
    """A denoiser and what is needed to run it.

    module: the network itself, to find layers in.
    at: takes latents (B, ...), the position of each in sampling, percent (B,) in [0, 1] with 0 for pure noise, and
    noise (B, ...); returns the errors of the predictions there. The model may predict noise, pictures or a velocity.
    paint: takes N prompts and the number of those that are painted already; samples latents (B, ...) for the others, a
    few at a time, in order.
    batch: how many pictures it takes at once.
    noise: where `paint` draws from, unless each picture has a seed of its own. With its state and the number of
    pictures, `paint` resumes as if it had not been interrupted.
    """

    module: nn.Module
    at: Callable[[Tensor, Tensor, Tensor], Predict]
    paint: Callable[[list[str], int], Iterator[Tensor]]
    batch: int = 8
    noise: torch.Generator = field(default_factory=torch.Generator)

    def draw(self, pictures: Tensor, count: int, generator: torch.Generator) -> Predict:
        """The errors for `count` random ones of `pictures` (N, ...), each at a random point in sampling."""
        clean = pictures[torch.randint(len(pictures), (count,), generator=generator)]
        noise = torch.randn(clean.shape, generator=generator)
        return self.at(clean, torch.rand(count, generator=generator).clamp(0.01, 0.99), noise)


def middle(denoiser: nn.Module) -> nn.Module:
    """A UNet's middle block, or the middle one of a transformer's blocks.

    Raises ValueError for a denoiser with neither.
    """
    for name in ("mid_block", "middle_block"):
        if getattr(denoiser, name, None) is not None:
            found = getattr(denoiser, name)
            # ComfyUI calls the layers of a Sequential one by one: a hook on the whole would never run
            return found[-1] if isinstance(found, nn.Sequential) else found
    blocks = max((child for child in denoiser.modules() if isinstance(child, nn.ModuleList)), key=len, default=())
    if not blocks:
        raise ValueError(
            f"{type(denoiser).__name__} has no middle block that SafeCFG knows: it cannot detect concepts in pictures."
        )
    return blocks[len(blocks) // 2]


@contextmanager
def middle_features(denoiser: nn.Module) -> Iterator[list[Tensor]]:
    """Keeps, in a list of one, the latest output of the denoiser's middle: the mean and the standard deviation over
    the picture, (B, 2 C) in float32."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: tuple, result: Tensor | tuple[Tensor, ...]) -> None:
        # transformers return text tokens and picture tokens; there are more of the latter
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


@contextmanager
def evaluations(module: nn.Module) -> Iterator[list[int]]:
    """Counts the denoiser's evaluations, one per sample in a batch, in the only item of the list."""
    count = [0]

    def add(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        count[0] += len(arguments[0])

    hook = module.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        hook.remove()
