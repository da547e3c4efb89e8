"""Making an HGR: training, saving, merging."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..hgr.core.merge import merge_hgrs
from ..hgr.hosts.comfy import files, in_force
from ..hgr.hosts.comfy.train import train_for_clip
from ..hgr.training.hgr_report import hgr_report
from ..hgr.training.settings import LOSSES, HGRSettings
from .types import CATEGORY, HGRType, PairsType

_DEFAULTS = HGRSettings()


class SafeCFGTrainHGR(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafeCFGTrainHGR",
            display_name="Train HGR",
            category=CATEGORY,
            description="Trains an HGR (Harmful Guidance Redirector) for your checkpoint's text encoder from prompt "
            "pairs. The loss chart is drawn during training. If training is interrupted, run the graph again and it "
            "resumes from its last step.",
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="Your checkpoint's text encoder. The HGR works with this encoder and with fine-tuned "
                    "versions of it.",
                ),
                PairsType.Input("pairs", tooltip="Harmful prompts with their clean twins, from Concept Pairs."),
                io.Combo.Input(
                    "losses",
                    options=list(LOSSES),
                    default=_DEFAULTS.losses,
                    tooltip="What the safe features should match. attention: the output of the model's "
                    "cross-attention; best for SD 1.x, SD 2.x and SDXL; needs the model. attention and score: also "
                    "the model's prediction; several times slower. text: only the text features; needs no model. Use "
                    "text for models without cross-attention (SD 3, Flux, Qwen-Image) and for Wan.",
                ),
                io.Int.Input(
                    "steps",
                    default=_DEFAULTS.steps,
                    min=20,
                    max=100_000,
                    step=10,
                    tooltip="Number of training steps, 20 to 100,000. 600 to 2,000 is usual; more concepts need more "
                    "steps.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=_DEFAULTS.batch_size,
                    min=4,
                    max=512,
                    tooltip="Harmful prompts per step, 4 to 512, plus as many clean twins and as many clean prompts. "
                    "Start with 32; a smaller batch saves memory.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=_DEFAULTS.learning_rate,
                    min=1e-6,
                    max=0.1,
                    step=1e-5,
                    round=1e-6,
                    tooltip="Peak learning rate. 0.0005 to 0.003 is usual. Lower it if the loss jumps.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    tooltip="The same seed gives the same HGR on the same machine.",
                ),
                io.Float.Input(
                    "false_positive_rate",
                    default=_DEFAULTS.false_positive_rate,
                    min=0.1,
                    max=20.0,
                    step=0.1,
                    tooltip="Percentage of clean prompts on which any concept may fire, 0.1 to 20. A lower rate "
                    "affects fewer clean prompts but misses more harmful ones. A rate of 1 needs about 670 clean "
                    "prompts and twins.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model of the same checkpoint, for the attention losses and for the picture probe of "
                    'Harmfulness Detector. Losses "text" work without it, but the HGR then has no probe.',
                ),
                io.Latent.Input(
                    "latents",
                    optional=True,
                    tooltip="Pictures to train with, encoded by the model's VAE; or an empty latent of the size that "
                    "you generate at, and the model generates its own pictures at that size. Without it, it "
                    "generates them at 512 x 512.",
                ),
                io.Int.Input(
                    "pictures",
                    default=_DEFAULTS.pictures,
                    min=0,
                    max=4096,
                    step=8,
                    optional=True,
                    tooltip="Number of pictures that the model generates for training, 0 to 4096, half of them from "
                    "harmful prompts. They also train Harmfulness Detector's picture probe, which needs 16 per "
                    "concept and is better with 64. For the attention losses alone, 16 in all are enough. 0 requires "
                    'latents or losses "text", and gives no probe.',
                ),
            ],
            outputs=[
                HGRType.Output(display_name="HGR", tooltip="The trained HGR, ready to use. Keep it with Save HGR."),
                io.Image.Output(display_name="loss chart", tooltip="The loss of every step and its running mean."),
                io.String.Output(
                    display_name="report", tooltip="How the gates perform on prompts that were held out from training."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, *, clip: Any, pairs: Any, model: Any = None, latents: Any = None, **settings: Any
    ) -> io.NodeOutput:
        hgr, chart = train_for_clip(clip, pairs, HGRSettings(**settings), model=model, latents=latents)
        return io.NodeOutput(hgr, chart, hgr_report(hgr))


class SafeCFGSaveHGR(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafeCFGSaveHGR",
            display_name="Save HGR",
            category=CATEGORY,
            description="Saves an HGR in models/hgr, where HGR Loader finds it. Press R to refresh the editor's lists.",
            inputs=[
                HGRType.Input("hgr", tooltip="From Train HGR or Merge HGR."),
                io.String.Input(
                    "name",
                    default="my_hgr",
                    tooltip="File name without extension: letters, digits, spaces, dots, - and _. An existing file "
                    "of that name is kept; the new one gets a number.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: str) -> bool | str:
        return name is None or files.name_fault(name) or True

    @classmethod
    def execute(cls, *, hgr: Any, name: str) -> io.NodeOutput:
        in_force.check_saving()
        saved = files.save_folder() / files.save_hgr(hgr, name)
        return io.NodeOutput(ui=ui.PreviewText(f"Saved as {files.shown_path(saved)}"))


class SafeCFGMergeHGR(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        more = [
            HGRType.Input(f"hgr_{i}", optional=True, tooltip="Another HGR for the same text encoder.")
            for i in range(3, 7)
        ]
        return io.Schema(
            node_id="SafeCFGMergeHGR",
            display_name="Merge HGR",
            category=CATEGORY,
            description="Combines several HGRs into one that has all their concepts. They must have been trained for "
            "the same text encoder.",
            inputs=[
                HGRType.Input("hgr_1", tooltip="The first HGR. Its concepts come first."),
                HGRType.Input(
                    "hgr_2",
                    tooltip="The second HGR. If two HGRs have the same concept id, merging stops with an error.",
                ),
                *more,
            ],
            outputs=[
                HGRType.Output(
                    display_name="HGR",
                    tooltip="For SafeCFG (Model), SafeCFG Guider, Harmfulness Detector, Safe Fine-Tune and Save HGR.",
                )
            ],
        )

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(merge_hgrs([hgr for _, hgr in sorted(given.items()) if hgr is not None]))


NODES = [SafeCFGTrainHGR, SafeCFGSaveHGR, SafeCFGMergeHGR]
