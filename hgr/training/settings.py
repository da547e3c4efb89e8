"""The trainers' settings. The command line makes its options from them and the nodes take their defaults from here, so
this file imports no torch."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ..data.pairs import Pairs
from ..data.textfile import DataError

HGR_STAGE, LORA_STAGE = "hgr", "lora"  # the names of their checkpoints
HELD_OUT = 0.15  # share of pairs and clean prompts kept for calibration and never trained on
MIN_PAIRS = 50  # per concept
# Percent. A lower rate cannot be measured, and may be a share that was meant for a percentage.
MIN_RATE, MAX_RATE = 0.1, 50.0
MIN_PICTURES = 8  # fewer teach nothing
EVIDENCE = ("prompt", "picture", "both")


@dataclass(frozen=True)
class Weights:
    """How much each loss counts; a loss with weight 0 is not computed.

    text: also applies to the pooled output, which no attention layer sees.
    still: displacements on clean prompts, in units of the features' spread, so that a false alarm changes little.
    """

    gate: float = 1.0
    text: float = 0.0
    attention: float = 0.0
    score: float = 0.0
    still: float = 0.05

    @property
    def needs_denoiser(self) -> bool:
        return bool(self.attention or self.score)


LOSSES = {
    "text": Weights(text=1.0),
    "attention": Weights(attention=1.0),
    "attention and score": Weights(attention=1.0, score=1.0),
}


def _setting(
    default: Any, help: str, *, low: float | None = None, choices: tuple[str, ...] = (), unit: str = ""
) -> Any:
    """A dataclass field with its help text and its range. unit: what its value stands for in the help."""
    about = {"help": help, "low": low, "choices": choices, "unit": unit or ("N" if isinstance(default, int) else "X")}
    return dataclasses.field(default=default, metadata=about)


@dataclass(frozen=True)
class HGRSettings:
    """How to train an HGR; each field has its help. false_positive_rate is in percent, `rate` the same as a share."""

    steps: int = _setting(800, "training steps", low=1)
    batch_size: int = _setting(
        32, "harmful prompts per step in each process, with as many twins and clean prompts", low=1
    )
    learning_rate: float = _setting(1.5e-3, "peak learning rate")
    seed: int = _setting(0, "seed of everything random")
    losses: str = _setting("attention", '"text" needs only the text encoder', choices=tuple(LOSSES))
    false_positive_rate: float = _setting(1.0, "percent of clean prompts in which any concept may fire", unit="PERCENT")
    width: int = _setting(128, "width of the HGR's network", low=8)
    depth: int = _setting(2, "depth of the HGR's network", low=1)
    pictures: int = _setting(
        256,
        "pictures that the model makes to learn from, half of harmful prompts; they also train the "
        "picture probe. 0 with latents of your own: no probe",
        low=0,
    )

    @property
    def rate(self) -> float:
        return as_share(self.false_positive_rate)

    @property
    def weights(self) -> Weights:
        return LOSSES[self.losses]

    def check(self) -> None:
        """Raise ValueError for a setting out of range."""
        _check_ranges(self)
        if 0 < self.pictures < MIN_PICTURES:
            raise ValueError(f"pictures is {self.pictures}; it must be {MIN_PICTURES} or more, or 0 for none.")
        check_rate(self.false_positive_rate)


@dataclass(frozen=True)
class Quality:
    """What trains an HGR for somebody who does not want to choose. pairs: of each concept, at most. clean: clean
    prompts, at most."""

    settings: HGRSettings
    pairs: int | None = None
    clean: int | None = None

    @property
    def needs_denoiser(self) -> bool:
        return self.settings.weights.needs_denoiser


AUTO = "auto"
QUALITIES = {  # by rank
    # for processors, on which encoding prompts is most of a training; with so few held-out clean prompts, thresholds
    # for a rate of 1 % are so careful that they find little
    "draft": Quality(HGRSettings(losses="text", pictures=0, steps=400, false_positive_rate=2.0), pairs=400, clean=1500),
    "quick": Quality(HGRSettings(losses="text", pictures=0)),
    "full": Quality(HGRSettings(losses="attention", pictures=16)),
    "full + pictures": Quality(HGRSettings(losses="attention", pictures=256)),
}


@dataclass(frozen=True)
class LoRASettings:
    """How to fine-tune a model into a safe LoRA; each field has its help."""

    steps: int = _setting(400, "training steps", low=1)
    batch_size: int = _setting(8, "examples per step in each process, half of them harmful", low=1)
    learning_rate: float = _setting(1e-3, "peak learning rate")
    rank: int = _setting(16, "rank of the LoRA", low=1)
    seed: int = _setting(0, "seed of everything random")
    evidence: str = _setting(
        "both",
        'what decides how harmful an example is; "picture" and "both" need an HGR with a picture probe',
        choices=EVIDENCE,
    )
    pictures: int = _setting(400, "pictures that the model makes of the prompts if you give none", low=MIN_PICTURES)

    def check(self) -> None:
        """Raise ValueError for a setting out of range."""
        _check_ranges(self)


def check_rate(percent: float) -> None:
    """Raise ValueError for a false-positive rate out of range."""
    if not MIN_RATE <= percent < MAX_RATE:
        raise ValueError(f"false_positive_rate is {percent} %; it must be {MIN_RATE:g} or more and below {MAX_RATE:g}.")


def as_share(percent: float) -> float:
    return percent / 100


def check_pairs(pairs: Pairs, settings: HGRSettings) -> None:
    """Raise ValueError for settings out of range, DataError for too little data to train or calibrate on."""
    settings.check()
    if not pairs.topics:
        raise DataError("there are no concepts: choose at least one.")
    counts = Counter(pair.concept for pair in pairs.pairs)
    for topic in pairs.topics:
        if counts[topic.id] < MIN_PAIRS:
            raise DataError(f'concept "{topic.id}" has {counts[topic.id]} pairs; it needs at least {MIN_PAIRS}.')
    available = len(pairs.clean) + len({pair.clean for pair in pairs.pairs})
    needed = math.ceil(1 / settings.rate / HELD_OUT)
    if available < needed:
        raise DataError(
            f"a false-positive rate of {settings.rate:.2%} cannot be measured on {available} clean prompts: "
            f"it needs {needed}. Add clean prompts or pairs, or state a higher rate."
        )


def _check_ranges(settings: HGRSettings | LoRASettings) -> None:
    for field in dataclasses.fields(settings):
        value, low, choices = getattr(settings, field.name), field.metadata["low"], field.metadata["choices"]
        if low is not None and value < low:
            raise ValueError(f"{field.name} is {value}; it must be {low} or more.")
        if choices and value not in choices:
            raise ValueError(f'{field.name} "{value}" is unknown; it must be one of {", ".join(choices)}.')
    if not 0 < settings.learning_rate < math.inf:
        raise ValueError(f"learning_rate is {settings.learning_rate}; it must be a number above 0.")
