"""SAFREE (Yoon et al., ICLR 2025, arXiv 2410.12761)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hgr.demo.captions import Caption

from .method import PUBLISHED_STEPS, Guide, Method, pooled, predictions, token_ids

ALPHA = 0.01  # how much farther than the others a token's prompt must be from the concepts without it
GAMMA = 10  # steps of 50, at most, with the projected features


def projection(vectors: Tensor) -> Tensor:
    """(D, D): the orthogonal projection onto the span of vectors (N, D)."""
    return torch.linalg.pinv(vectors) @ vectors


def triggers(masked: Tensor, concepts: Tensor) -> Tensor:
    """(N,) bool: the tokens whose absence takes a prompt farther from the concepts than that of the others does,
    `||(I - P_C) m_i|| >= (1 + alpha) mean_{j != i} ||(I - P_C) m_j||`.

    masked (N, D): the pooled prompt without each token; concepts (D, D): P_C. A single token has no others.
    """
    far = (masked - masked @ concepts).norm(dim=1)
    others = (far.sum() - far) / (len(far) - 1)
    return far >= (1 + ALPHA) * others


def filtered_steps(features: Tensor, projected: Tensor) -> float:
    """`gamma sigmoid(5 (10 b - 5.333))`, b = 1 - mean cos(projected, original): for how many steps of 50 the projected
    features are used. features, projected (N, D): a prompt's own tokens."""
    b = 1 - F.cosine_similarity(projected, features).mean()
    return GAMMA * torch.sigmoid(5 * (10 * b - 5.333)).item()


class SAFREE(Method):
    """Each trigger token's features e become `(I - P_C) P_M e` in the first steps; P_C projects onto the pooled
    concepts, P_M onto the pooled prompts without one token each. The list of concepts is the negative prompt.

    The number of steps is scaled from 50. Left out: the re-attention in the denoiser, which is optional there.
    """

    label = "SAFREE"

    def guide(self, captions: list[Caption]) -> Guide:
        texts = [c.text for c in captions]
        plain, negative = self.encode(texts), self.encode([self.given.list])
        safe, limits = self.project(texts, plain)

        def guide(latents: Tensor, t: Tensor, step: int) -> tuple[Tensor, Tensor]:
            features = torch.where((step <= limits).view(-1, 1, 1), safe, plain)
            n, p = predictions(self.pipe, latents, t, negative, features)
            return latents, n + self.given.cfg * (p - n)

        return guide

    def project(self, texts: list[str], features: Tensor) -> tuple[Tensor, Tensor]:
        """Safe features (B, T, D) for features (B, T, D), and the last step (B,) in which they are used."""
        concepts = projection(pooled(self.pipe, token_ids(self.pipe, self.given.phrases)))
        safe, limits = features.clone(), torch.full((len(texts),), -1, device=features.device)
        scale = self.given.steps / PUBLISHED_STEPS
        for i, ids in enumerate(token_ids(self.pipe, texts)):
            count = int((ids == self.pipe.tokenizer.eos_token_id).nonzero()[0]) - 1  # without start and end
            if count < 1:
                continue
            masked = pooled(self.pipe, ids.expand(count, -1), without=torch.arange(1, 1 + count))
            tokens = features[i, 1 : 1 + count]
            within = tokens @ projection(masked)
            projected = within - within @ concepts
            safe[i, 1 : 1 + count] = torch.where(triggers(masked, concepts)[:, None], projected, tokens)
            limits[i] = round(scale * filtered_steps(tokens, projected))
        return safe, limits
