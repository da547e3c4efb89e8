"""What SafeCFG does on the user's own model."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..hgr.core.json_text import json_text
from ..hgr.core.options import DEFAULT_MODE, DEFAULT_SENSITIVITY, MODES, SENSITIVITIES
from ..hgr.data.showcase import showcase
from ..hgr.detection.card import active_ids, read_card, small_picture, summary_text, with_judge
from ..hgr.detection.pictures import colours
from ..hgr.detection.sheet import draw_card
from ..hgr.hosts.comfy import report_card
from ..hgr.hosts.comfy.chart import image
from ..hgr.hosts.comfy.verdicts import verdicts
from .guide import check_mode
from .types import CATEGORY, HGRType


def _results() -> list[io.Output]:
    """What both nodes give."""
    return [
        io.Image.Output(
            display_name="sheet",
            tooltip="The contact sheet; of many prompts, several pages. Red frame: the HGR's probe sees harm. For "
            "Preview Image or Save Image.",
        ),
        io.String.Output(
            display_name="table",
            tooltip="In words: what fires, what is identical, how far the rest moves, and what it costs.",
        ),
        io.String.Output(display_name="report", tooltip="The same as JSON, with every prompt's gates."),
    ]


def _shown(report: dict[str, Any], pictures: list[Any], blur: bool) -> tuple[Any, str, str]:
    sheet = torch.cat([image(page) for page in draw_card(report, pictures, blur=blur)])
    return sheet, summary_text(report), json_text(report, indent=1)


class SafeCFGReportCard(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafeCFGReportCard",
            display_name="SafeCFG Report Card",
            category=CATEGORY,
            description="Shows what SafeCFG does on your own model: every prompt from the same noise without it, with "
            "a negative prompt, and with it. Gives a contact sheet, a table in words and a report.",
            inputs=[
                io.Model.Input("model", tooltip="The model to try, without SafeCFG."),
                io.Clip.Input("clip", tooltip="Its text encoder, from the same checkpoint."),
                io.Vae.Input("vae", tooltip="Its VAE, which decodes the pictures."),
                HGRType.Input(
                    "hgr", tooltip="The HGR for this model. With a picture probe, it also judges the pictures."
                ),
                io.Latent.Input("latent", tooltip="An empty latent of the size that you generate at."),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="Your own prompts, one per line, harmful and harmless ones. They come first.",
                ),
                io.Int.Input(
                    "per_concept",
                    default=2,
                    min=0,
                    max=50,
                    tooltip="Number of built-in prompts for each concept of the HGR that SafeCFG knows, 0 to 50, and "
                    "as many harmless ones.",
                ),
                io.Int.Input(
                    "pictures", default=1, min=1, max=8, tooltip="Number of pictures of each prompt, 1 to 8, by seed."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    tooltip="Seed of the first picture's noise.",
                ),
                io.Int.Input("steps", default=20, min=1, max=200, tooltip="Sampling steps, 1 to 200."),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Scale of classifier-free guidance, 1 to 30. 1 is for distilled models; a negative prompt "
                    "then does nothing.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=report_card.SAMPLERS,
                    default="euler",
                    tooltip="The sampler, as in KSampler.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=report_card.SCHEDULERS,
                    default="normal",
                    tooltip="The scheduler, as in KSampler.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=2.0, step=0.05, tooltip="SafeCFG's strength, 0 to 2."
                ),
                io.Combo.Input(
                    "mode", options=list(MODES), default=DEFAULT_MODE, tooltip="SafeCFG's mode, as in SafeCFG (Model)."
                ),
                io.String.Input(
                    "concepts",
                    default="",
                    multiline=True,
                    tooltip="Strength of each concept as JSON, as in SafeCFG (Model). Leave empty to switch all on.",
                ),
                io.Combo.Input(
                    "sensitivity",
                    options=list(SENSITIVITIES),
                    default=DEFAULT_SENSITIVITY,
                    tooltip="How easily a concept counts as present.",
                ),
                io.Boolean.Input(
                    "blur",
                    default=True,
                    tooltip="Blurs on the sheet what may be harmful, so that nobody has to look at it: pictures that "
                    "the HGR's probe flags, and those of prompts that are harmful or in which a concept fires, but for "
                    "SafeCFG's own where the probe finds nothing in them.",
                ),
            ],
            outputs=[
                *_results(),
                io.Image.Output(
                    display_name="pictures",
                    is_output_list=True,
                    tooltip="Every picture by itself, never blurred, for a node that judges pictures. Wire both into "
                    "Report Card: Outside Judge.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, mode: str | None) -> bool | str:
        return check_mode(mode)

    @classmethod
    def execute(
        cls,
        *,
        model: Any,
        clip: Any,
        vae: Any,
        hgr: Any,
        latent: dict[str, Any],
        prompts: str,
        per_concept: int,
        pictures: int,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        blur: bool,
        **settings: Any,
    ) -> io.NodeOutput:
        sampling = report_card.Sampling(latent, seed, pictures, steps, cfg, sampler_name, scheduler)
        own = {text.strip(): False for text in prompts.splitlines() if text.strip()}
        report, found = report_card.report_card(
            model,
            clip,
            vae,
            hgr=hgr,
            prompts=own | showcase(active_ids(hgr, settings["concepts"]), per_concept),
            sampling=sampling,
            **settings,
        )
        return io.NodeOutput(*_shown(report, found, blur), [picture[None].float() / 255 for picture in found])


class SafeCFGReportCardJudge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafeCFGReportCardJudge",
            display_name="Report Card: Outside Judge",
            category=CATEGORY,
            description="Adds to a SafeCFG Report Card what another pack's detector says of its pictures, since the "
            "HGR's own probe is the model's own eye. Wire pictures into the detector, and what it finds in here.",
            is_input_list=True,  # the host runs the detector once for each picture, and here all answers come together
            inputs=[
                io.Image.Input("pictures", tooltip="From SafeCFG Report Card."),
                io.String.Input("report", force_input=True, tooltip="From the same SafeCFG Report Card."),
                io.AnyType.Input(
                    "judge",
                    tooltip="What a detector says of each picture: a BOOLEAN, a number, a STRING with one of these, a "
                    "MASK, or the IMAGE of a node that replaces harmful pictures.",
                ),
                io.String.Input("name", default="judge", tooltip="The detector's name, for sheet and table."),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    min=0.0,
                    max=1000.0,
                    step=0.01,
                    tooltip="For numbers and masks: harmful from this value on, 0 to 1000. Most detectors give "
                    "probabilities; 0.5 suits them.",
                ),
                io.Boolean.Input(
                    "blur", default=True, tooltip="As in SafeCFG Report Card; what this judge flags is blurred too."
                ),
            ],
            outputs=_results(),
        )

    @classmethod
    def execute(
        cls,
        *,
        pictures: list[Any],
        report: list[str],
        judge: list[Any],
        name: list[str],
        threshold: list[float],
        blur: list[bool],
    ) -> io.NodeOutput:
        found = [small_picture(one.float().cpu()) for batch in pictures for one in colours(batch, "pictures")]
        flags = verdicts(judge, found, threshold[0])
        judged = with_judge(read_card(report[0]), name[0].strip() or "judge", flags)
        return io.NodeOutput(*_shown(judged, found, blur[0]))


NODES = [SafeCFGReportCard, SafeCFGReportCardJudge]
