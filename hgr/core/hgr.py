"""The Harmful Guidance Redirector: a network, its calibrated concepts, and the encoder that it was made for."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from .errors import EncoderMismatch, HGRError
from .guidance import ramp
from .network import HGRNetwork, HGRUnion
from .options import DEFAULT_SENSITIVITY, SENSITIVITIES
from .prompt import Prompt


@dataclass(frozen=True)
class Concept:
    """One harmful concept.

    threshold: the gate from which it counts as present, in (0, 1).
    scale, bias: the calibration, `gate = sigmoid(scale * logit + bias)`.
    levels: the threshold at each of `SENSITIVITIES`; empty if they were not measured.
    """

    id: str
    label: str
    description: str = ""
    threshold: float = 0.5
    scale: float = 1.0
    bias: float = 0.0
    levels: tuple[float, ...] = ()

    @property
    def muted(self) -> bool:
        """Whether it can never fire (`HGR.only`)."""
        return self.scale == 0 and self.bias <= _MUTED


_MUTED = -30.0  # the bias of a score that never rises


def at_sensitivity(concepts: Sequence[Concept], sensitivity: str, name: str) -> list[Concept]:
    """The concepts of the HGR `name` with their thresholds at one of `SENSITIVITIES`.

    Raises HGRError if they have thresholds for the default only.
    """
    if sensitivity == DEFAULT_SENSITIVITY:
        return list(concepts)
    level = list(SENSITIVITIES).index(sensitivity)
    if not all(concept.levels for concept in concepts):
        raise HGRError(
            f'{name} has no thresholds for a sensitivity other than "normal": choose "normal", or train the HGR again.'
        )
    return [replace(concept, threshold=concept.levels[level]) for concept in concepts]


def calibrated(logits: Tensor, concepts: Sequence[Concept]) -> Tensor:
    """Probabilities (..., K) from raw scores (..., K), by each concept's calibration."""
    scale, bias = (torch.tensor([getattr(c, name) for c in concepts]).to(logits) for name in ("scale", "bias"))
    return (scale * logits + bias).sigmoid()


def is_given(features: Tensor) -> Tensor:
    """(B,) bool: which rows of features (B, T, D) hold a prompt.

    A row of zeros (ComfyUI's ConditioningZeroOut) holds none: no encoder made it, and no concept is in it.
    """
    return features.flatten(1).any(1)


@dataclass(frozen=True)
class Encoder:
    """The text encoder that an HGR was trained on.

    family: a name for people.
    chunk: tokens per chunk if long prompts are split into chunks; 0 if they are one sequence.
    fixed_start: whether the first token's features are the same for every prompt (causal encoders).
    empty (T, D), empty_pooled (P,) or None: its output for the empty prompt, which is its fingerprint.
    """

    family: str
    chunk: int
    fixed_start: bool
    empty: Tensor
    empty_pooled: Tensor | None = None

    @property
    def prompt(self) -> Prompt:
        """The empty prompt, one row."""
        return Prompt(self.empty[None], None if self.empty_pooled is None else self.empty_pooled[None])

    @property
    def part(self) -> int:
        """How many tokens an HGR reads at once, in training and after: a chunk, unless chunks are long."""
        return self.chunk if 0 < self.chunk <= MAX_TOKENS else MAX_TOKENS

    @property
    def first(self) -> Tensor:
        """(D,): the first token of the empty prompt."""
        return self.empty[0]

    @property
    def mean(self) -> Tensor:
        """(D,): the mean over the empty prompt's tokens."""
        return self.empty.mean(0)


@dataclass(frozen=True)
class Probe:
    """Detects concepts in a picture without its prompt: one logistic head per concept, on the denoiser's features at a
    few noise levels with the empty prompt. See `hgr.detection.probe`.

    percents (P,): the points in sampling, in [0, 1].
    mean, std (P, F): of the features, which are a fingerprint of the denoiser.
    weight (K, P, F), bias (K,): `logit_k = sum_pf weight_kpf features_pf + bias_k`.
    heads: the calibration of the probe's logits, by concept.
    hed: the calibration of the HED of pictures with their prompts, by concept.
    training: how the probe was made.
    """

    percents: tuple[float, ...]
    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    heads: tuple[Concept, ...]
    hed: tuple[Concept, ...]
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What an HGR reads in B prompts of T tokens, each in N chunks or N parts of `MAX_TOKENS`, the last one padded.

    encoding: the output of the network's `encode` for (B * N, ceil(T / N)) tokens.
    gates: (B, N, K) in [0, 1], calibrated.
    length: T, which leaves that padding out.
    """

    encoding: Any
    gates: Tensor
    length: int

    @property
    def prompt_gates(self) -> Tensor:
        """(B, K): the highest gate over a prompt's chunks."""
        return self.gates.amax(1)


# Tokens that a network sees at once, in training and after, for encoders without short chunks. A gate trained on this
# many, most of them padding, does not open if twice as many are padding: longer sequences are read in parts.
MAX_TOKENS = 128
# Relative distance from the fingerprint from which an encoder counts as different; fine-tuned encoders are far below.
FINGERPRINT_TOLERANCE = 0.5
# Mean squared standard score from which features count as another encoder's (1 for the training data).
SCORE_TOLERANCE = 25.0


@dataclass
class HGR:
    """The redirector as users hold it.

    training: how it was made, from the file's metadata.
    probe: detects concepts in pictures, if one was trained.
    """

    network: HGRNetwork | HGRUnion
    concepts: list[Concept]
    encoder: Encoder
    training: dict[str, Any] = field(default_factory=dict)
    name: str = "this HGR"
    probe: Probe | None = None

    @property
    def ids(self) -> list[str]:
        return [concept.id for concept in self.concepts]

    @property
    def device(self) -> torch.device:
        return self.network.mean.device

    @property
    def thresholds(self) -> Tensor:
        return torch.tensor([concept.threshold for concept in self.concepts], device=self.device)

    def at(self, sensitivity: str) -> HGR:
        """This HGR with the thresholds of one of `SENSITIVITIES` for prompts; everything else is shared.

        Raises HGRError if it has thresholds for the default only.
        """
        return replace(self, concepts=at_sensitivity(self.concepts, sensitivity, self.name))

    def only(self, ids: Collection[str]) -> HGR:
        """This HGR with all other concepts muted, in prompts and in pictures; everything else is shared."""

        def muted(concepts: Sequence[Concept]) -> list[Concept]:
            return [c if c.id in ids else replace(c, scale=0.0, bias=_MUTED) for c in concepts]

        probe = self.probe
        if probe is not None:
            probe = replace(probe, heads=tuple(muted(probe.heads)), hed=tuple(muted(probe.hed)))
        return replace(self, concepts=muted(self.concepts), probe=probe)

    def check(self, features: Tensor, pooled: Tensor | None, mask: Tensor | None = None) -> None:
        """Raise EncoderMismatch unless features (B, T, D) and pooled (B, P) come from the encoder this HGR was made
        for, and HGRError for features that are not finite. mask (B, T): as for `read`; padding says nothing about the
        encoder."""
        net, name, family = self.network, self.name, self.encoder.family
        if features.dim() != 3 or features.shape[-1] != net.text_dim:
            raise EncoderMismatch(
                f"{name} was made for {family} with text features of width {net.text_dim}, but this prompt has "
                f"features of shape {tuple(features.shape)}: load the HGR that was trained for this model."
            )
        if net.pooled_dim and (pooled is None or pooled.shape[-1] != net.pooled_dim):
            got = "none" if pooled is None else f"width {pooled.shape[-1]}"
            raise EncoderMismatch(
                f"{name} was made for {family} with a pooled output of width {net.pooled_dim}, but this prompt "
                f"has {got}: load the HGR that was trained for this model."
            )
        x = features.float()
        if not torch.isfinite(x).all():
            raise HGRError("the prompt's text features hold NaN or infinity: the text encoder is broken, not the HGR.")
        given = is_given(x)
        tokens = x[given[:, None] & (torch.ones_like(x[..., 0]) if mask is None else mask.to(x.device)).bool()]
        if not len(tokens):
            return
        if self.encoder.fixed_start:
            first = self.encoder.first.to(x)
            distance = (x[given, 0] - first).norm(dim=-1).amax().item() / first.norm().item()
            other = not distance <= FINGERPRINT_TOLERANCE  # NaN is another encoder's
        else:
            distance = ((tokens - net.mean.to(x)) / net.std.to(x)).square().mean().item()
            other = not distance <= SCORE_TOLERANCE
        if other:
            raise EncoderMismatch(
                f"{name} was made for {family}, but this prompt comes from another text encoder (distance from "
                f"its fingerprint {distance:.2f}): load the HGR that was trained for this model. A conditioning that "
                "was averaged with another one, or summed from several regions, can look like this too."
            )

    def read(self, features: Tensor, pooled: Tensor | None = None, mask: Tensor | None = None) -> Reading:
        """Read prompts on the network's device: features (B, T, D), pooled (B, P) or None, mask (B, T) bool or None."""
        self.check(features, pooled, mask)
        weight = self.network.mean
        length = features.shape[1]
        chunk = self.part_length(length)
        n = math.ceil(length / chunk)
        x = features.to(weight)
        if over := n * chunk - length:
            mask = F.pad(torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask.bool(), (0, over))
            x = F.pad(x, (0, 0, 0, over))
        x = rearrange(x, "b (n t) d -> (b n) t d", n=n)
        if self.network.pooled_dim and pooled is not None:
            pooled = repeat(pooled.to(weight).expand(len(features), -1), "b p -> (b n) p", n=n)
        padding = None  # (B, N): parts that are only padding
        if mask is not None:
            mask = mask.bool().to(weight.device).expand(len(features), -1)
            padding = ~rearrange(mask, "b (n t) -> b n t", n=n).any(-1) & mask.any(-1, keepdim=True)
            mask = rearrange(mask, "b (n t) -> (b n) t", n=n) | rearrange(padding, "b n -> (b n) 1")
        encoding: Any = self.network.encode(x, pooled, mask)
        logits = self.network.gate_logits(encoding)
        gates = calibrated(logits, self.concepts)
        # a NaN is below every threshold, and so is minus infinity, of no token at all: they would pass as clean
        if not (logits.isfinite() & gates.isfinite()).all():
            raise HGRError(
                f"{self.name} gives NaN for this prompt, so it cannot tell whether the prompt is harmful: the file is "
                "damaged, or the prompt has no token at all."
            )
        gates = rearrange(gates, "(b n) k -> b n k", n=n)
        if padding is not None:
            gates = gates.masked_fill(padding[..., None], 0.0)
        gates = gates.masked_fill(~is_given(features).to(gates.device)[:, None, None], 0.0)
        return Reading(encoding, gates, length)

    def part_length(self, length: int) -> int:
        """How many of a prompt's tokens the network sees at once."""
        return min(length, self.encoder.part)

    def with_start(self, delta: Tensor, parts: int) -> Tensor:
        """Displacements (B * N, t, D), changed in place: the token that all prompts of an encoder start with does not
        move, as twins have the same. Every chunk starts with it, but of N = `parts` of one sequence only the first.
        """
        if self.encoder.fixed_start:
            delta[:: 1 if self.encoder.chunk == self.encoder.part else parts, 0] = 0.0
        return delta

    def activations(self, reading: Reading, strengths: Tensor) -> Tensor:
        """(B, N, K): `s_k a_k` of each concept in each part. strengths (K,), s: as for `displacement`."""
        return ramp(reading.gates, self.thresholds.to(reading.gates)) * strengths.to(reading.gates)

    def displacement(self, reading: Reading, strengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """`Delta = sum_k s_k a_k D_k` for the features (B, T, D) and for pooled (B, P) or None, with activations a.

        strengths (K,), s: the user's strength of each concept times the global one. Delta is zero in every sample in
        which no concept with a strength above 0 reaches its threshold.

        Raises HGRError if Delta is not finite, and if it is zero though a concept reaches its threshold.
        """
        n = reading.gates.shape[1]
        weights = self.activations(reading, strengths)
        delta, pooled = self.network.displacement(reading.encoding, rearrange(weights, "b n k -> (b n) k"))
        moved = rearrange(delta.flatten(1).any(1), "(b n) -> b n", n=n).any(1)
        delta = rearrange(self.with_start(delta, n), "(b n) t d -> b (n t) d", n=n)[:, : reading.length]
        # The pooled vector belongs to the whole prompt: it moves as in the chunk that moves it furthest.
        if pooled is not None:
            pooled = rearrange(pooled, "(b n) p -> b n p", n=n)
            furthest = pooled.norm(dim=-1).argmax(1)
            pooled = pooled[torch.arange(len(pooled)), furthest]
            moved = moved | pooled.any(1)
        if (weights.flatten(1).any(1) & ~moved).any():
            raise HGRError(
                f"{self.name} finds a concept in this prompt but moves nothing: the file is damaged, so get it or "
                "train it again."
            )
        if not (delta.isfinite().all() and (pooled is None or pooled.isfinite().all())):
            raise HGRError(
                f"{self.name} moves this prompt's text features to NaN or infinity: the file is damaged, so get it or "
                "train it again."
            )
        return delta, pooled
