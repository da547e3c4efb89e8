"""The HGR for a model: the file in models/hgr that fits its text encoder and has the concepts that are asked for, or a
new one, which is trained now and kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from statistics import fmean
from typing import Any

import comfy.model_patcher
import comfy.sd
import folder_paths

from ...core import file
from ...core.errors import HGRError
from ...core.excerpt import excerpt
from ...core.hgr import HGR, MAX_TOKENS
from ...core.prompt import Prompt
from ...data import library
from ...data.pairs import Topic
from ...data.sources import gather
from ...training.attention import cross_attention
from ...training.encoded_prompts import encoder_fingerprint
from ...training.hgr_report import hgr_report
from ...training.settings import AUTO, QUALITIES
from . import files, runs
from .prompts import encoder_family, encoder_of
from .train import train_for_clip

log = logging.getLogger("safecfg")

_LIBRARY = "library"  # in a file's record of its training: the library's fingerprint, if it was made here
_SAME = 0.02  # relative distance of the empty prompt's features up to which an encoder is the very same
_SILENT = -30.0  # the bias of a gate that never opens


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
    clip: comfy.sd.CLIP,
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
        "quick".

    Raises DataError for concepts that cannot be learnt, ValueError for a quality that the model does not allow.
    """
    pairs = gather(concepts, (), owns)
    quality = _quality(quality, model)
    empty = encoder_of(clip)([""])[0]
    found, reasons = _search(empty, pairs.topics, set(concepts), quality=quality)
    if found is not None:
        return Found(_only(found, pairs.ids), found.name, f"{found.name} fits this text encoder and has the concepts")
    why = reasons[-1] if reasons else "no file in models/hgr fits this text encoder and has the concepts"
    log.info("HGR for this Model: %s. One is trained now.", why)
    runs.say(f"{why}: one is trained now, once")
    hgr, _ = train_for_clip(clip, pairs, QUALITIES[quality], model=None if quality == "quick" else model)
    hgr.training[_LIBRARY] = library.version()
    name = _name(clip, pairs.topics, quality=quality, prefix=prefix)
    try:
        saved = files.save_hgr(hgr, name)
    except (OSError, HGRError) as error:  # hours of work must not be lost to a folder that cannot be written
        log.warning("The HGR works now but is not kept, so it is trained again after a restart: %s", error)
        return Found(hgr, "", f"{why}, so one was trained. IT COULD NOT BE KEPT: {error}")
    hgr.name = saved
    return Found(hgr, saved, f"{why}, so one was trained and is kept as {saved}")


def _quality(asked: str, model: comfy.model_patcher.ModelPatcher | None) -> str:
    if asked == "quick" or (asked == AUTO and model is None):
        return "quick"
    if model is None:
        raise ValueError(f'quality "{asked}" learns from the model: wire it in, or choose "quick" or "{AUTO}".')
    try:
        cross_attention(model.model.diffusion_model)
    except ValueError:
        if asked != AUTO:
            raise
        return "quick"  # SD 3, Flux and others have no such layers
    return "full" if asked == AUTO else asked


def _search(
    empty: Prompt, topics: Sequence[Topic], built_in: set[str], *, quality: str
) -> tuple[HGR | None, list[str]]:
    """The best file, and why those that nearly fit do not. empty: the encoder's output for the empty prompt."""
    fitting: list[tuple[tuple, HGR]] = []
    reasons: list[str] = []
    for name in folder_paths.get_filename_list("hgr"):
        try:
            path = files.find_hgr(name)
            header = file.describe(path)
            if header["text_dim"] != empty.features.shape[-1] or not _has(header, topics, built_in):
                continue
            hgr = file.load(path)
        except (HGRError, FileNotFoundError) as error:
            log.warning("HGR for this Model passes over a file: %s", error)
            continue
        hgr.name = name
        if not _same_encoder(hgr, empty):
            reasons.append(f"{name} has the concepts, but is for another text encoder")
            continue
        made_of = hgr.training.get(_LIBRARY)
        if made_of not in (None, library.version()):
            reasons.append(f"{name} was made from another version of the library")
        elif _rank(hgr) < list(QUALITIES).index(quality):
            reasons.append(f'{name} is of lower quality than "{quality}"')
        else:
            fitting.append(((_rank(hgr), _recall(hgr), files.stamp_of(path)), hgr))
    return (max(fitting, key=lambda each: each[0])[1] if fitting else None), reasons


def _has(header: dict[str, Any], topics: Sequence[Topic], built_in: set[str]) -> bool:
    """Whether a file has all the concepts; one of the user's own counts only if it stands for the same words."""
    about = {concept["id"]: concept["description"] for concept in header["concepts"]}
    return all(topic.id in about and (topic.id in built_in or about[topic.id] == topic.description) for topic in topics)


def _same_encoder(hgr: HGR, empty: Prompt) -> bool:
    mine, x = hgr.encoder.empty, empty.features[0, : len(hgr.encoder.empty)].float().cpu()
    return mine.shape == x.shape and (mine - x).norm().item() <= _SAME * mine.norm().item()


def _rank(hgr: HGR) -> int:
    """Which of `QUALITIES` an HGR has."""
    if hgr.probe is not None:
        return 2
    return int(hgr.training.get("losses", "text") != "text")


def _recall(hgr: HGR) -> float:
    """Mean recall on held-out prompts, as far as the file says."""
    try:
        return fmean(found["recall"] for found in hgr.training["metrics"]["concepts"].values())
    except (AttributeError, KeyError, TypeError, ValueError):  # a file says what it likes of its training
        return 0.0


def _only(hgr: HGR, ids: Sequence[str]) -> HGR:
    """The HGR with all other concepts silent."""
    return replace(hgr, concepts=[c if c.id in ids else replace(c, scale=0.0, bias=_SILENT) for c in hgr.concepts])


def _name(clip: comfy.sd.CLIP, topics: Sequence[Topic], *, quality: str, prefix: str) -> str:
    """A file name that tells the encoder, the concepts, the quality and the day."""
    encoder = f"{encoder_family(clip)} {encoder_fingerprint(encoder_of(clip), MAX_TOKENS)[:6]}"
    concepts = " ".join(topic.id for topic in topics)
    if len(concepts) > 40:
        concepts = f"{len(topics)} concepts"
    made = f"{quality.replace(' + ', ' ')} {date.today().isoformat()}"
    name = f"{prefix.strip() or 'auto'} {encoder} {concepts} {made}"
    return name if files.name_fault(name) is None else f"auto {excerpt(encoder, 40)} {len(topics)} concepts {made}"
