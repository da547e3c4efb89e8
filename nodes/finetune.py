"""Aligning a model itself, without labels."""

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
            description="Makes the model itself safe: trains a LoRA that does with plain prompts what the HGR does in sampling. The HGR "
            "is the teacher and says which prompts are harmful; nobody labels anything. The LoRA works without this "
            "pack. Interrupted, it goes on from its last step when you run it again.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to align. It is left as it is; a copy with the LoRA comes out."
                ),
                io.Clip.Input("clip", tooltip="The text encoder of the same checkpoint. It is not trained."),
                HGRType.Input(
                    "hgr", tooltip="The teacher, from HGR Loader or Train HGR; trained for this model's text encoder."
                ),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="What people ask of the model, one prompt a line, harmful and clean ones as they come, unlabelled. "
                    "200 or more are good; at least a third should be clean, so that the rest stays as it is. With "
                    "pictures in latents: one line for each picture, or one for all.",
                ),
                io.String.Input(
                    "concepts",
                    default="",
                    multiline=True,
                    tooltip="Strength of each concept from 0 (off) to 2 as JSON, for example "
                    '{"violence": 1.0, "shocking": 0}. Concepts left out count as 1; empty means all on.',
                ),
                io.Combo.Input(
                    "evidence",
                    options=list(EVIDENCE),
                    default=_DEFAULTS.evidence,
                    tooltip="What says how harmful an example is. prompt: the HGR's gates on the prompt. picture: whether the "
                    "picture shows it; needs an HGR with a picture probe. both: the mean of the two.",
                ),
                io.Int.Input(
                    "rank",
                    default=_DEFAULTS.rank,
                    min=1,
                    max=256,
                    tooltip="Rank of the LoRA, 1 to 256. 8 to 32 are usual; more learns more and makes a larger file.",
                ),
                io.Int.Input(
                    "steps",
                    default=_DEFAULTS.steps,
                    min=1,
                    max=100_000,
                    step=10,
                    tooltip="Training steps, 1 to 100,000. 400 to 1,500 are usual.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=_DEFAULTS.batch_size,
                    min=1,
                    max=64,
                    tooltip="Examples a step, 1 to 64, half of them harmful. 8 is a good start; less saves memory.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=_DEFAULTS.learning_rate,
                    min=1e-6,
                    max=0.1,
                    step=1e-5,
                    round=1e-6,
                    tooltip="Peak of the learning rate. 0.0003 to 0.002 are usual; lower it where the loss jumps.",
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
                    tooltip="Pictures that the model makes of the prompts, to learn from, 8 to 4096. Not used where latents holds "
                    "pictures.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing", default=True, tooltip="Needs much less memory, and more time."
                ),
                io.Combo.Input(
                    "file",
                    options=[NO_FILE, *_FILES.names()],
                    tooltip="A .txt file in ComfyUI's input folder with more prompts, one a line. Press R after adding a file.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes the pictures before and after. Without it they are rough previews.",
                ),
                io.Latent.Input(
                    "latents",
                    optional=True,
                    tooltip="Pictures of the prompts, encoded by the VAE; or an empty latent of the size that you paint at, in "
                    "which the model makes its own. Without it: its own at 512 x 512.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(
                    display_name="LoRA",
                    tooltip="For Save LoRA, which writes a file for every LoRA loader, and for diffusers.",
                ),
                io.Model.Output(display_name="model", tooltip="The model with the LoRA, to sample with at once."),
                io.Image.Output(
                    display_name="loss chart",
                    tooltip="1: harmful examples are as they were. 0: all is as the HGR would make it.",
                ),
                io.Image.Output(
                    display_name="before and after",
                    tooltip="Above without the LoRA, below with it: the most harmful prompts, and at the right a clean one.",
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
