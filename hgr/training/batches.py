"""One step's prompts, drawn from examples and from bare concepts."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.prompt import Prompt
from ..data.examples import Example, Examples, listed
from ..data.pairs import Pairs
from .bare import BareExamples
from .encoded_prompts import EncodedPrompts

_IDLE = 0.3  # chance that a concept is on in a prompt that does not have it
_WORDS = 45  # of a joined prompt; more would not fit into the 77 tokens of CLIP
_BARE = 0.15  # share of bare concepts among the examples, where there are any


class Mixture:
    """What training draws from: examples of the pairs, among them some of bare concepts; and `clean`, prompts without
    any concept."""

    def __init__(self, examples: Examples, pairs: Pairs, seed: int):
        """examples: those of the pairs."""
        self.examples, self.bare = examples, BareExamples(pairs, seed)
        # in proportion: a few short clean prompts that are drawn too often teach that what is short is clean
        plain = [*examples.clean, *self.bare.clean]
        # bare concepts are joined, so clean prompts are too: else a list would be a sign of harm
        self.clean = [*plain, *joined(plain, int(_BARE * len(plain)), random.Random(f"{seed}/joined"))]

    @property
    def texts(self) -> list[str]:
        """All prompts that training may need."""
        return list(dict.fromkeys((*self.examples.texts, *self.bare.texts, *self.clean)))

    def labels(self, text: str) -> frozenset[str]:
        """The concepts of a prompt; none for a clean one."""
        return self.examples.labels(text) | self.bare.labels(text)

    def draw(self, rng: random.Random) -> Example:
        """One example; all concepts are equally likely."""
        bare = self.bare.examples and rng.random() < _BARE
        return (self.bare if bare else self.examples).draw(rng)


def joined(texts: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """`count` lists of two to six of the texts, a third of them the same one again and again, of up to 45 words."""
    lists = []
    while len(lists) < count:
        parts = rng.choices(texts, k=rng.randint(2, 6))
        text = listed(parts[:1] * len(parts) if rng.random() < 1 / 3 else parts)
        lists.append(" ".join(text.split()[:_WORDS]))
    return lists


@dataclass(frozen=True)
class Draw:
    """One step's prompts before encoding.

    switched: for each example, the concepts that are on.
    """

    examples: list[Example]
    switched: list[frozenset[str]]
    clean: list[str]

    def part(self, rank: int, count: int) -> Draw:
        """The share of process `rank` among `count`."""
        mine = slice(rank, None, count)
        return Draw(self.examples[mine], self.switched[mine], self.clean[mine])


@dataclass(frozen=True)
class Batch:
    """One step's prompts.

    harmful: prompts with concepts, labels (B, K).
    target: the same prompts without some of these concepts, with target_labels (B, K).
    switched (B, K): the concepts that are on: those that the target lacks, and some that the prompt never had.
    clean: prompts without any concept.
    """

    harmful: Prompt
    labels: Tensor
    target: Prompt
    target_labels: Tensor
    switched: Tensor
    clean: Prompt


def draw_step(mixture: Mixture, ids: Sequence[str], size: int, *, rng: random.Random) -> Draw:
    """`size` examples with the concepts that are on for each, and as many clean prompts."""
    drawn = [mixture.draw(rng) for _ in range(size)]
    clean = [rng.choice(mixture.clean) for _ in range(size)]
    # gates of related concepts fire together: a concept that is absent must add nothing to the displacement
    switched = [e.removed | {id for id in ids if id not in e.labels and rng.random() < _IDLE} for e in drawn]
    return Draw(drawn, switched, clean)


def make_batch(
    draw: Draw, mixture: Mixture, encoded: EncodedPrompts, *, ids: Sequence[str], device: torch.device | str = "cpu"
) -> Batch:
    """The tensors of a draw."""
    count = len(draw.examples)
    texts = [*(e.text for e in draw.examples), *(e.target for e in draw.examples)]
    harmful, target = encoded(texts, device).split([count, count])
    clean = encoded(draw.clean, device)  # by themselves, as the longest prompt sets the price of the others

    def flags(sets: Iterable[frozenset[str]]) -> Tensor:
        return label_matrix(sets, ids).to(device)

    return Batch(
        harmful,
        flags(e.labels | mixture.labels(e.text) for e in draw.examples),
        target,
        flags(mixture.labels(e.target) for e in draw.examples),
        flags(draw.switched),
        clean,
    )


def label_matrix(sets: Iterable[frozenset[str]], ids: Sequence[str]) -> Tensor:
    """(N, K) bool: which of the concepts `ids` each set contains."""
    return torch.tensor([[id in found for id in ids] for found in sets], dtype=torch.bool)
