"""The HGR for a model: the file in models/hgr that fits its text encoder and has the concepts that are asked for, or a
new one, which is trained now and kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date
from statistics import fmean
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import folder_paths

from ...core import file
from ...core.errors import HGRError
from ...core.hgr import HGR, MAX_TOKENS
from ...core.prompt import Prompt
from ...data import library
from ...data.pairs import Topic
from ...data.sources import gather, gather_topics
from ...training.attention import cross_attention
from ...training.encoded_prompts import encoder_fingerprint
from ...training.hgr_report import hgr_report
from ...training.settings import AUTO, QUALITIES
from . import files, runs
from .in_force import check_saving
from .prompts import encoder_family, encoder_of
from .quality import QUALITY, rank, trainings
from .train import train_for_clip

log = logging.getLogger("safecfg")

_LIBRARY = "library"  # in a file's record of its training, if it was made here: the library's fingerprint
# Relative distance of the empty prompt's output up to which an encoder is the very same. Another precision of the same
# weights may be further away, and then has an HGR of its own.
_SAME = 0.05
_TINY = 64 * 2**20  # bytes of a text encoder that a processor trains for in minutes
PREFIX = 30  # letters of a name's beginning, at most


@dataclass(frozen=True)
class Found:
    """An HGR, the name of its file in models/hgr ("" if it could not be kept), and why it is this one, in words."""

    hgr: HGR
    name: str
    why: str

    @property
    def report(self) -> str:
        """Why, and what the file says of held-out prompts, for people."""
        try:
            return f"{self.why}.\n\n{hgr_report(self.hgr)}"
        except (AttributeError, KeyError, TypeError, ValueError):  # a merged HGR has no metrics of its own
            return f"{self.why}."


def hgr_for_model(
    clip: comfy.sd.CLIP | None,
    model: comfy.model_patcher.ModelPatcher | None,
    *,
    concepts: Sequence[str],
    owns: Sequence[str] = (),
    quality: str = AUTO,
    prefix: str = "auto",
) -> Found:
    """The best HGR in models/hgr for this CLIP with all these concepts, or one that is trained now.

    concepts: ids of the library's categories. owns: lines such as "name: word, word".
    quality: the least that is good enough, of `QUALITIES`; `AUTO` is "full" for a model with cross-attention, otherwise
        "quick"; without a graphics card "draft", unless the text encoder is tiny.
    prefix: what a new file's name begins with, up to `PREFIX` letters.

    Raises DataError for concepts that cannot be learnt, ValueError without a CLIP and for a quality that the model does
    not allow.
    """
    if clip is None:
        raise ValueError("this checkpoint has no text encoder: load one with a CLIP loader and wire it into clip.")
    topics = gather_topics(concepts, owns)
    empty = encoder_of(clip)([""])[0]
    if quality == AUTO and _slow(clip):
        quality = "draft"
    quality = _quality(quality, model, empty.features.shape[-1])
    found, why = _search(empty, topics, set(concepts), quality=quality)
    if found is not None:
        wanted = found.only([topic.id for topic in topics])
        return Found(wanted, found.name, f"{found.name} fits this text encoder and has the concepts")
    check_saving()
    log.info('HGR for this Model: %s. One of quality "%s" is trained now.', why, quality)
    runs.say(f'{why}: one of quality "{quality}" is trained now, once')
    given = QUALITIES[quality]
    pairs = gather(concepts, (), owns, limit=given.pairs).with_clean(given.clean)
    # before the training: nothing may fail or be interrupted between its end and the file
    name = _name(clip, topics, quality=quality, prefix=prefix)
    hgr, _ = train_for_clip(clip, pairs, given.settings, model=model if given.needs_denoiser else None)
    hgr.training |= {_LIBRARY: library.version(), QUALITY: quality}
    try:
        saved = files.save_hgr(hgr, name)
    except (OSError, HGRError) as error:  # hours of work must not be lost to a folder that cannot be written
        log.warning("The HGR works now but is not kept, so it is trained again after a restart: %s", error)
        return Found(hgr, "", f"{why}, so one was trained. IT COULD NOT BE KEPT: {error}")
    hgr = files.load_hgr(saved)  # as every later run has it, in half precision
    return Found(hgr, saved, f"{why}, so one was trained and is kept as {saved}")


def _slow(clip: comfy.sd.CLIP) -> bool:
    """Whether a full training would take hours: a text encoder of real size, and no graphics card."""
    on_processor = comfy.model_management.get_torch_device().type == "cpu"
    return on_processor and clip.patcher.model_size() > _TINY


def _quality(asked: str, model: comfy.model_patcher.ModelPatcher | None, width: int) -> str:
    """width: of the text features, which the model's cross-attention must read as they are."""
    if asked != AUTO and not QUALITIES[asked].needs_denoiser:
        return asked
    if asked == AUTO and model is None:
        return "quick"
    if model is None:
        raise ValueError(f'quality "{asked}" learns from the model: wire it in, or choose "quick" or "{AUTO}".')
    try:
        layers: Any = cross_attention(model.model.diffusion_model)
        if layers[0].to_k.in_features != width:
            raise ValueError(
                f"this model's cross-attention reads features of width {layers[0].to_k.in_features}, and the text "
                f'encoder gives {width}: choose "quick", or wire in the model that belongs to the encoder.'
            )
    except ValueError:
        if asked != AUTO:
            raise
        return "quick"  # SD 3, Flux and others have no such layers, or project the text first
    return "full" if asked == AUTO else asked


def _search(empty: Prompt, topics: Sequence[Topic], built_in: set[str], *, quality: str) -> tuple[HGR | None, str]:
    """The best file; without one, why the file that comes nearest does not do. empty: the encoder's output for the
    empty prompt."""
    ids = {topic.id for topic in topics}
    fitting: list[tuple[tuple, HGR]] = []
    reasons = [(3, "no file in models/hgr fits this text encoder and has the concepts")]
    for name in folder_paths.get_filename_list("hgr"):
        try:
            path = files.find_hgr(name)
            header = file.describe(path)
            if header["text_dim"] != empty.features.shape[-1] or not _has(header, topics, built_in):
                continue
            hgr = files.load_hgr(name)
        except (HGRError, FileNotFoundError) as error:
            log.warning("HGR for this Model passes over a file: %s", error)
            continue
        if (distance := _distance(hgr, empty)) > _SAME:
            reasons.append((2, f"{name} has the concepts, but is for another text encoder (distance {distance:.2f})"))
        elif any(part.get(_LIBRARY, library.version()) != library.version() for part in trainings(hgr)):
            reasons.append((1, f"{name} was made from another version of the library"))
        elif (best := rank(hgr)) < list(QUALITIES).index(quality):
            reasons.append((0, f'{name} is of lower quality than "{quality}"'))
        else:
            fitting.append(((best, _recall(hgr, ids), files.stamp_of(path)), hgr))
    return (max(fitting, key=lambda each: each[0])[1] if fitting else None), min(reasons)[1]


def _has(header: dict[str, Any], topics: Sequence[Topic], built_in: set[str]) -> bool:
    """Whether a file has all the concepts; one of the user's own counts only if it stands for the same words."""
    about = {concept["id"]: concept["description"] for concept in header["concepts"]}
    return all(topic.id in about and (topic.id in built_in or about[topic.id] == topic.description) for topic in topics)


def _distance(hgr: HGR, empty: Prompt) -> float:
    """How far the encoder's empty prompt is from the one that the HGR was made with, relative to it."""
    pairs = [(hgr.encoder.empty, empty.features[0])]
    if hgr.network.pooled_dim:
        if hgr.encoder.empty_pooled is None or empty.pooled is None:
            return math.inf
        pairs.append((hgr.encoder.empty_pooled, empty.pooled[0]))
    if any(mine.shape != x.shape for mine, x in pairs):
        return math.inf
    return max(((mine - x.float().cpu()).norm() / mine.norm()).item() for mine, x in pairs)


def _recall(hgr: HGR, ids: Collection[str]) -> float:
    """Mean recall of these concepts on held-out prompts, as far as the file says."""
    try:
        found = hgr.training["metrics"]["concepts"]
        return fmean(float(found[id]["recall"]) for id in ids)
    except (KeyError, TypeError, ValueError):
        return 0.0


def _name(clip: comfy.sd.CLIP, topics: Sequence[Topic], *, quality: str, prefix: str) -> str:
    """A file name that tells the encoder, the concepts, the quality and the day."""
    encoder = f"{encoder_family(clip)[:16]} {encoder_fingerprint(encoder_of(clip), MAX_TOKENS)[:6]}"
    concepts = " ".join(topic.id for topic in topics)
    if len(concepts) > 20:
        concepts = f"{len(topics)} concepts"
    made = f"{quality.replace(' + ', ' ')} {date.today().isoformat()}"
    return f"{prefix.strip()[:PREFIX] or 'auto'} {encoder} {concepts} {made}"
