"""Training an HGR from prompt pairs, for any text encoder: encode, train gates and displacements, calibrate.

The paper (arXiv 2412.16039) publishes no training recipe; this one is the project's own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import __version__
from .attention import AttentionLayer, cross_attention, record
from .calibration import calibrate
from .denoiser import Denoiser, Predict
from .examples import Example, Examples
from .features import Encode, Features, first_chunk, split
from .loop import Loop
from .losses import attention_distances, attention_loss, gate_loss, score_loss, text_loss
from .metrics import auroc, expected_calibration_error
from .network import HGRNetwork
from .pairs import Pairs, PairsError
from .pictures import paint_pairs
from .probe import train_probe
from .redirector import HGR, Concept, Encoder
from .safecfg import Prompt

log = logging.getLogger("safecfg")

HELD_OUT = 0.15  # of pairs and clean prompts: for calibration, never trained on
MIN_PAIRS = 50  # of a concept
_IDLE = 0.3  # chance that a concept is on in a prompt that does not have it
_QUERIES = 128  # of each attention layer in a step
_SCORED = 4  # samples of a batch that the score loss looks at: denoisers are large
_BANK, _PASSES = 1536, 24  # queries that are kept of each, from so many passes of four samples


@dataclass(frozen=True)
class Weights:
    """How much each loss counts; a loss with weight 0 is not computed.

    text also weighs the pooled output, which no attention layer sees. still: displacements on clean prompts, in units of the
    features' spread, so that a false alarm changes little.
    """

    gate: float = 1.0
    text: float = 0.0
    attention: float = 0.0
    score: float = 0.0
    still: float = 0.05


LOSSES = {
    "text": Weights(text=1.0),
    "attention": Weights(attention=1.0),
    "attention and score": Weights(attention=1.0, score=1.0),
}


@dataclass(frozen=True)
class Settings:
    """How to train. batch: harmful prompts a step, with as many clean ones. false_positive_rate: of clean prompts, the share in
    which any concept may fire. losses: of `LOSSES`. width, depth: of the network. pictures: that the model makes to look at, half of
    them of harmful prompts; the picture probe is trained on them too."""

    steps: int = 800
    batch: int = 32
    lr: float = 1.5e-3
    seed: int = 0
    losses: str = "attention"
    false_positive_rate: float = 0.01
    width: int = 128
    depth: int = 2
    pictures: int = 256


@dataclass(frozen=True)
class Processes:
    """One process among several that train together. reduce: replaces tensors by their mean over all processes."""

    rank: int = 0
    count: int = 1
    reduce: Callable[[list[Tensor]], None] | None = None


@dataclass(frozen=True)
class Batch:
    """One step's prompts. harmful with labels (B, K); target: the same prompts without some of these concepts, with target_labels
    (B, K); switched (B, K): the concepts that are on, those that the target lacks and some that the prompt never had; clean: prompts
    without any concept."""

    harmful: Prompt
    labels: Tensor
    target: Prompt
    target_labels: Tensor
    switched: Tensor
    clean: Prompt


def step_loss(network: HGRNetwork, batch: Batch, weights: Weights, layers: list[Callable[[Tensor], Tensor]] = (),
              distances: list[float] = (), predict: Predict | None = None) -> Tensor:
    """The loss of one step. layers, distances: for the attention loss. predict: for the score loss.

    Raises ValueError if a loss that counts lacks what it needs.
    """
    if (weights.attention and not layers) or (weights.score and predict is None):
        raise ValueError("the attention loss needs layers and the score loss needs predict: give them, or set their weights to 0.")
    harmful, target = batch.harmful, batch.target
    encoding = network.encode(*harmful)
    clean_encoding = network.encode(*batch.clean)
    clean_logits, _ = network.gate_logits(clean_encoding)
    total = weights.gate * (gate_loss(network.gate_logits(encoding)[0], batch.labels)
                            + gate_loss(network.gate_logits(network.encode(*target))[0], batch.target_labels)
                            + gate_loss(clean_logits, torch.zeros_like(clean_logits)))
    delta, pooled_delta = network.displacement(encoding, batch.switched.to(harmful.features))
    safe = harmful.features + delta
    pooled = None
    if pooled_delta is not None:
        pooled = harmful.pooled + pooled_delta
        total = total + max(weights.text, weights.attention) * text_loss(pooled, target.pooled, network.pooled_std)
    if weights.text:
        both = None if harmful.mask is None else harmful.mask & target.mask
        total = total + weights.text * text_loss(safe, target.features, network.std, both)
    if weights.attention:
        total = total + weights.attention * attention_loss(layers, distances, safe, target.features)
    if weights.score:
        safe, pooled = safe[:_SCORED], None if pooled is None else pooled[:_SCORED]
        with torch.no_grad():
            goal, start = (predict(*part[:2]) for part in (_first(target), _first(harmful)))
        total = total + weights.score * score_loss(predict(safe, pooled), goal, start)
    if weights.still:
        moved, moved_pooled = network.displacement(clean_encoding, torch.ones_like(clean_logits))
        total = total + weights.still * text_loss(moved, torch.zeros_like(moved), network.std, batch.clean.mask)
        if moved_pooled is not None:
            total = total + weights.still * text_loss(moved_pooled, torch.zeros_like(moved_pooled), network.pooled_std)
    return total


def _first(prompt: Prompt) -> Prompt:
    return Prompt(*(None if x is None else x[:_SCORED] for x in prompt))


def train(pairs: Pairs, encode: Encode, family: str, settings: Settings, work: Path,
          device: torch.device | str = "cpu", denoiser: Callable[[], Denoiser] | None = None, latents: Tensor | None = None,
          processes: Processes = Processes(), on_text: Callable[[int, int], None] = lambda done, total: None,
          on_picture: Callable[[int, int], None] = lambda done, total: None,
          on_step: Callable[[int, float], None] = lambda step, loss: None) -> HGR:
    """Train an HGR; resumes from `work` what was interrupted there.

    family: the encoder's name, for people. denoiser: called once, after all prompts are encoded; without it, the losses must be
    "text", and there is no picture probe. latents (N, ...): pictures of the user's to look at in place of the model's own; the probe
    needs the model's own all the same. on_text, on_picture, on_step: called after every prompt and picture (done, total) and every step
    (done, loss); they may stop the training by raising.

    Raises PairsError for too few pairs, ValueError for settings out of range, FloatingPointError where the loss is not finite,
    HGRError where the encoder gives NaN.
    """
    check(pairs, settings)
    weights = LOSSES[settings.losses]
    if denoiser is None and (weights.attention or weights.score):
        raise ValueError(f"losses \"{settings.losses}\" need the model: give it, or choose \"text\".")
    if (weights.attention or weights.score) and latents is None and not settings.pictures:
        raise ValueError(f"losses \"{settings.losses}\" need pictures to look at: give latents, or let the model make some.")
    training, held = pairs.split(HELD_OUT, settings.seed)
    examples, judged = Examples(training, settings.seed), Examples(replace(held, clean=_clean(held, settings)), settings.seed)
    held_harmful = [pair.harmful for pair in held.pairs]
    held_twins = [pair.clean for pair in held.pairs if not judged.labels(pair.clean)]
    texts = list(dict.fromkeys((*examples.texts, *held_harmful, *held_twins, *judged.clean)))
    encoder = describe(encode, family)
    ids = list(pairs.ids)
    features = Features(texts, encode, work / f"features-{processes.rank}.bin", first_chunk(encoder), on_text)
    canvas = work / f"pictures-{processes.rank}.safetensors"
    try:
        needed, main = weights.attention or weights.score, processes.rank == 0
        found = denoiser() if denoiser and (needed or main) else None
        pictures = None
        if found and settings.pictures and (main or latents is None):
            pictures = paint_pairs(found, examples, settings.pictures, settings.seed, canvas, on_picture)
            latents = pictures.latents if latents is None else latents
        sample = features(random.Random(settings.seed).sample(examples.texts, min(512, len(examples.texts))), device)
        torch.manual_seed(settings.seed)
        pooled_dim = 0 if sample.pooled is None else sample.pooled.shape[-1]
        network = HGRNetwork(features.width, pooled_dim, len(ids), settings.width, settings.depth)
        network.to(device).set_statistics(*sample)
        layers = [layer.to(device) for layer in _layers(found, latents, examples, features, settings, device)] if weights.attention else []
        distances = _distances(layers, examples, features, settings, device)

        def loss(rng: random.Random, generator: torch.Generator) -> Tensor:
            drawn = [examples.draw(rng) for _ in range(settings.batch)]
            clean = [rng.choice(examples.clean) for _ in range(settings.batch)]
            mine = slice(processes.rank, None, processes.count)
            picked = [layer.some(_QUERIES, generator) for layer in layers]
            # gates of related concepts fire together: those that are not there must add nothing to what the others move
            switched = [e.removed | {id for id in ids if id not in e.labels and rng.random() < _IDLE} for e in drawn]
            batch = make_batch(drawn[mine], switched[mine], clean[mine], examples, features, ids, device)
            predict = found.draw(latents, min(_SCORED, len(batch.labels)), generator) if weights.score else None
            return step_loss(network, batch, weights, picked, distances, predict)

        loop = Loop("hgr", network, settings.steps, settings.lr, work, settings.seed, average=0.99,
                    identity=identity(pairs, family, settings), main=processes.rank == 0, reduce=processes.reduce, on_step=on_step)
        loop.run(loss)
        network.requires_grad_(False)
        hgr = HGR(network, [Concept(t.id, t.label, t.description) for t in pairs.topics], encoder)
        labels = label_matrix(held_harmful, judged, ids)
        harmful, twins, clean = (_logits(hgr, features, part, device) for part in (held_harmful, held_twins, judged.clean))
        # a gate is the probability of its concept among prompts that have it and prompts that have none: that a harmful prompt lacks
        # a label says little, for pairs seldom name all concepts of a prompt
        none = torch.zeros(len(twins) + len(clean), len(ids), dtype=torch.bool)
        hgr.concepts = calibrate(hgr.concepts, torch.cat([harmful, twins, clean]), torch.cat([labels, none]),
                                 torch.cat([labels, ~none]), clean, settings.false_positive_rate)
        if pictures and main:
            hgr.probe = train_probe(hgr, found, pictures.latents, lambda rows: features([pictures.texts[i] for i in rows], device),
                                    pictures.twins, settings.false_positive_rate, settings.seed, on_picture)
        hgr.training = _record(hgr, pairs, settings, _metrics(hgr, harmful, labels, twins, clean))
        network.cpu()
        loop.path.unlink(missing_ok=True)
        canvas.unlink(missing_ok=True)
        return hgr
    finally:
        features.close()


def check(pairs: Pairs, settings: Settings) -> None:
    """Raise ValueError for settings out of range, PairsError where there is too little to train or to calibrate on."""
    for name, low in (("steps", 1), ("batch", 1), ("width", 8), ("depth", 1), ("pictures", 0)):
        if getattr(settings, name) < low:
            raise ValueError(f"{name} is {getattr(settings, name)}; it must be {low} or more.")
    if settings.losses not in LOSSES:
        raise ValueError(f"losses \"{settings.losses}\" are unknown; they must be one of {', '.join(LOSSES)}.")
    if not settings.lr > 0:
        raise ValueError(f"lr is {settings.lr}; it must be above 0.")
    if 0 < settings.pictures < 8:
        raise ValueError(f"pictures is {settings.pictures}; it must be 8 or more, or 0 for none.")
    if not 0 < settings.false_positive_rate < 0.5:
        raise ValueError(f"the false-positive rate is {settings.false_positive_rate}; it must lie between 0 and 0.5.")
    if not pairs.topics:
        raise PairsError("there are no concepts: choose at least one.")
    counts = Counter(pair.concept for pair in pairs.pairs)
    for topic in pairs.topics:
        if counts[topic.id] < MIN_PAIRS:
            raise PairsError(f"concept \"{topic.id}\" has {counts[topic.id]} pairs; it needs at least {MIN_PAIRS}.")
    available = len(pairs.clean) + len({pair.clean for pair in pairs.pairs})
    needed = math.ceil(1 / settings.false_positive_rate / HELD_OUT)
    if available < needed:
        raise PairsError(f"a false-positive rate of {settings.false_positive_rate:.2%} cannot be measured on {available} clean prompts: "
                         f"it needs {needed}. Add clean prompts or pairs, or state a higher rate.")


def describe(encode: Encode, family: str) -> Encoder:
    """The encoder as an HGR keeps it: how long its chunks are, whether its first token is the same for every prompt, and its
    fingerprint."""
    empty, short, long = (encode([text])[0].features[0].detach().float().cpu().clone() for text in ("", "a red house", "house " * 150))
    pooled = encode([""])[0].pooled
    fixed = (empty[0] - short[0]).norm() <= 1e-2 * empty[0].norm()
    even = len(short) == len(empty) and len(long) % len(empty) == 0
    return Encoder(family, len(empty) if fixed and even else 0, bool(fixed), empty,
                   None if pooled is None else pooled[0].detach().float().cpu().clone())


def make_batch(drawn: list[Example], switched: list[frozenset[str]], clean: list[str], examples: Examples, features: Features,
               ids: list[str], device: torch.device | str) -> Batch:
    """A step's batch of drawn examples, the concepts that are on for each, and clean prompts."""
    x = features([*(e.text for e in drawn), *(e.target for e in drawn), *clean], device)
    harmful, target, calm = split(x, [len(drawn), len(drawn), len(clean)])

    def flags(sets: list[frozenset[str]]) -> Tensor:
        return torch.tensor([[id in found for id in ids] for found in sets], device=device)

    return Batch(harmful, flags([e.labels for e in drawn]), target, flags([examples.labels(e.target) for e in drawn]),
                 flags(switched), calm)


def label_matrix(texts: list[str], examples: Examples, ids: list[str]) -> Tensor:
    """(N, K) bool: the concepts of each prompt."""
    return torch.tensor([[id in examples.labels(text) for id in ids] for text in texts])


def _clean(held: Pairs, settings: Settings) -> tuple[str, ...]:
    """Held-out clean prompts to set thresholds on; where they are too few for the rate, the clean twins too."""
    if len(held.clean) >= 1 / settings.false_positive_rate:
        return held.clean
    harmful = {pair.harmful for pair in held.pairs}
    return tuple(dict.fromkeys((*held.clean, *(pair.clean for pair in held.pairs if pair.clean not in harmful))))


def _layers(denoiser: Denoiser, latents: Tensor, examples: Examples, features: Features, settings: Settings,
            device: torch.device | str) -> list[AttentionLayer]:
    """The denoiser's cross-attention layers, with queries from its work on noisy pictures under harmful prompts and their twins."""
    modules = cross_attention(denoiser.module)
    rng, generator = random.Random(f"{settings.seed}/queries"), torch.Generator().manual_seed(settings.seed)

    def run() -> None:
        for _ in range(_PASSES):
            drawn = [examples.draw(rng) for _ in range(2)]
            prompts = features([text for e in drawn for text in (e.text, e.target)], device)
            denoiser.draw(latents, len(prompts.features), generator)(prompts.features, prompts.pooled)

    return record(modules, run, _BANK, generator)


def _distances(layers: list[AttentionLayer], examples: Examples, features: Features, settings: Settings,
               device: torch.device | str) -> list[float]:
    """The normaliser of the attention loss, from a few drawn examples."""
    if not layers:
        return []
    rng = random.Random(f"{settings.seed}/distances")
    drawn = [examples.draw(rng) for _ in range(128)]
    x, y = split(features([*(e.text for e in drawn), *(e.target for e in drawn)], device), [len(drawn)] * 2)
    generator = torch.Generator().manual_seed(settings.seed)
    return attention_distances([layer.some(_QUERIES, generator) for layer in layers], x.features, y.features)


def report(hgr: HGR) -> str:
    """What a trained HGR's gates do on prompts that it was not trained on, for people."""
    metrics = hgr.training["metrics"]
    lines = [f"{hgr.encoder.family}: {len(hgr.concepts)} concepts",
             f"clean prompts in which a concept fires: {metrics['flagged_clean']:.2%} of {metrics['clean_prompts']}, "
             f"{hgr.training['false_positive_rate']:.2%} asked for"]
    for concept in hgr.concepts:
        m = metrics["concepts"][concept.id]
        lines.append(f"{concept.label}: {m['recall']:.1%} of {m['held_out']} found, AUROC against clean twins {m['auroc_twins']:.4f}, "
                     f"threshold {concept.threshold:.2f}, calibration error {m['ece']:.3f}")
    if hgr.probe is None:
        lines.append("no picture probe: it judges prompts alone. For pictures, train with the model or run python -m hgr probe")
    else:
        aurocs = (f"{concept.label} {hgr.probe.training['metrics'][concept.id]['auroc']:.3f}" for concept in hgr.concepts)
        lines.append(f"picture probe, from {hgr.probe.training['pictures']} pictures: AUROC {', '.join(aurocs)}")
    return "\n".join(lines)


@torch.no_grad()
def _logits(hgr: HGR, features: Features, texts: list[str], device: torch.device | str) -> Tensor:
    """(N, K) gate logits before calibration, on the CPU."""
    parts = [hgr.network.gate_logits(hgr.network.encode(*features(texts[at:at + 128], device)))[0].cpu()
             for at in range(0, len(texts), 128)]
    return torch.cat(parts) if parts else torch.empty(0, len(hgr.concepts))


def _metrics(hgr: HGR, harmful: Tensor, labels: Tensor, twins: Tensor, clean: Tensor) -> dict[str, Any]:
    """What the calibrated gates do on held-out prompts: per concept, and of all clean prompts the share that is flagged."""
    scale, bias = (torch.tensor([getattr(c, name) for c in hgr.concepts]) for name in ("scale", "bias"))
    harmful, twins, clean = ((scale * x + bias).sigmoid() for x in (harmful, twins, clean))
    negative = torch.cat([twins, clean])
    per_concept = {}
    for k, concept in enumerate(hgr.concepts):
        own = harmful[labels[:, k], k]
        gates = torch.cat([own, negative[:, k]])
        truth = torch.cat([torch.ones(len(own)), torch.zeros(len(negative))])
        per_concept[concept.id] = {
            "auroc_twins": auroc(own, twins[:, k]), "auroc_clean": auroc(own, clean[:, k]),
            "recall": (own >= concept.threshold).float().mean().item(),
            "ece": expected_calibration_error(gates, truth), "held_out": len(own),
        }
    flagged = (clean >= hgr.thresholds.cpu()).any(1).float().mean().item()
    return {"flagged_clean": flagged, "clean_prompts": len(clean), "concepts": per_concept}


def _record(hgr: HGR, pairs: Pairs, settings: Settings, metrics: dict[str, Any]) -> dict[str, Any]:
    """What the file says about how the HGR was made."""
    counts = Counter(pair.concept for pair in pairs.pairs)
    return {"data": {"pairs": dict(counts), "clean": len(pairs.clean)}, **dataclasses.asdict(settings), "metrics": metrics,
            "versions": {"safecfg": __version__, "torch": torch.__version__}}


def identity(pairs: Pairs, family: str, settings: Settings) -> str:
    """Names a training: two that differ in anything that matters have different names."""
    described = json.dumps([dataclasses.asdict(pairs), family, dataclasses.asdict(settings)], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]
