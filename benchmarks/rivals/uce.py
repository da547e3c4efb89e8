"""Unified concept editing, UCE (Gandikota et al., WACV 2024, arXiv 2308.14761)."""

from __future__ import annotations

import random
from functools import cached_property

import torch
from torch import Tensor

from hgr.demo.captions import draw_from

from .method import token_ids
from .weights import Edited, cross_attention

RIDGE = 0.5  # lambda, the authors' default
PRESERVED, PRESERVE_SCALE = 100, 0.1  # clean prompts that are preserved, and their weight: that of the first release


def closed_form(weight: Tensor, edited: Tensor, anchors: Tensor, *, preserved: Tensor, scale: float) -> Tensor:
    """The minimum of `sum ||W c - W_old c*||^2 + scale sum ||W c' - W_old c'||^2 + lambda ||W - W_old||^2`, equation 7:

        W = W_old (sum c* c^T + R) (sum c c^T + R)^-1,     R = scale sum c' c'^T + lambda I

    weight (O, D); edited c, anchors c* (N, D) in pairs; preserved c' (M, D).
    """
    c, goal, kept = edited.double(), anchors.double(), preserved.double()
    rest = scale * kept.T @ kept + RIDGE * torch.eye(weight.shape[1], dtype=torch.double, device=weight.device)
    return torch.linalg.solve(c.T @ c + rest, (weight.double() @ (goal.T @ c + rest)).T).T.to(weight)


class UCE(Edited):
    """Keys and values of the cross-attention in closed form: from its last token on, a concept's phrase gives what the
    anchor does. Preserved are the tokens of clean prompts of the training side."""

    label = "UCE"

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        (goal,) = self._from_last_token([self.given.anchor])
        pairs = [(c[: len(goal)], goal[: len(c)]) for c in self._from_last_token(self.given.phrases)]
        edited, anchors = (torch.cat(side) for side in zip(*pairs, strict=True))
        rng = random.Random(f"{self.given.seed}/preserved")
        clean = [draw_from("training", rng, "clean").text for _ in range(PRESERVED)]
        preserved = self.encode(clean).flatten(0, 1)
        return {
            name: closed_form(weight, edited, anchors, preserved=preserved, scale=PRESERVE_SCALE)
            for name, weight in cross_attention(self.pipe.unet, ("to_k", "to_v")).items()
        }

    def _from_last_token(self, texts: list[str]) -> list[Tensor]:
        """For each text, the features (N, D) of its last token and of all after it."""
        ends = (token_ids(self.pipe, texts) == self.pipe.tokenizer.eos_token_id).int().argmax(1)
        return [x[end - 1 :] for x, end in zip(self.encode(texts), ends.tolist(), strict=True)]
