"""Trains an HGR from prompt pairs, for any text encoder: encode, train gates and displacements, calibrate.

The paper (arXiv 2412.16039) publishes no training recipe; this one is this project's own.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.fingerprint import fingerprint
from ..core.hgr import HGR, Concept
from ..core.network import HGRNetwork
from ..core.progress import SILENT, Progress
from ..core.prompt import Encode
from ..data.examples import Examples
from ..data.pairs import Pairs, concepts_by_text
from .attention import AttentionLayer, cross_attention, record
from .batches import Mixture, draw_step, label_matrix, make_batch
from .calibration import calibrate
from .encoded_prompts import EncodedPrompts, describe_encoder
from .finite import check_finite, numbers
from .hgr_report import gate_metrics, silenced, training_record
from .loop import Loop, Processes
from .losses import SCORED, attention_distances, step_loss
from .pictures import paint_pairs
from .settings import HELD_OUT, HGR_STAGE, HGRSettings, check_pairs
from .train_probe import train_probe
from .work_files import features_file, pictures_file

log = logging.getLogger("safecfg")

_QUERIES = 128  # per attention layer and step
_BANK, _PASSES = 1536, 24  # queries kept of each layer, and the passes of four samples that they come from
_DISTANCES = 128  # examples that the attention loss's unit is measured on
_STATISTICS = 512  # prompts that the features' mean and spread are measured on
_BATCH = 128  # prompts read at once for calibration
_TAGS = 3  # commas from which a prompt counts as a list of tags


def train_hgr(
    pairs: Pairs,
    encode: Encode,
    settings: HGRSettings,
    *,
    family: str,
    work: Path,
    device: torch.device | str = "cpu",
    denoiser: Callable[[], Denoiser] | None = None,
    latents: Tensor | None = None,
    processes: Processes = Processes(),
    progress: Progress = SILENT,
) -> HGR:
    """Train an HGR, or resume an interrupted training from `work`. The caller writes the HGR and then calls
    `work_files.discard`.

    family: the encoder's name, for people.
    denoiser: called once, after all prompts are encoded; without it, the losses must be "text", and there is no picture
    probe.
    latents (N, ...): the user's pictures to learn from instead of the model's own; the probe still needs the model's.
    progress: may stop the training by raising.

    Raises DataError for too few pairs, ValueError for settings out of range, FloatingPointError if the loss, the
    weights or the thresholds are not finite, HGRError if the encoder gives NaN.
    """
    _check(pairs, settings, latents, has_denoiser=denoiser is not None)
    training, held = pairs.split(HELD_OUT, settings.seed)
    examples, held_out = Examples(training, settings.seed), HeldOut.of(held, settings.rate)
    mixture = Mixture(examples, training, settings.seed)
    encoder = describe_encoder(encode, family)
    canvas = pictures_file(work, processes.rank)
    with closing(
        EncodedPrompts(
            [*mixture.texts, *held_out.texts],
            encode,
            features_file(work, processes.rank),
            limit=encoder.part,
            progress=progress,
        )
    ) as encoded:
        # processes other than the first need the denoiser only for the losses
        model = denoiser() if denoiser and (settings.weights.needs_denoiser or processes.main) else None
        pictures = None
        if model and settings.pictures and (processes.main or latents is None):
            pictures = paint_pairs(
                model, examples, canvas, count=settings.pictures, seed=settings.seed, progress=progress
            )
            latents = pictures.latents if latents is None else latents
        network = _new_network(encoded, examples, settings, concepts=len(pairs.ids)).to(device)
        loop = Loop(
            HGR_STAGE,
            network,
            work,
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            seed=settings.seed,
            average=0.99,
            made_for=training_fingerprint(pairs, family, settings),
            processes=processes,
            progress=progress,
        )
        if settings.weights.attention and model:
            progress.phase(f"recording the model's attention in {_PASSES} passes")
        loop.run(
            _Loss(
                network,
                mixture,
                encoded,
                ids=pairs.ids,
                settings=settings,
                processes=processes,
                denoiser=model,
                latents=latents,
            )
        )
        hgr = HGR(network.requires_grad_(False), [Concept(t.id, t.label, t.description) for t in pairs.topics], encoder)
        progress.phase(f"calibrating on {len(held_out.texts):,} held-out prompts")
        metrics = _calibrate(hgr, encoded, held_out, rate=settings.rate)
        if pictures and model and processes.main:
            texts = pictures.texts
            hgr.probe = train_probe(
                hgr,
                model,
                pictures,
                prompts=lambda rows: encoded([texts[i] for i in rows], device),
                rate=settings.rate,
                seed=settings.seed,
                progress=progress,
            )
        hgr.training = training_record(pairs, settings, metrics)
        if found := silenced(hgr):
            log.error("%s: hardly any harmful prompt reaches the threshold; see the report.", ", ".join(found))
        network.cpu()
    return hgr


def training_fingerprint(pairs: Pairs, family: str, settings: HGRSettings) -> str:
    """Identifies a training: those that differ in anything that matters have different fingerprints."""
    return fingerprint(pairs, family, settings)


def _check(pairs: Pairs, settings: HGRSettings, latents: Tensor | None, *, has_denoiser: bool) -> None:
    check_pairs(pairs, settings)
    if settings.weights.needs_denoiser and not has_denoiser:
        raise ValueError(f'losses "{settings.losses}" need the model: give it, or choose "text".')
    if settings.weights.needs_denoiser and latents is None and not settings.pictures:
        raise ValueError(f'losses "{settings.losses}" need pictures: give latents, or let the model make some.')


@dataclass(frozen=True)
class HeldOut:
    """Prompts that are never trained on: harmful ones with their concepts, clean twins, and the clean prompts that the
    stated false-positive rate is about."""

    harmful: list[str]
    concepts: list[frozenset[str]]
    twins: list[str]
    clean: list[str]

    @classmethod
    def of(cls, held: Pairs, rate: float) -> HeldOut:
        """From held-out pairs. If there are too few clean prompts for the rate, the clean twins count as such too."""
        found = concepts_by_text(held.pairs)
        harmful = list(dict.fromkeys(pair.harmful for pair in held.pairs))
        twins = list(dict.fromkeys(pair.clean for pair in held.pairs if not found[pair.clean]))
        clean = list(held.clean)
        if len(clean) < 1 / rate:
            clean = list(dict.fromkeys((*clean, *twins)))
        return cls(harmful, [found[text] for text in harmful], twins, clean)

    @property
    def texts(self) -> list[str]:
        return [*self.harmful, *self.twins, *self.clean]


def _new_network(encoded: EncodedPrompts, examples: Examples, settings: HGRSettings, *, concepts: int) -> HGRNetwork:
    """An untrained network with the features' mean and standard deviation."""
    count = min(_STATISTICS, len(examples.texts))
    sample = encoded(random.Random(settings.seed).sample(examples.texts, count))
    torch.manual_seed(settings.seed)
    pooled_dim = 0 if sample.pooled is None else sample.pooled.shape[-1]
    network = HGRNetwork(encoded.width, pooled_dim, concepts, width=settings.width, depth=settings.depth)
    network.set_statistics(*sample)
    return network


class _Loss:
    """The loss of one step, for `Loop.run`. denoiser, latents: for the losses that need them."""

    def __init__(
        self,
        network: HGRNetwork,
        mixture: Mixture,
        encoded: EncodedPrompts,
        *,
        ids: tuple[str, ...],
        settings: HGRSettings,
        processes: Processes,
        denoiser: Denoiser | None,
        latents: Tensor | None,
    ):
        self.network, self.mixture, self.encoded, self.ids, self.settings = network, mixture, encoded, ids, settings
        self.examples = mixture.examples
        self.processes, self.denoiser, self.latents = processes, denoiser, latents
        self.device = network.mean.device
        self.layers: list[AttentionLayer] = []
        self.distances: list[float] = []
        if settings.weights.attention and denoiser and latents is not None:
            self.layers = [layer.to(self.device) for layer in self._record_layers(denoiser, latents)]
            self.distances = self._distances()

    def __call__(self, rng: random.Random, generator: torch.Generator) -> Tensor:
        settings = self.settings
        draw = draw_step(self.mixture, self.ids, settings.batch_size, rng=rng)
        layers = [layer.some(_QUERIES, generator) for layer in self.layers]
        mine = draw.part(self.processes.rank, self.processes.count)
        batch = make_batch(mine, self.mixture, self.encoded, ids=self.ids, device=self.device)
        predict = None
        if settings.weights.score and self.denoiser and self.latents is not None:
            predict = self.denoiser.draw(self.latents, min(SCORED, len(batch.labels)), generator)
        return step_loss(
            self.network, batch, settings.weights, layers=layers, distances=self.distances, predict=predict
        )

    def _record_layers(self, denoiser: Denoiser, latents: Tensor) -> list[AttentionLayer]:
        """The denoiser's cross-attention layers, with queries from noisy pictures under harmful prompts and twins."""
        seed = self.settings.seed
        rng, generator = random.Random(f"{seed}/queries"), torch.Generator().manual_seed(seed)

        def run() -> None:
            for _ in range(_PASSES):
                drawn = [self.examples.draw(rng) for _ in range(2)]
                prompts = self.encoded([text for e in drawn for text in (e.text, e.target)], self.device)
                denoiser.draw(latents, len(prompts.features), generator)(prompts.features, prompts.pooled)

        return record(cross_attention(denoiser.module), run, queries=_BANK, generator=generator)

    def _distances(self) -> list[float]:
        """The unit of the attention loss, from a few drawn examples."""
        rng = random.Random(f"{self.settings.seed}/distances")
        drawn = [self.examples.draw(rng) for _ in range(_DISTANCES)]
        texts = [*(e.text for e in drawn), *(e.target for e in drawn)]
        harmful, clean = self.encoded(texts, self.device).split([_DISTANCES] * 2)
        generator = torch.Generator().manual_seed(self.settings.seed)
        return attention_distances(
            [layer.some(_QUERIES, generator) for layer in self.layers], harmful.features, clean.features
        )


def _calibrate(hgr: HGR, encoded: EncodedPrompts, held_out: HeldOut, *, rate: float) -> dict[str, Any]:
    """Give the concepts their calibration and thresholds; returns the gates' metrics on the held-out prompts."""
    harmful, twins, clean = (
        _logits(hgr, encoded, texts) for texts in (held_out.harmful, held_out.twins, held_out.clean)
    )
    labels = label_matrix(held_out.concepts, hgr.ids)
    # a gate is the probability of its concept among prompts that have it and prompts that have none: a missing label
    # on a harmful prompt says little, because pairs seldom name all of a prompt's concepts
    none = torch.zeros(len(twins) + len(clean), len(hgr.ids), dtype=torch.bool)
    hgr.concepts = calibrate(
        hgr.concepts,
        torch.cat([harmful, twins, clean]),
        torch.cat([labels, none]),
        judged=torch.cat([labels, ~none]),
        clean=clean,
        rate=rate,
    )
    check_finite("the thresholds", numbers(hgr.concepts))
    tagged = torch.tensor([text.count(",") >= _TAGS for text in held_out.clean], dtype=torch.bool)
    return gate_metrics(hgr, harmful, labels, twins=twins, clean=clean, tagged=tagged)


@torch.no_grad()
def _logits(hgr: HGR, encoded: EncodedPrompts, texts: list[str]) -> Tensor:
    """(N, K) gate logits before calibration, on the CPU."""
    network: Any = hgr.network
    parts = [
        network.gate_logits(network.encode(*encoded(texts[at : at + _BATCH], hgr.device))).cpu()
        for at in range(0, len(texts), _BATCH)
    ]
    check_finite("the gates of held-out prompts", parts)
    return torch.cat(parts) if parts else torch.empty(0, len(hgr.concepts))
