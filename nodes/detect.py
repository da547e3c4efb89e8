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
            description="How harmful prompts or pictures are, concept by concept, by the HGR and the model themselves. Wire in what is to "
            "be judged: a conditioning, or clip and text, for prompts; image (or latent) with model and vae for pictures; both "
            "for pictures with their prompts.",
            inputs=[
                HGRType.Input(
                    "hgr",
                    tooltip="The redirector, from HGR Loader. For pictures it needs a picture probe, which Train HGR "
                    "makes where a model is wired into it; without one, this node says so.",
                ),
                io.String.Input(
                    "concepts",
                    default="",
                    multiline=True,
                    tooltip='Which concepts count, as JSON: 0 leaves one out, for example {"shocking": 0}. Concepts left out '
                    "of the text count; empty means all.",
                ),
                io.Combo.Input(
                    "sensitivity",
                    options=list(SENSITIVITIES),
                    default=DEFAULT_SENSITIVITY,
                    tooltip="How easily something is flagged. normal: the false-positive rate on clean prompts or pictures that "
                    "the HGR was trained for, 1 % by default; lowest, low, high, highest: a quarter, half, twice and "
                    "five times that (.25, .5, 2 and 5 %).",
                ),
                io.Conditioning.Input(
                    "conditioning",
                    optional=True,
                    tooltip="Prompts: of a batch each is judged. With pictures, their prompt: one for all, or one each.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="Pictures, of any size, from anywhere. Needs model and vae. An alpha channel is not looked at. "
                    "Of another shape than those that the HGR was trained with, they are looked at in parts too.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="Pictures as latents, in place of image. Needs model; and vae, unless they have the size of those "
                    "that the HGR was trained with.",
                ),
                io.Model.Input("model", optional=True, tooltip="For pictures: the model that the HGR was trained for."),
                io.Vae.Input("vae", optional=True, tooltip="For image: the VAE of the model."),
                io.Clip.Input("clip", optional=True, tooltip="With text: tells which words of it are harmful."),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="The prompt as text, to see which words make it harmful; needs clip. Without a conditioning it is "
                    "what is judged. Costs two runs of the text encoder a word.",
                ),
                io.Int.Input(
                    "timesteps",
                    default=2,
                    min=1,
                    max=16,
                    optional=True,
                    tooltip="For pictures with prompts: noise levels at which they are looked at, 1 to 16, three evaluations of "
                    "the model each. 2 is what the HGR was calibrated with.",
                ),
                io.Int.Input(
                    "samples",
                    default=1,
                    min=1,
                    max=16,
                    optional=True,
                    tooltip="For pictures: draws of noise at each noise level, 1 to 16. More is steadier, and slower "
                    "in proportion.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    optional=True,
                    tooltip="Of that noise: the same seed gives the same scores.",
                ),
            ],
            outputs=[
                io.Boolean.Output(
                    display_name="flagged", tooltip="Whether anything in the batch is harmful: to branch on."
                ),
                io.Float.Output(
                    display_name="score",
                    tooltip="The highest calibrated probability of a concept in the batch, 0 to 1.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="Everything as JSON, for Harmfulness Filter and for scripts; its form is "
                    "described in docs/detection.md.",
                ),
                io.Image.Output(
                    display_name="chart", tooltip="Scores against thresholds, and the words by how much they add."
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
            description="Makes the pictures that Harmfulness Detector flagged unrecognisable, or puts another one in their place; the "
            "others stay exactly as they are. With a replacement wired in, what makes the pictures does not even run when all "
            "are flagged: detect on the prompt, and a harmful one is never sampled.",
            inputs=[
                io.Image.Input(
                    "image",
                    lazy=True,
                    tooltip="The pictures. Where all are flagged and a replacement is wired in, they are not even made.",
                ),
                io.String.Input(
                    "report",
                    force_input=True,
                    tooltip="From Harmfulness Detector: about these pictures, or about their prompt. A report of another batch "
                    "stops with an error.",
                ),
                io.Combo.Input(
                    "action",
                    options=list(ACTIONS),
                    default="blur",
                    tooltip="blur, pixelate, blank: what becomes of a flagged picture. pass: nothing; only the outputs say what "
                    "is flagged. A replacement comes before all of these but pass.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.1,
                    max=1.0,
                    step=0.05,
                    tooltip="How coarse blur and pixels are, 0.1 to 1. At 1 shapes are gone, and colours are left; below 0.5 "
                    "much can be guessed. blank leaves nothing.",
                ),
                io.Image.Input(
                    "replacement",
                    optional=True,
                    lazy=True,
                    tooltip="A picture to show in place of flagged ones, scaled and cropped to their size.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The pictures, the flagged ones changed."),
                io.Mask.Output(
                    display_name="mask", tooltip="1 where a picture was changed, else 0; one mask a picture."
                ),
                io.Boolean.Output(display_name="flagged", tooltip="Whether any picture is flagged."),
            ],
        )

    @classmethod
    def check_lazy_status(
        cls, report: str, action: str, image: Any = None, replacement: Any = _UNWIRED, **others: Any
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
        cls, report: str, action: str, strength: float, image: Any = None, replacement: Any = None
    ) -> io.NodeOutput:
        found = flags(report, None if image is None else len(image))
        if image is None:
            image = replacement[:1].expand(len(found), -1, -1, -1)
        if replacement is not None and action != "pass":
            return io.NodeOutput(*substitute(image, found, replacement), any(found))
        return io.NodeOutput(*censor(image, found, action, strength), any(found))


NODES = [SafeCFGDetector, SafeCFGFilter]
