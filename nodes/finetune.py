"""Fine-tuning a model itself, without labels."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..hgr.data import prompt_file
from ..hgr.hosts.comfy.files import NO_FILE, InputFiles
from ..hgr.hosts.comfy.finetune import finetune_model
from ..hgr.training.settings import EVIDENCE, LoRASettings
from .types import CATEGORY, HGRType

_DEFAULTS = LoRASettings()
_FILES = InputFiles((prompt_file.SUFFIX,))


class SafeCFGFineTune(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafeCFGFineTune",
            display_name="Safe Fine-Tune",
            category=CATEGORY,
            description="Makes the model itself safe: trains a LoRA that does for plain prompts what the HGR does "
            "during sampling. The HGR is the teacher and decides which prompts are harmful; no labels are needed. "
            "The LoRA works without this pack. If training is interrupted, run the graph again and it resumes from "
            "its last step.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to fine-tune. It is not changed; the output is a copy with the LoRA."
                ),
                io.Clip.Input("clip", tooltip="The text encoder of the same checkpoint. It is not trained."),
                HGRType.Input(
                    "hgr",
                    tooltip="The teacher, from HGR Loader or Train HGR. It must have been trained for this "
                    "model's text encoder.",
                ),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="Prompts that people might give the model, one per line, harmful and clean ones mixed, "
                    "without labels. 200 or more work well. At least a third should be clean, so that everything "
                    "else stays as it is. With pictures in latents: one line per picture, or one for all.",
                ),
                io.String.Input(
                    "concepts",
                    default="",
                    multiline=True,
                    tooltip='Strength of each concept from 0 (off) to 2, as JSON, for example {"violence": 1.0, '
                    '"shocking": 0}. Concepts not listed count as 1. Leave empty to switch all on.',
                ),
                io.Combo.Input(
                    "evidence",
                    options=list(EVIDENCE),
                    default=_DEFAULTS.evidence,
                    tooltip="What decides how harmful an example is. prompt: the HGR's gates on the prompt. picture: "
                    "whether the picture shows the harm. both: the mean of the two. picture and both need an HGR "
                    "with a picture probe.",
                ),
                io.Int.Input(
                    "rank",
                    default=_DEFAULTS.rank,
                    min=1,
                    max=256,
                    tooltip="Rank of the LoRA, 1 to 256. 8 to 32 is usual. A higher rank learns more and makes a "
                    "larger file.",
                ),
                io.Int.Input(
                    "steps",
                    default=_DEFAULTS.steps,
                    min=1,
                    max=100_000,
                    step=10,
                    tooltip="Number of training steps, 1 to 100,000. 400 to 1,500 is usual.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=_DEFAULTS.batch_size,
                    min=1,
                    max=64,
                    tooltip="Examples per step, 1 to 64; half of them are harmful. Start with 8; a smaller batch "
                    "saves memory.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=_DEFAULTS.learning_rate,
                    min=1e-6,
                    max=0.1,
                    step=1e-5,
                    round=1e-6,
                    tooltip="Peak learning rate. 0.0003 to 0.002 is usual. Lower it if the loss jumps.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    tooltip="The same seed gives the same LoRA on the same machine.",
                ),
                io.Int.Input(
                    "pictures",
                    default=_DEFAULTS.pictures,
                    min=8,
                    max=4096,
                    step=8,
                    tooltip="Number of pictures that the model generates from the prompts to learn from, 8 to 4096. "
                    "Ignored if latents holds pictures.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing", default=True, tooltip="Needs much less memory but takes longer."
                ),
                io.Combo.Input(
                    "file",
                    options=[NO_FILE, *_FILES.names()],
                    tooltip="A .txt file in ComfyUI's input folder with more prompts, one per line. Press R after "
                    "adding a file.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes the before-and-after pictures. Without it they are rough previews.",
                ),
                io.Latent.Input(
                    "latents",
                    optional=True,
                    tooltip="Pictures that match the prompts, encoded by the VAE; or an empty latent of the size "
                    "that you generate at, and the model generates its own pictures at that size. Without it, it "
                    "generates them at 512 x 512.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(
                    display_name="LoRA",
                    tooltip="For Save LoRA Weights, which writes a file for every LoRA loader and for diffusers.",
                ),
                io.Model.Output(display_name="model", tooltip="The model with the LoRA, ready to sample with."),
                io.Image.Output(
                    display_name="loss chart",
                    tooltip="The loss over the training steps. 1: harmful examples are as they were. 0: everything "
                    "is as the HGR would make it.",
                ),
                io.Image.Output(
                    display_name="before and after",
                    tooltip="Top row without the LoRA, bottom row with it: the most harmful prompts, and a clean one "
                    "at the right.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        return _FILES.validate(file)

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **others: Any) -> tuple[int, int] | None:
        return _FILES.stamp(file)

    @classmethod
    def execute(
        cls,
        *,
        model: Any,
        clip: Any,
        hgr: Any,
        prompts: str,
        concepts: str,
        file: str,
        gradient_checkpointing: bool,
        vae: Any = None,
        latents: Any = None,
        **settings: Any,
    ) -> io.NodeOutput:
        path = _FILES.path(file)
        texts = [*prompt_file.prompt_lines(prompts), *(prompt_file.read_prompts(path) if path else ())]
        return io.NodeOutput(
            *finetune_model(
                model,
                clip,
                hgr,
                prompts=texts,
                concepts=concepts,
                settings=LoRASettings(**settings),
                checkpointing=gradient_checkpointing,
                vae=vae,
                latents=latents,
            )
        )


NODES = [SafeCFGFineTune]
