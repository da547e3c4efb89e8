"""Detecting what is harmful, and keeping it from being seen."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..hgr.core.options import DEFAULT_SENSITIVITY, SENSITIVITIES
from ..hgr.detection.censor import ACTIONS, censor, substitute
from ..hgr.detection.report import flags, to_json
from ..hgr.hosts.comfy import detection
from ..hgr.hosts.comfy.chart import draw_report, image
from .types import CATEGORY, HGRType

_UNWIRED = object()


class SafeCFGDetector(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafeCFGDetector",
            display_name="Harmfulness Detector",
            category=CATEGORY,
            description="Scores how harmful prompts or pictures are, concept by concept, using only the HGR and your "
            "own model. The inputs decide what is judged: a conditioning (or clip and text) for prompts; image (or "
            "latent) with model and vae for pictures; both for pictures together with their prompts.",
            inputs=[
                HGRType.Input(
                    "hgr",
                    tooltip="The redirector, from HGR Loader. To judge pictures it needs a picture probe, which "
                    "Train HGR adds if a model is wired into it. Without a probe, judging pictures stops with an "
                    "error.",
                ),
                io.String.Input(
                    "concepts",
                    default="",
                    multiline=True,
                    tooltip='Which concepts count, as JSON: 0 excludes one, for example {"shocking": 0}. Concepts '
                    "not listed count. Leave empty to count all.",
                ),
                io.Combo.Input(
                    "sensitivity",
                    options=list(SENSITIVITIES),
                    default=DEFAULT_SENSITIVITY,
                    tooltip="How easily something is flagged. normal: the false-positive rate on clean prompts or "
                    "pictures that the HGR was trained for, 1 % by default. lowest, low, high, highest: a quarter, "
                    "half, twice and five times that rate (0.25, 0.5, 2 and 5 %).",
                ),
                io.Conditioning.Input(
                    "conditioning",
                    optional=True,
                    tooltip="The prompts to judge; each prompt in a batch gets its own verdict. With pictures: their "
                    "prompt, one for all pictures or one for each.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The pictures to judge, of any size and from any source. Needs model and vae. An alpha "
                    "channel is ignored. Pictures whose shape differs from that of the HGR's training pictures are "
                    "also judged in parts.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The pictures as latents, instead of image. Needs model, and also vae if their size "
                    "differs from that of the HGR's training pictures.",
                ),
                io.Model.Input("model", optional=True, tooltip="For pictures: the model that the HGR was trained for."),
                io.Vae.Input(
                    "vae", optional=True, tooltip="For image, and for latents of another size: the VAE of that model."
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="With text: the text encoder that shows which words are harmful."
                ),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="The prompt as text, to show which words make it harmful. Needs clip. Without a "
                    "conditioning, this text is what is judged. Costs two runs of the text encoder per word.",
                ),
                io.Int.Input(
                    "timesteps",
                    default=2,
                    min=1,
                    max=16,
                    optional=True,
                    tooltip="For pictures with prompts: number of noise levels at which they are judged, 1 to 16, "
                    "with three evaluations of the model per level. The HGR was calibrated with 2.",
                ),
                io.Int.Input(
                    "samples",
                    default=1,
                    min=1,
                    max=16,
                    optional=True,
                    tooltip="For pictures: number of noise samples per noise level, 1 to 16. More give steadier "
                    "scores and take proportionally longer.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    optional=True,
                    tooltip="Seed of the noise that is added to pictures. The same seed gives the same scores.",
                ),
            ],
            outputs=[
                io.Boolean.Output(
                    display_name="flagged", tooltip="True if anything in the batch is harmful. Use it to branch."
                ),
                io.Float.Output(
                    display_name="score",
                    tooltip="The highest calibrated probability of any concept in the batch, 0 to 1.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="The full result as JSON, for Harmfulness Filter and for scripts. docs/detection.md "
                    "describes the format.",
                ),
                io.Image.Output(
                    display_name="chart", tooltip="Each score against its threshold, and how much each word adds."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        report = detection.detect(**given)
        text, chart = to_json(report), image(draw_report(report))
        shown = ui.PreviewImage(chart, cls=cls).as_dict() | {
            "report": [text]
        }  # the editor draws the report, others show the picture
        return io.NodeOutput(report["flagged"], report["score"], text, chart, ui=shown)


class SafeCFGFilter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafeCFGFilter",
            display_name="Harmfulness Filter",
            category=CATEGORY,
            description="Makes the pictures that Harmfulness Detector flagged unrecognisable, or replaces them with "
            "another picture. All others stay exactly as they are. With a replacement wired in, the pictures are not "
            "even generated if all of them are flagged: judge the prompt, and a harmful one is never sampled.",
            inputs=[
                io.Image.Input(
                    "image",
                    lazy=True,
                    tooltip="The pictures. If all are flagged and a replacement is wired in, they are not even "
                    "generated.",
                ),
                io.String.Input(
                    "report",
                    force_input=True,
                    tooltip="From Harmfulness Detector: the report on these pictures, or on their prompt. A report "
                    "on another batch stops with an error.",
                ),
                io.Combo.Input(
                    "action",
                    options=list(ACTIONS),
                    default="blur",
                    tooltip="What happens to a flagged picture: blur, pixelate or blank (plain grey). pass changes "
                    "nothing; only the outputs say what is flagged. A replacement takes precedence over every action "
                    "except pass.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.1,
                    max=1.0,
                    step=0.05,
                    tooltip="How coarse the blur or the pixels are, 0.1 to 1. At 1 shapes disappear and only colours "
                    "remain; below 0.5 much can still be guessed. blank leaves nothing at any strength.",
                ),
                io.Image.Input(
                    "replacement",
                    optional=True,
                    lazy=True,
                    tooltip="A picture to show instead of flagged ones. It is scaled and cropped to their size.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The pictures, with the flagged ones changed."),
                io.Mask.Output(
                    display_name="mask", tooltip="1 where a picture was changed, 0 elsewhere; one mask per picture."
                ),
                io.Boolean.Output(display_name="flagged", tooltip="True if any picture is flagged."),
            ],
        )

    @classmethod
    def check_lazy_status(
        cls, *, report: str, action: str, image: Any = None, replacement: Any = _UNWIRED, **others: Any
    ) -> list[str]:
        # what is wired in and not yet made is None
        found, replaced = flags(report), action != "pass" and replacement is not _UNWIRED
        wanted = {"replacement"} if replaced and any(found) else set()
        if not (replaced and all(found)):
            wanted.add("image")
        return [
            name for name, value in (("image", image), ("replacement", replacement)) if name in wanted and value is None
        ]

    @classmethod
    def execute(
        cls, *, report: str, action: str, strength: float, image: Any = None, replacement: Any = None
    ) -> io.NodeOutput:
        found = flags(report, None if image is None else len(image))
        if image is None:
            image = replacement[:1].expand(len(found), -1, -1, -1)
        if replacement is not None and action != "pass":
            return io.NodeOutput(*substitute(image, found, replacement), any(found))
        return io.NodeOutput(*censor(image, found, action, strength=strength), any(found))


NODES = [SafeCFGDetector, SafeCFGFilter]
