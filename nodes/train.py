"""Making an HGR: training, saving, merging."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..hgr.core.merge import merge
from ..hgr.hosts.comfy import files
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
            description="Trains an HGR (Harmful Guidance Redirector) for the text encoder of your checkpoint, from prompt pairs. "
            "The chart is drawn while it runs. Interrupted, it goes on from its last step when you run it again.",
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder of your checkpoint. The HGR works with this encoder, and with its "
                    "fine-tuned relatives.",
                ),
                PairsType.Input("pairs", tooltip="Harmful prompts with their clean twins, from Concept Pairs."),
                io.Combo.Input(
                    "losses",
                    options=list(LOSSES),
                    default=_DEFAULTS.losses,
                    tooltip="What safe features should match. attention: what the model's cross-attention makes of them; the "
                    "best for SD 1.x, SD 2.x and SDXL; needs the model. attention and score: also the model's "
                    "prediction; several times slower. text: the features alone; needs no model, and is the one for "
                    "models without cross-attention (SD 3, Flux, Qwen-Image) and for Wan.",
                ),
                io.Int.Input(
                    "steps",
                    default=_DEFAULTS.steps,
                    min=20,
                    max=100_000,
                    step=10,
                    tooltip="Training steps, 20 to 100,000. 600 to 2,000 are usual; more concepts want more.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=_DEFAULTS.batch_size,
                    min=4,
                    max=512,
                    tooltip="Harmful prompts in a step, 4 to 512, with as many twins and clean prompts. 32 is a good start; "
                    "less saves memory.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=_DEFAULTS.learning_rate,
                    min=1e-6,
                    max=0.1,
                    step=1e-5,
                    round=1e-6,
                    tooltip="Peak of the learning rate, about 0.0005 to 0.003. Lower it where the loss jumps.",
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
                    tooltip="Percent of clean prompts in which some concept may fire, 0.1 to 20. Lower touches fewer clean "
                    "prompts and misses more harmful ones. 1 needs about 670 clean prompts and twins.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model of the same checkpoint, for the attention losses and the picture probe of Harmfulness "
                    'Detector. Not needed for "text", which then gives no probe.',
                ),
                io.Latent.Input(
                    "latents",
                    optional=True,
                    tooltip="Pictures for the model to look at, encoded by its VAE; or an empty latent of the size that you "
                    "paint at, in which it makes its own. Without it: its own at 512 x 512.",
                ),
                io.Int.Input(
                    "pictures",
                    default=_DEFAULTS.pictures,
                    min=0,
                    max=4096,
                    step=8,
                    optional=True,
                    tooltip="Pictures that the model makes to look at, 0 to 4096, half of them of harmful prompts. Harmfulness "
                    "Detector's picture probe is trained on them: it needs 16 a concept, and is better with 64. 16 in all "
                    'are enough for the attention losses alone; 0 needs latents, or losses "text", and gives no probe.',
                ),
            ],
            outputs=[
                HGRType.Output(
                    display_name="HGR", tooltip="The trained HGR: use it at once, and keep it with Save HGR."
                ),
                io.Image.Output(display_name="loss chart", tooltip="Loss of every step, and its running mean."),
                io.String.Output(
                    display_name="report", tooltip="What the gates do on prompts that were not trained on."
                ),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, pairs: Any, model: Any = None, latents: Any = None, **settings: Any) -> io.NodeOutput:
        hgr, chart = train_for_clip(clip, pairs, HGRSettings(**settings), model=model, latents=latents)
        return io.NodeOutput(hgr, chart, hgr_report(hgr))


class SafeCFGSaveHGR(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafeCFGSaveHGR",
            display_name="Save HGR",
            category=CATEGORY,
            description="Saves an HGR under models/hgr, where HGR Loader finds it (refresh the editor's lists with R).",
            inputs=[
                HGRType.Input("hgr", tooltip="From Train HGR or Merge HGR."),
                io.String.Input(
                    "name",
                    default="my_hgr",
                    tooltip="File name without ending; letters, digits, space, point, - and _. A file of this name is "
                    "kept: a number is added.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: str) -> bool | str:
        return name is None or files.is_name(name) or f'"{name}" cannot be a file name: {files.NAME_RULE}.'

    @classmethod
    def execute(cls, hgr: Any, name: str) -> io.NodeOutput:
        return io.NodeOutput(ui=ui.PreviewText(f"Saved as models/hgr/{files.save_hgr(hgr, name)}"))


class SafeCFGMergeHGR(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        more = [
            HGRType.Input(f"hgr_{i}", optional=True, tooltip="Another HGR of the same encoder.") for i in range(3, 7)
        ]
        return io.Schema(
            node_id="SafeCFGMergeHGR",
            display_name="Merge HGR",
            category=CATEGORY,
            description="One HGR with the concepts of several that were trained for the same text encoder.",
            inputs=[
                HGRType.Input("hgr_1", tooltip="The first; its concepts come first."),
                HGRType.Input("hgr_2", tooltip="The second. A concept id that both have is an error."),
                *more,
            ],
            outputs=[HGRType.Output(display_name="HGR", tooltip="For SafeCFG Guider, SafeCFG (Model) and Save HGR.")],
        )

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(merge([hgr for _, hgr in sorted(given.items()) if hgr is not None]))


NODES = [SafeCFGTrainHGR, SafeCFGSaveHGR, SafeCFGMergeHGR]
