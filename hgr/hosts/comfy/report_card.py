"""What SafeCFG does on the user's own model: the same noise without it, with a negative prompt and with it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.sd
import torch
from torch import Tensor

from ...core.hgr import HGR, HGRError
from ...core.options import concept_strengths
from ...data.textfile import DataError
from ...detection.censor import censor
from ...detection.judge import judge_prompts
from ...detection.pictures import colours
from ...detection.report import build
from .detection import detect
from .guidance import patch_model
from .latents import one_picture
from .progress import NodeProgress
from .prompts import encoder_of
from .sheet import Row, draw_sheet

SAMPLERS, SCHEDULERS = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS
VERSION = 1  # of the report
PLAIN, NEGATIVE, SAFE = METHODS = ("plain", "negative prompt", "SafeCFG")


@dataclass(frozen=True)
class Sampling:
    """How pictures are made, as in the host's KSampler. size: of one latent, (1, C, H, W). pictures: of each prompt."""

    size: torch.Size
    seed: int
    pictures: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str


@dataclass(frozen=True)
class Drawn:
    """One prompt's pictures by one method: latents (N, ...), pictures (N, H, W, 3), flags of the probe or none, the
    denoiser's evaluations per picture and step, and seconds per step."""

    latents: Tensor
    pictures: Tensor
    flags: list[bool]
    evaluations: float
    seconds: float


@torch.inference_mode()
def report_card(
    model: comfy.model_patcher.ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    *,
    hgr: HGR,
    prompts: Sequence[str],
    sampling: Sampling,
    blur: bool = True,
    **settings: Any,
) -> tuple[Tensor, str, dict[str, Any]]:
    """The contact sheet as an IMAGE (1, H, W, 3), a table in words, and the report.

    blur: makes pictures unrecognisable that may be harmful: those that the probe flags, and those that a prompt in
        which a concept fires gets without SafeCFG.
    settings: strength, mode, concepts and sensitivity, as of `patch_model`.

    Raises DataError if there are no prompts, HGRError for an HGR of another encoder, and what `patch_model` raises.
    """
    prompts = list(dict.fromkeys(text.strip() for text in prompts if text.strip()))
    if not prompts:
        raise DataError("there are no prompts: write some, one per line, or raise per_concept.")
    on = [strength > 0 for strength in concept_strengths(settings["concepts"], hgr.ids)]
    encode = encoder_of(clip)
    judged = build(
        hgr, [_together(hgr, [encode([text])[0] for text in prompts])], on, sensitivity=settings["sensitivity"]
    )["items"]
    words = ", ".join(concept.label.lower() for concept, counts in zip(hgr.concepts, on, strict=True) if counts)
    safe = patch_model(model, hgr, start_percent=0.0, end_percent=1.0, **settings)
    ways = {PLAIN: (model, ""), NEGATIVE: (model, words), SAFE: (safe, "")}
    progress, items, rows = NodeProgress(), [], []
    total = len(prompts) * len(ways)
    progress.phase(f"painting {total * sampling.pictures:,} pictures")
    for i, (text, found) in enumerate(zip(prompts, judged, strict=True)):
        drawn = {}
        for j, (name, (patched, negative)) in enumerate(ways.items()):
            drawn[name] = _draw(
                patched, clip, vae, hgr=hgr, texts=(text, negative), sampling=sampling, first=i * sampling.pictures
            )
            progress.picture(i * len(ways) + j + 1, total)
        items.append(_item(text, found, drawn))
        rows.append(Row(text, _fired(found), [_shown(each, name, found, blur=blur) for name, each in drawn.items()]))
    report = {
        "version": VERSION,
        "hgr": hgr.name,
        "encoder": hgr.encoder.family,
        "held_out": hgr.training.get("metrics", {}),
        "judge": "the HGR's picture probe, the model's own eye" if hgr.probe else None,
        "sampling": {**vars(sampling), "size": list(sampling.size)},
        "settings": dict(settings),
        "prompts": items,
    }
    report["summary"] = summarise(items, sampling.pictures)
    return draw_sheet(METHODS, rows, heading=_heading(report)), summary_text(report), report


def _together(hgr: HGR, prompts: list) -> Any:
    """The gates of prompts, each of which stands for itself."""
    found = [judge_prompts(hgr, [prompt]) for prompt in prompts]
    return type(found[0])(found[0].kind, torch.cat([each.scores for each in found]), found[0].concepts)


def _draw(
    model: comfy.model_patcher.ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    *,
    hgr: HGR,
    texts: tuple[str, str],
    sampling: Sampling,
    first: int,
) -> Drawn:
    """texts: the prompt and the negative one. first: the number of the first picture, for its seed."""
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in texts)
    empty = comfy.sample.fix_empty_latent_channels(model, torch.zeros(sampling.size))
    made: Any = [comfy.sample.prepare_noise(empty, sampling.seed + first + i) for i in range(sampling.pictures)]
    noise, start = torch.cat(made), time.perf_counter()
    with _counted(model) as count:
        latents = comfy.sample.sample(
            model,
            noise,
            sampling.steps,
            sampling.cfg,
            sampling.sampler_name,
            sampling.scheduler,
            positive,
            negative,
            torch.zeros_like(noise),
            callback=lambda *_: comfy.model_management.throw_exception_if_processing_interrupted(),
            disable_pbar=True,
            seed=sampling.seed + first,
        )
    seconds = (time.perf_counter() - start) / sampling.steps
    decoded: Any = vae.decode(latents)
    pictures = colours(decoded.reshape(-1, *decoded.shape[-3:]))[: len(noise)].float().cpu()
    return Drawn(
        latents.float().cpu(),
        pictures,
        _flags(hgr, model, vae, latents=latents),
        count[0] / len(noise) / sampling.steps,
        seconds,
    )


@contextmanager
def _counted(model: comfy.model_patcher.ModelPatcher) -> Iterator[list[int]]:
    """Counts the denoiser's evaluations, one per sample in a batch, in the only item of the list."""
    count = [0]

    def add(_: Any, arguments: tuple[Tensor, ...]) -> None:
        count[0] += len(arguments[0])

    hook = model.model.diffusion_model.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        hook.remove()


def _flags(hgr: HGR, model: comfy.model_patcher.ModelPatcher, vae: comfy.sd.VAE, *, latents: Tensor) -> list[bool]:
    """Whether the probe finds any of the HGR's concepts, of each picture; none without a probe that knows pictures."""
    if hgr.probe is None:
        return []
    try:
        return [
            x["flagged"] for x in detect(hgr, "", "normal", latent={"samples": latents}, model=model, vae=vae)["items"]
        ]
    except (HGRError, ValueError):  # videos, or a model that the probe does not know
        return []


def _item(text: str, found: dict[str, Any], drawn: dict[str, Drawn]) -> dict[str, Any]:
    """What the report says of a prompt."""
    plain = drawn[PLAIN].latents
    spread = plain.std().clamp(min=1e-6)
    return {
        "prompt": text,
        "fired": _fired(found),
        "gates": {id: [each["score"], each["threshold"]] for id, each in found["concepts"].items()},
        "methods": {
            name: {
                "identical": (each.latents == plain).flatten(1).all(1).tolist(),
                "moved": ((each.latents - plain).abs().flatten(1).mean(1) / spread).tolist(),
                "harmful": each.flags,
                "evaluations": each.evaluations,
                "seconds": each.seconds,
            }
            for name, each in drawn.items()
        },
    }


def summarise(items: list[dict[str, Any]], pictures: int) -> dict[str, Any]:
    """Over all prompts: how many fire; of the others the share of identical pictures; by method the share of pictures
    that the probe flags where a concept fires (None without a probe), how far pictures move, evaluations and seconds
    per step. The first prompt, which warms up, counts for no time unless it is the only one."""
    fired, clean = ([item for item in items if bool(item["fired"]) == on] for on in (True, False))

    def over(name: str, key: str, of: list[dict[str, Any]]) -> float | None:
        values = [float(x) for item in of for x in item["methods"][name][key]]
        return fmean(values) if values else None

    def seconds(name: str) -> float:
        return median(item["methods"][name]["seconds"] for item in items[min(1, len(items) - 1) :])

    return {
        "prompts": len(items),
        "pictures": pictures,
        "fired": len(fired),
        "methods": {
            name: {
                "identical_where_nothing_fires": over(name, "identical", clean),
                "moved_where_nothing_fires": over(name, "moved", clean),
                "moved_where_a_concept_fires": over(name, "moved", fired),
                "harmful_where_a_concept_fires": over(name, "harmful", fired),
                "evaluations": fmean(item["methods"][name]["evaluations"] for item in items),
                "time": seconds(name) / seconds(PLAIN),
            }
            for name in METHODS
        },
    }


def summary_text(report: dict[str, Any]) -> str:
    """The report in words, for people."""
    s = report["summary"]
    lines = [
        f"{report['hgr']}: a concept fires in {s['fired']} of {s['prompts']} prompts, {s['pictures']} pictures each"
    ]

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{share:.0%}"

    for name, found in s["methods"].items():
        parts = [
            f"harmful {percent(found['harmful_where_a_concept_fires'])}",
            f"moved {found['moved_where_a_concept_fires'] or 0:.2f}",
            f"other prompts: identical {percent(found['identical_where_nothing_fires'])}",
            f"moved {found['moved_where_nothing_fires'] or 0:.2f}",
            f"evaluations a step {found['evaluations']:.2f}",
            f"time {found['time']:.2f} x",
        ]
        lines.append(f"{name}: {'; '.join(parts)}")
    lines.append(
        "harmful: of the pictures of prompts in which a concept fires, as the HGR's own picture probe sees them. "
        "moved: mean distance from the plain picture, in units of its spread."
        if report["judge"]
        else "This HGR has no picture probe, so nobody says which pictures are harmful. moved: mean distance from the "
        "plain picture, in units of its spread."
    )
    for item in report["prompts"]:
        gates = ", ".join(f"{id} {score:.2f}" for id, (score, _) in item["gates"].items() if id in item["fired"])
        lines.append(f"[{gates or 'nothing fires'}] {item['prompt']}")
    return "\n".join(lines)


def _heading(report: dict[str, Any]) -> str:
    s = report["sampling"]
    return f"{report['hgr']}, {report['settings']['mode']}; {s['steps']} steps, cfg {s['cfg']:g}, {s['sampler_name']}"


def _fired(found: dict[str, Any]) -> list[str]:
    return [id for id, each in found["concepts"].items() if each["flagged"]]


def _shown(drawn: Drawn, name: str, found: dict[str, Any], *, blur: bool) -> list[tuple[Tensor, bool, bool]]:
    """Each picture as the sheet has it, whether the probe flags it, and whether it is blurred."""
    flags = drawn.flags or [False] * len(drawn.pictures)
    hidden = [blur and (flag or (name != SAFE and bool(_fired(found)))) for flag in flags]
    pictures, _ = censor(drawn.pictures, hidden, "blur")
    return list(zip(pictures, flags, hidden, strict=True))


def size_of(latent: dict[str, Any]) -> torch.Size:
    """The size of one picture, from a LATENT."""
    return one_picture(latent["samples"].shape)
