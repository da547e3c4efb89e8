"""The HGR for a model, found or made."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..hgr.data.library import CATEGORIES
from ..hgr.hosts.comfy import files
from ..hgr.hosts.comfy.model_hgr import PREFIX, hgr_for_model
from ..hgr.training.settings import AUTO, QUALITIES
from .pairs import CONCEPTS
from .types import CATEGORY, HGRType

_ON = ("violence", "sexual")
_ORDER = (*_ON, *(concept for concept in CONCEPTS if concept not in _ON))


class SafeCFGModelHGR(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafeCFGModelHGR",
            display_name="HGR for this Model",
            category=CATEGORY,
            description="Finds the HGR in models/hgr that fits your checkpoint's text encoder and has the concepts. If "
            "there is none, it trains one now and keeps it there, so that the next run loads it at once. Checkpoints "
            "with the same text encoder share it.",
            inputs=[
                io.Clip.Input("clip", tooltip="Your checkpoint's text encoder, to which an HGR belongs."),
                *(
                    io.Boolean.Input(
                        concept,
                        default=concept in _ON,
                        tooltip=f"{CONCEPTS[concept]} If on, SafeCFG steers away from it. More concepts make the first "
                        "run longer.",
                    )
                    for concept in _ORDER
                ),
                io.String.Input(
                    "own",
                    default="",
                    multiline=True,
                    tooltip="Concepts of your own, one per line: a name, a colon and a few words that prompts use "
                    'for it, for example "spiders: spider, tarantula, cobweb". Leave empty for none.',
                ),
                io.Combo.Input(
                    "quality",
                    options=[AUTO, *QUALITIES],
                    default=AUTO,
                    tooltip="How an HGR is trained if none fits, and how good a file must be to be taken. draft: from "
                    "the text encoder alone, with fewer prompts and steps, for computers without a graphics card. "
                    "quick: with all of them. full: also from the model's cross-attention (SD 1.x, 2.x, SDXL); needs "
                    "the model. full + pictures: also a probe that detects concepts in pictures; several times slower. "
                    "auto: full where the model allows it, otherwise quick; draft without a graphics card.",
                ),
                io.String.Input(
                    "prefix",
                    default="auto",
                    tooltip="What the names of new files begin with; encoder, concepts, quality and date follow.",
                ),
                io.Model.Input(
                    "model", optional=True, tooltip="The model of the same checkpoint, for qualities above quick."
                ),
            ],
            outputs=[
                HGRType.Output(display_name="HGR", tooltip="For SafeCFG (Model), SafeCFG Guider and the other nodes."),
                io.String.Output(
                    display_name="report",
                    tooltip="Which file it is, why, and how it performs on held-out prompts. View it in Preview Any.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, prefix: str | None) -> bool | str:
        if prefix and len(prefix) > PREFIX:
            return f"prefix has {len(prefix)} letters; at most {PREFIX} are allowed."
        return not prefix or files.name_fault(prefix) or True

    @classmethod
    def execute(
        cls, *, clip: Any, own: str, quality: str, prefix: str, model: Any = None, **concepts: bool
    ) -> io.NodeOutput:
        found = hgr_for_model(
            clip,
            model,
            concepts=[concept for concept in CATEGORIES if concepts[concept]],
            owns=own.splitlines(),
            quality=quality,
            prefix=prefix,
        )
        return io.NodeOutput(found.hgr, found.report, ui=ui.PreviewText(f"{found.why}."))


NODES = [SafeCFGModelHGR]
