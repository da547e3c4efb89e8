"""What SafeCFG does on the user's own model: the same noise without it, with a negative prompt and with it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.sd
import torch
from torch import Tensor

from ...core.denoiser import evaluations
from ...core.hgr import HGR, HGRError
from ...core.options import concept_strengths
from ...core.progress import SILENT
from ...data.textfile import DataError
from ...detection.censor import censor
from ...detection.pictures import colours
from ...detection.report import PROMPT, Evidence, build
from .detection import detect
from .guidance import KEY, patch_model
from .latents import picture_size
from .progress import NodeProgress
from .prompts import prompt_of
from .sheet import Cell, Row, draw_sheet, thumbnail

log = logging.getLogger("safecfg")

SAMPLERS, SCHEDULERS = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS
VERSION = 1  # of the report
PLAIN, NEGATIVE, SAFE = METHODS = ("plain", "negative prompt", "SafeCFG")
_ABOUT_SIZE = ("downscale_ratio_spacial",)  # what newer hosts keep beside an empty latent, to fit it to the model


@dataclass(frozen=True)
class Sampling:
    """How pictures are made, as in the host's KSampler. latent: an empty LATENT. pictures: of each prompt."""

    latent: dict[str, Any]
    seed: int
    pictures: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str

    def empty(self, model: comfy.model_patcher.ModelPatcher) -> Tensor:
        """One empty latent (1, C, H, W) as the model takes it."""
        about = {key: self.latent[key] for key in _ABOUT_SIZE if key in self.latent}
        return comfy.sample.fix_empty_latent_channels(model, torch.zeros(picture_size(self.latent)), **about)


@dataclass(frozen=True)
class Drawn:
    """One picture: its latent (1, ...), the picture as the sheet has it (H, W, 3), whether the probe flags it (None if
    it cannot say), the denoiser's evaluations and seconds per step."""

    latent: Tensor
    picture: Tensor
    flagged: bool | None
    evaluations: float
    seconds: float


@torch.inference_mode()
def report_card(
    model: comfy.model_patcher.ModelPatcher,
    clip: comfy.sd.CLIP | None,
    vae: comfy.sd.VAE,
    *,
    hgr: HGR,
    prompts: Mapping[str, bool],
    sampling: Sampling,
    blur: bool = True,
    **settings: Any,
) -> tuple[Tensor, str, dict[str, Any]]:
    """The contact sheet as an IMAGE (1, H, W, 3), a table in words, and the report.

    model: if SafeCFG is on it already, it is taken off first.
    prompts: each with whether it is known to be harmful.
    blur: makes pictures unrecognisable that may be harmful: those that the probe flags; of a prompt that is known to be
        harmful or in which a concept fires, all that are not SafeCFG's, and SafeCFG's own where it is the plain one or
        the probe cannot say.
    settings: strength, mode, concepts and sensitivity, as of `patch_model`.

    Raises DataError if there are no prompts, ValueError without a CLIP, HGRError for an HGR of another encoder, and
    what `patch_model` raises.
    """
    if not prompts:
        raise DataError("there are no prompts: write some, one per line, or raise per_concept.")
    if clip is None:
        raise ValueError("this checkpoint has no text encoder: load one with a CLIP loader and wire it into clip.")
    model = model.clone()
    model.remove_wrappers_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY)
    safe = patch_model(model, hgr, start_percent=0.0, end_percent=1.0, **settings)
    active = active_ids(hgr, settings["concepts"])
    words = ", ".join(concept.label.lower() for concept in hgr.concepts if concept.id in active)
    progress, texts = NodeProgress(), list(prompts)
    progress.phase(f"encoding {len(texts):,} prompts")
    encoded = {text: clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (*texts, "", words)}
    gates = [hgr.read(*prompt_of(hgr, *encoded[text][0])).prompt_gates.cpu() for text in texts]
    evidence = Evidence(PROMPT, torch.cat(gates), hgr.concepts)
    found = build(hgr, [evidence], [id in active for id in hgr.ids], sensitivity=settings["sensitivity"])["items"]
    judge = _Judge(hgr, model, vae, settings=settings)
    ways = {PLAIN: (model, ""), NEGATIVE: (model, words), SAFE: (safe, "")}
    total = len(texts) * len(ways) * sampling.pictures
    progress.phase(f"painting {total:,} pictures")
    items, rows, done = [], [], 0
    for i, text in enumerate(texts):
        drawn: dict[str, list[Drawn]] = {name: [] for name in ways}
        for j in range(sampling.pictures):
            for name, (patched, negative) in ways.items():
                both, number = (encoded[text], encoded[negative]), i * sampling.pictures + j
                drawn[name].append(_draw(patched, vae, both, judge=judge, sampling=sampling, number=number))
                progress.picture(done := done + 1, total)
        items.append(_item(text, found[i], drawn))
        suspect = prompts[text] or bool(items[-1]["fired"])
        rows.append(Row(text, items[-1]["fired"], _shown(drawn, suspect=suspect, blur=blur)))
    report = {
        "version": VERSION,
        "hgr": hgr.name,
        "encoder": hgr.encoder.family,
        "held_out": hgr.training.get("metrics", {}),
        "judge": None if judge.fault else "the HGR's picture probe, the model's own eye",
        "judge_fault": judge.fault,
        "sampling": {key: value for key, value in vars(sampling).items() if key != "latent"},
        "size": list(sampling.empty(model).shape[1:]),
        "settings": dict(settings),
        "prompts": items,
        "summary": summarise(items),
    }
    return draw_sheet(METHODS, rows, heading=_heading(report)), summary_text(report), report


def active_ids(hgr: HGR, concepts: str) -> list[str]:
    """The concepts that count: neither muted nor switched off. concepts: JSON of strengths by id."""
    strengths = concept_strengths(concepts, hgr.ids)
    return [c.id for c, strength in zip(hgr.concepts, strengths, strict=True) if strength > 0 and not c.muted]


class _Judge:
    """The HGR's probe, as Harmfulness Detector asks it. What keeps it from judging is said once, in `fault`."""

    def __init__(
        self, hgr: HGR, model: comfy.model_patcher.ModelPatcher, vae: comfy.sd.VAE, *, settings: dict[str, Any]
    ):
        self.hgr, self.model, self.vae = hgr, model, vae
        self.asked = (settings["concepts"], settings["sensitivity"])
        self.fault = "" if hgr.probe else "this HGR has no picture probe"

    def __call__(self, latent: Tensor) -> bool | None:
        """Whether it finds a concept in a picture; None if it cannot say."""
        if self.fault:
            return None
        try:
            given: dict[str, Any] = {"latent": {"samples": latent}, "model": self.model, "vae": self.vae}
            return detect(self.hgr, *self.asked, **given, progress=SILENT)["flagged"]
        except (HGRError, ValueError) as error:  # videos, or a model that the probe does not know
            self.fault = str(error)
            log.warning("SafeCFG Report Card cannot judge these pictures: %s", error)
            return None


def _draw(
    model: comfy.model_patcher.ModelPatcher,
    vae: comfy.sd.VAE,
    conditionings: tuple[Any, Any],
    *,
    judge: _Judge,
    sampling: Sampling,
    number: int,
) -> Drawn:
    """A picture as KSampler draws it. conditionings: positive and negative. number: of the picture, for its seed."""
    seed, empty = sampling.seed + number, sampling.empty(model)
    noise: Any = comfy.sample.prepare_noise(empty, seed)
    comfy.model_management.load_models_gpu([model])  # loading is not sampling
    start = time.perf_counter()
    with evaluations(model.model.diffusion_model) as count:
        latent = comfy.sample.sample(
            model,
            noise,
            sampling.steps,
            sampling.cfg,
            sampling.sampler_name,
            sampling.scheduler,
            *conditionings,
            empty,
            callback=lambda *_: comfy.model_management.throw_exception_if_processing_interrupted(),
            disable_pbar=True,
            seed=seed,
        )
    seconds = (time.perf_counter() - start) / sampling.steps
    decoded: Any = vae.decode(latent)
    picture = thumbnail(colours(decoded.reshape(-1, *decoded.shape[-3:]))[0].float().cpu())
    return Drawn(latent.float().cpu(), picture, judge(latent), count[0] / sampling.steps, seconds)


def _item(text: str, found: dict[str, Any], drawn: dict[str, list[Drawn]]) -> dict[str, Any]:
    """What the report says of a prompt."""
    pairs = {name: list(zip(each, drawn[PLAIN], strict=True)) for name, each in drawn.items()}
    return {
        "prompt": text,
        "fired": [id for id, each in found["concepts"].items() if each["flagged"]],
        "gates": {id: [each["score"], each["threshold"]] for id, each in found["concepts"].items()},
        "methods": {
            name: {
                "identical": [each.latent.equal(plain.latent) for each, plain in both],
                "moved": [
                    ((each.latent - plain.latent).abs().mean() / plain.latent.std().clamp(min=1e-6)).item()
                    for each, plain in both
                ],
                "harmful": [each.flagged for each, _ in both],
                "evaluations": [each.evaluations for each, _ in both],
                "seconds": [each.seconds for each, _ in both],
            }
            for name, both in pairs.items()
        },
    }


def summarise(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Over all prompts: how many fire, and of each method the share of identical pictures where nothing fires, the
    share that the probe flags where a concept fires, how far pictures move, evaluations per step, and the time relative
    to the first method's. None where there is nothing to count. The very first picture, which warms up, counts for no
    time unless there is no other."""
    fired, clean = ([item for item in items if bool(item["fired"]) == on] for on in (True, False))

    def over(name: str, key: str, of: list[dict[str, Any]]) -> float | None:
        values = [x for item in of for x in item["methods"][name][key] if x is not None]
        return fmean(values) if values else None

    def seconds(name: str) -> float:
        values = [x for item in items for x in item["methods"][name]["seconds"]]
        return median(values[1:] or values)

    return {
        "prompts": len(items),
        "fired": len(fired),
        "methods": {
            name: {
                "identical_where_nothing_fires": over(name, "identical", clean),
                "moved_where_nothing_fires": over(name, "moved", clean),
                "moved_where_a_concept_fires": over(name, "moved", fired),
                "harmful_where_a_concept_fires": over(name, "harmful", fired),
                "evaluations": over(name, "evaluations", items),
                "time": seconds(name) / seconds(PLAIN),
            }
            for name in METHODS
        },
    }


def summary_text(report: dict[str, Any]) -> str:
    """The report in words, for people."""
    s, count = report["summary"], report["sampling"]["pictures"]
    each = f"{count} picture{'s' * (count > 1)} each"
    lines = [f"{report['hgr']}: a concept fires in {s['fired']} of {s['prompts']} prompts, {each}"]

    def said(value: float | None, form: str) -> str:
        return "-" if value is None else f"{value:{form}}"

    for name, found in s["methods"].items():
        parts = [
            f"harmful {said(found['harmful_where_a_concept_fires'], '.0%')}",
            f"moved {said(found['moved_where_a_concept_fires'], '.2f')}",
            f"other prompts: identical {said(found['identical_where_nothing_fires'], '.0%')}",
            f"moved {said(found['moved_where_nothing_fires'], '.2f')}",
            f"evaluations a step {said(found['evaluations'], '.2f')}",
            f"time {found['time']:.2f} x",
        ]
        lines.append(f"{name}: {'; '.join(parts)}")
    judged = "harmful: of the pictures of prompts in which a concept fires, as the HGR's own picture probe sees them."
    if report["judge_fault"]:
        judged = f"Nobody says which pictures are harmful: {report['judge_fault'].rstrip('.')}."
    lines.append(f"{judged} moved: mean distance from the plain picture, in units of its spread.")
    for item in report["prompts"]:
        gates = ", ".join(f"{id} {score:.2f}" for id, (score, _) in item["gates"].items() if id in item["fired"])
        lines.append(f"[{gates or 'nothing fires'}] {item['prompt']}")
    return "\n".join(lines)


def _heading(report: dict[str, Any]) -> str:
    s = report["sampling"]
    return f"{report['hgr']}, {report['settings']['mode']}; {s['steps']} steps, cfg {s['cfg']:g}, {s['sampler_name']}"


def _shown(drawn: dict[str, list[Drawn]], *, suspect: bool, blur: bool) -> list[list[Cell]]:
    """The pictures as the sheet has them, by method. suspect: whether the prompt may lead to harm."""
    rows = []
    for name, pictures in drawn.items():
        row = []
        for each, plain in zip(pictures, drawn[PLAIN], strict=True):
            same = each.latent.equal(plain.latent)
            made_safe = name == SAFE and not same and each.flagged is not None
            hidden = blur and (bool(each.flagged) or (suspect and not made_safe))
            picture, _ = censor(each.picture[None], [hidden], "blur")
            says = "blurred" if hidden else "identical" if same and name != PLAIN else ""
            row.append(Cell(picture[0], bool(each.flagged), says))
        rows.append(row)
    return rows
