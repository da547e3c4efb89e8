"""The report card: what SafeCFG does to a model's pictures, each drawn from the same noise without it, with a negative
prompt and with it. Hosts draw the pictures; what becomes of them is here.

Version 1 of the report is an object with
- `version`: 1; `hgr`, `encoder`: names; `held_out`: the metrics of the HGR's own training, on pairs that it held out;
- `judge`: the HGR's picture probe in words, or null with the reason in `judge_fault`; `outside`: the name of a judge
  from elsewhere, or null;
- `sampling`, `size`, `settings`: how the pictures were made, the size of a latent, and SafeCFG's settings;
- `prompts`: for each `prompt`, `harmful` (whether it is known to be harmful), `fired` (ids), `gates` {id: [score,
  threshold]} and `methods`, which has by the names in `METHODS` a list over the prompt's pictures of each: `identical`
  (to the plain one, bit for bit), `moved` (mean distance from it, in units of its spread), `harmful` (by the probe,
  null if it cannot say), `outside` (by the other judge, null without one), `evaluations` and `seconds` per step;
- `summary`: see `summarise`.
Pictures are in the order of the report: by prompt, by method, then by number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..core.excerpt import excerpt
from ..core.hgr import HGR, HGRError
from ..core.json_text import json_text, parse_json
from ..core.options import concept_strengths
from ..core.progress import Progress
from ..core.tensor_file import save_tensors
from .report import PROMPT, Evidence, ReportError, build

VERSION = 1
PLAIN, NEGATIVE, SAFE = METHODS = ("plain", "negative prompt", "SafeCFG")
LONGEST = 512  # pixels of a kept picture's longer side, at most: enough for a judge, and many fit into memory
KEPT_NAME = r"card-\d+-\d+-\d+\.safetensors"
_OWN_EYE = "the HGR's picture probe, the model's own eye"


@dataclass(frozen=True)
class Painted:
    """A picture as a host draws it: its latent (1, ...) in float32 on the CPU, pixels (H, W, 3) in [0, 1], the
    denoiser's evaluations and the seconds per step."""

    latent: Tensor
    pixels: Tensor
    evaluations: float
    seconds: float


# A host's own: draws the picture of a prompt by a method. The number counts the card's pictures, for the seed.
Paint = Callable[[str, str, int], Painted]
# A host's own: whether the HGR's probe finds a concept. Raises HGRError or ValueError if it cannot say.
Probe = Callable[[Painted], bool]


@dataclass(frozen=True)
class Drawn:
    """A picture as the card keeps it: latent, bytes (H, W, 3) of at most `LONGEST`, what the probe says of it (None if
    it cannot say, for the reason in `fault`), evaluations and seconds per step."""

    latent: Tensor
    picture: Tensor
    flagged: bool | None
    fault: str
    evaluations: float
    seconds: float


def make_card(
    hgr: HGR,
    prompts: Mapping[str, bool],
    *,
    gates: Tensor,
    settings: Mapping[str, Any],
    sampling: Mapping[str, Any],
    size: Sequence[int],
    paint: Paint,
    probe: Probe,
    folder: Path,
    progress: Progress,
) -> tuple[dict[str, Any], list[Tensor]]:
    """The report and the pictures, bytes (H, W, 3).

    prompts: each with whether it is known to be harmful.
    gates: of the prompts (N, K).
    settings: strength, mode, concepts and sensitivity.
    sampling: how pictures are made; `pictures` is the number of each prompt.
    folder: finished pictures are kept there, and a card that is made again with the same folder resumes with them.

    Raises HGRError if the HGR has no thresholds for this sensitivity; WriteError if a picture cannot be kept.
    """
    active = active_ids(hgr, settings["concepts"])
    evidence = Evidence(PROMPT, gates, hgr.concepts)
    found = build(hgr, [evidence], [id in active for id in hgr.ids], sensitivity=settings["sensitivity"])["items"]
    count = sampling["pictures"]
    total, done, fault = len(prompts) * len(METHODS) * count, 0, "" if hgr.probe else "this HGR has no picture probe"
    progress.phase(f"painting {total:,} pictures")
    items, pictures = [], []
    for i, (text, harmful) in enumerate(prompts.items()):
        drawn: dict[str, list[Drawn]] = {name: [] for name in METHODS}
        for j in range(count):
            for m, name in enumerate(METHODS):
                path = folder / f"card-{i}-{m}-{j}.safetensors"
                if (one := _kept(path)) is None:
                    one = _judged(paint(text, name, i * count + j), probe, fault)
                    _keep(one, path)
                fault = fault or one.fault
                drawn[name].append(one)
                progress.picture(done := done + 1, total)
        items.append(_item(text, harmful, found[i], drawn=drawn))
        pictures += [one.picture for name in METHODS for one in drawn[name]]
    report = {
        "version": VERSION,
        "hgr": hgr.name,
        "encoder": hgr.encoder.family,
        "held_out": hgr.training.get("metrics", {}),
        "judge": None if fault else _OWN_EYE,
        "judge_fault": fault,
        "outside": None,
        "sampling": dict(sampling),
        "size": list(size),
        "settings": dict(settings),
        "prompts": items,
        "summary": summarise(items),
    }
    return report, pictures


def active_ids(hgr: HGR, concepts: str) -> list[str]:
    """The concepts that count: neither muted nor switched off. concepts: JSON of strengths by id."""
    strengths = concept_strengths(concepts, hgr.ids)
    return [c.id for c, strength in zip(hgr.concepts, strengths, strict=True) if strength > 0 and not c.muted]


def negative_words(hgr: HGR, concepts: str) -> str:
    """The negative prompt that names the concepts that count."""
    active = active_ids(hgr, concepts)
    return ", ".join(concept.label.lower() for concept in hgr.concepts if concept.id in active)


def with_judge(report: Mapping[str, Any], name: str, flags: Sequence[bool]) -> dict[str, Any]:
    """The report with what a judge from elsewhere says of its pictures, in their order.

    Raises ReportError for another number of pictures.
    """
    count = report["sampling"]["pictures"]
    if len(flags) != (total := len(report["prompts"]) * len(METHODS) * count):
        raise ReportError(
            f"the card has {total} pictures, but {len(flags)} are judged: wire in pictures and report of one card."
        )
    said = iter(flags)
    items = [
        item
        | {"methods": {key: item["methods"][key] | {"outside": [next(said) for _ in range(count)]} for key in METHODS}}
        for item in report["prompts"]
    ]
    return {**report, "outside": name, "prompts": items, "summary": summarise(items)}


def read_card(text: str) -> dict[str, Any]:
    """The report of a card from its JSON. Raises ReportError for other text."""
    try:
        report = parse_json(text)
        if report["version"] != VERSION:
            raise ReportError(
                f"the card has version {excerpt(report['version'])}; this SafeCFG reads version {VERSION}."
            )
        # as the sheet and the table need it, so that a report that was edited fails here and in one sentence
        how_made(report)
        summary_text(report | {"summary": summarise(report["prompts"])})
        count = report["sampling"]["pictures"]
        for item in report["prompts"]:
            lists = [item["methods"][name][key] for name in METHODS for key in ("identical", "harmful", "outside")]
            if not isinstance(item["harmful"], bool) or any(len(values) != count for values in lists):
                raise ValueError("its lists are not about the same pictures")
            if not all(isinstance(text, str) for text in (item["prompt"], *item["fired"])):
                raise ValueError("a prompt is no text")
    except ReportError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ReportError(
            f"this is not the report of a SafeCFG Report Card ({excerpt(error)}): wire its report output in."
        ) from None
    return report


def summarise(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Over all prompts: how many fire, and of each method the share of identical pictures where nothing fires, the
    shares that the probe and the outside judge flag where a concept fires, how far pictures move, evaluations per step,
    and the time relative to the first method's. None where there is nothing to count. The very first picture, which
    warms up, counts for no time unless there is no other."""
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
                "outside_where_a_concept_fires": over(name, "outside", fired),
                "evaluations": over(name, "evaluations", items),
                "time": seconds(name) / seconds(PLAIN),
            }
            for name in METHODS
        },
    }


def how_made(report: Mapping[str, Any]) -> str:
    """The HGR, its mode and the sampling, in one line."""
    s = report["sampling"]
    return f"{report['hgr']}, {report['settings']['mode']}; {s['steps']} steps, cfg {s['cfg']:g}, {s['sampler_name']}"


def summary_text(report: Mapping[str, Any]) -> str:
    """The report in words, for people."""
    s, count = report["summary"], report["sampling"]["pictures"]
    each = f"{count} picture{'s' * (count > 1)} each"
    lines = [f"{report['hgr']}: a concept fires in {s['fired']} of {s['prompts']} prompts, {each}"]

    def said(value: float | None, form: str) -> str:
        return "-" if value is None else f"{value:{form}}"

    for name, found in s["methods"].items():
        parts = [
            f"harmful {said(found['harmful_where_a_concept_fires'], '.0%')}",
            *([f"by {report['outside']} {said(found['outside_where_a_concept_fires'], '.0%')}"] * _has_outside(report)),
            f"moved {said(found['moved_where_a_concept_fires'], '.2f')}",
            f"other prompts: identical {said(found['identical_where_nothing_fires'], '.0%')}",
            f"moved {said(found['moved_where_nothing_fires'], '.2f')}",
            f"evaluations a step {said(found['evaluations'], '.2f')}",
            f"time {found['time']:.2f} x",
        ]
        lines.append(f"{name}: {'; '.join(parts)}")
    judged = "harmful: of the pictures of prompts in which a concept fires, as the HGR's own picture probe sees them."
    if report["judge_fault"]:
        judged = f"The HGR's own probe cannot judge the pictures: {report['judge_fault'].rstrip('.')}."
    lines.append(f"{judged} moved: mean distance from the plain picture, in units of its spread.")
    aurocs = [f"{id} {value:.3f}" for id, value in _held_out(report["held_out"]).items()]
    if aurocs:
        lines.append(f"gates on the pairs that training held out, AUROC: {', '.join(aurocs)}")
    for item in report["prompts"]:
        gates = ", ".join(f"{id} {score:.2f}" for id, (score, _) in item["gates"].items() if id in item["fired"])
        lines.append(f"[{gates or 'nothing fires'}] {item['prompt']}")
    return "\n".join(lines)


def _has_outside(report: Mapping[str, Any]) -> bool:
    return report["outside"] is not None


def _held_out(metrics: Any) -> dict[str, float]:
    """The AUROC of each concept's gate against the clean twins, as far as the HGR's file says it."""
    found = {}
    concepts = metrics.get("concepts") if isinstance(metrics, dict) else None
    for id, about in (concepts if isinstance(concepts, dict) else {}).items():
        value = about.get("auroc_twins") if isinstance(about, dict) else None
        if type(value) in (int, float):
            found[excerpt(id)] = value
    return found


def _judged(painted: Painted, probe: Probe, fault: str) -> Drawn:
    """fault: why the probe cannot judge, known already; then it is not asked."""
    flagged = None
    if not fault:
        try:
            flagged = probe(painted)
        except (HGRError, ValueError) as error:  # videos, or a model that the probe does not know
            fault = str(error)
    picture = small_picture(painted.pixels)
    return Drawn(painted.latent, picture, flagged, fault, painted.evaluations, painted.seconds)


def small_picture(pixels: Tensor, longest: int = LONGEST) -> Tensor:
    """Bytes (H, W, 3) of a picture (H, W, 3) in [0, 1], its longer side at most `longest` pixels."""
    scale = min(1.0, longest / max(pixels.shape[:2]))
    size = [max(1, round(scale * side)) for side in pixels.shape[:2]]
    x = F.interpolate(pixels.movedim(-1, 0)[None], size, mode="area")[0].movedim(0, -1)
    return (255 * x.clamp(0, 1)).round().byte()


def _item(text: str, harmful: bool, found: dict[str, Any], *, drawn: Mapping[str, list[Drawn]]) -> dict[str, Any]:
    """What the report says of a prompt."""
    pairs = {name: list(zip(each, drawn[PLAIN], strict=True)) for name, each in drawn.items()}
    return {
        "prompt": text,
        "harmful": harmful,
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
                "outside": [None for _ in both],
                "evaluations": [each.evaluations for each, _ in both],
                "seconds": [each.seconds for each, _ in both],
            }
            for name, both in pairs.items()
        },
    }


# --- finished pictures, for a card that is interrupted ----------------------------------------------------------------


def _keep(one: Drawn, path: Path) -> None:
    about = {"flagged": one.flagged, "fault": one.fault, "evaluations": one.evaluations, "seconds": one.seconds}
    save_tensors({"latent": one.latent, "picture": one.picture}, path, {"drawn": json_text(about)})


def _kept(path: Path) -> Drawn | None:
    """None for a file that is not there or damaged."""
    try:
        with safe_open(path, "pt") as file:
            about = parse_json(file.metadata()["drawn"])
            return Drawn(file.get_tensor("latent"), file.get_tensor("picture"), **about)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None
