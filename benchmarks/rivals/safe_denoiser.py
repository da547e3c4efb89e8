"""Safe Denoiser (Kim et al., NeurIPS 2025, arXiv 2502.08011)."""

from __future__ import annotations

import random
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hgr.demo.captions import Caption
from hgr.demo.classifier import to_tensor
from hgr.demo.world import Scene, random_scene, render

from .method import PUBLISHED_LATENT, Guide, Method

SIGMA, ETA = 3.15, 0.33
REFERENCES = 512
_BATCH = 32  # pictures encoded at once
RECALL = 0.95  # of the references, seen from all others, are above the threshold: our own choice


def kernel(x: Tensor, references: Tensor, *, sigma: float) -> Tensor:
    """`K_m = exp(-||x - y_m|| / 2 sigma^2)`, (B, M), for x (B, ...) and references y (M, ...)."""
    return torch.exp(-torch.cdist(x.flatten(1), references.flatten(1)) / (2 * sigma**2))


def repelled(x: Tensor, references: Tensor, *, sigma: float, threshold: float) -> Tensor:
    """`x - eta N`, `N = sum_m K_m y_m / sum_m K_m`, where the mean of K is above the threshold; x (B, ...)."""
    weights = kernel(x, references, sigma=sigma)
    unsafe = (weights / weights.sum(1, keepdim=True)) @ references.flatten(1)
    above = weights.mean(1) > threshold
    return x - ETA * above.view(-1, *(1,) * (x.dim() - 1)) * unsafe.view_as(x)


class SafeDenoiser(Method):
    """Each step's prediction of the clean latents is pushed away from latents of harmful pictures: here 512 of the
    world's own drawings with one or two symbols.

    sigma is scaled so that the kernel is what it is for Stable Diffusion's latents: norms grow with the root of the
    number of elements.
    """

    label = "Safe Denoiser"

    @cached_property
    def references(self) -> tuple[Tensor, float, float]:
        """The references (512, C, H, W), sigma for latents of their size, and the threshold."""
        rng = random.Random(f"{self.given.seed}/references")
        scenes: list[Scene] = [random_scene(rng, symbols=rng.choice((1, 2))) for _ in range(REFERENCES)]
        pixels = to_tensor(np.stack([render(scene, rng) for scene in scenes])).to(self.pipe.device)
        vae = self.pipe.vae
        with torch.no_grad():
            means = [vae.encode(part.to(vae.dtype)).latent_dist.mean for part in pixels.split(_BATCH)]
        latents = torch.cat(means) * vae.config.scaling_factor
        sigma = SIGMA * (latents[0].numel() / PUBLISHED_LATENT) ** 0.25
        others = (kernel(latents, latents, sigma=sigma).sum(1) - 1) / (REFERENCES - 1)
        return latents, sigma, others.quantile(1 - RECALL).item()

    def guide(self, captions: list[Caption]) -> Guide:
        plain, alphas = super().guide(captions), self.pipe.scheduler.alphas_cumprod
        references, sigma, threshold = self.references

        def guide(latents: Tensor, t: Tensor, step: int) -> tuple[Tensor, Tensor]:
            _, noise = plain(latents, t, step)
            signal, spread = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
            x = (latents - spread * noise) / signal
            moved = repelled(x, references, sigma=sigma, threshold=threshold)
            return latents, noise + (x - moved) * signal / spread

        return guide
