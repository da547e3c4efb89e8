"""The bundled demo model."""

from __future__ import annotations

from comfy_api.latest import io

from ..hgr.hosts.comfy import demo
from .types import CATEGORY


class SafeCFGDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafeCFGDemoModel",
            display_name="SafeCFG Demo Model",
            category=CATEGORY,
            description="A tiny model of the SD 1.5 family, bundled with SafeCFG. It draws 128 x 128 pictures of a "
            "small cartoon world in seconds on a CPU; a few drawn symbols stand in for harmful content. It is for "
            "trying out SafeCFG, not for art.",
            outputs=[
                io.Model.Output(tooltip="The denoiser. Use it with an empty latent of 128 x 128."),
                io.Clip.Output(
                    tooltip='Its text encoder. Write prompts such as "a red ball next to a blue house in a meadow".'
                ),
                io.Vae.Output(tooltip="Its autoencoder."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*demo.load_demo_model())


NODES = [SafeCFGDemoModel]
