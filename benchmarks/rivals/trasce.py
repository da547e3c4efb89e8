"""TraSCE, trajectory steering for concept erasure (Jain et al., arXiv 2412.07658)."""

from __future__ import annotations

import torch
from torch import Tensor

from hgr.demo.captions import Caption

from .method import PUBLISHED_LATENT, Guide, Method, predictions

A, B, SIGMA = 15.0, 5.0, 1.0


def loss(p: Tensor, n: Tensor, *, sigma: float) -> Tensor:
    """`L = -a exp(-||p - n|| / sigma)`, summed over the samples; p, n (B, ...)."""
    return -A * torch.exp(-(p - n).flatten(1).norm(dim=1) / sigma).sum()


class TraSCE(Method):
    """`z -= b grad_z L`, then `u + g (p - n)`, so that a prompt that is the concept gets the unconditional prediction.

    A norm grows with the root of the latents' number of elements r times that of Stable Diffusion's. sigma is scaled
    with it, and b by 1 / r, so that the loss and the step of each element are what they are there.
    """

    label = "TraSCE"

    def guide(self, captions: list[Caption]) -> Guide:
        positive, negative, empty = (
            self.encode([c.text for c in captions]),
            self.encode([self.given.list]),
            self.encode([""]),
        )

        def guide(latents: Tensor, t: Tensor, step: int) -> tuple[Tensor, Tensor]:
            (u,) = predictions(self.pipe, latents, t, empty)
            ratio = latents[0].numel() / PUBLISHED_LATENT
            with torch.enable_grad():
                z = latents.detach().requires_grad_()
                p, n = predictions(self.pipe, z, t, positive, negative)
                (slope,) = torch.autograd.grad(loss(p, n, sigma=SIGMA * ratio**0.5), z)
            p, n = p.detach(), n.detach()
            return latents - B * ratio * slope, u + self.given.cfg * (p - n)

        return guide
