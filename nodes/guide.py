"""Safe guidance, as a guider and as a patch on a model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..hgr.core.options import DEFAULT_MODE, DEFAULT_SENSITIVITY, FORMER_MODES, MODES, SENSITIVITIES
from ..hgr.hosts.comfy import guidance, runs
from .types import CATEGORY, HGRType


def _hgr_input() -> io.Input:
    return HGRType.Input(
        "hgr",
        tooltip="The redirector, from HGR Loader. It must have been trained for this model's text encoder; with any "
        "other, sampling stops with an error.",
    )


def _settings() -> list[io.Input]:
    """The inputs that say how safe, in the order of both nodes."""
    return [
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=2.0,
            step=0.05,
            tooltip="How strongly harmful directions are redirected, 0 to 2. The HGR was trained for 1; 0 switches "
            "SafeCFG off. Values above 1 redirect further, at the cost of larger changes to the picture.",
        ),
        io.Combo.Input(
            "mode",
            options=list(MODES),
            default=DEFAULT_MODE,
            tooltip="redirect: replaces the harmful direction with the clean one. It works at every cfg, including 1, "
            "and needs no extra evaluations. dynamic: adjusts the negative side by how harmful the prompt is. It needs "
            "a cfg above 1, and a third evaluation per step where a concept is found.",
        ),
        io.String.Input(
            "concepts",
            default="",
            multiline=True,
            tooltip='Strength of each concept from 0 (off) to 2, as JSON, for example {"violence": 1.0, "shocking": '
            "0}. Concepts not listed count as 1. Leave empty to switch all on.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="Point in sampling at which safe guidance starts, 0 to 1. Keep it at 0: layout and content are "
            "decided early.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="Point in sampling at which safe guidance ends, 0 to 1; must be above start_percent. 1 is "
            "safest; 0.6 leaves fine detail to the prompt as written.",
        ),
        io.Combo.Input(
            "sensitivity",
            options=list(SENSITIVITIES),
            default=DEFAULT_SENSITIVITY,
            optional=True,  # workflows made before it was there
            tooltip="How easily a concept counts as present. normal: in the share of clean prompts that the HGR was "
            "trained for, 1 % by default. lowest, low, high, highest: in a quarter of that share, half, twice and five "
            "times (0.25, 0.5, 2 and 5 %). Higher finds more harm and changes more clean pictures.",
        ),
    ]


def _node_id(node: type[io.ComfyNode]) -> str | None:
    """The node in the user's graph; None where it is called without one."""
    return node.hidden.unique_id if node.hidden else None


def _expect(node: type[io.ComfyNode], strength: float | None) -> str:
    """The host asks for this in every run, even if the node's output is cached. The answer never changes.

    strength: None if another node gives it."""
    if strength is not None:
        runs.expect(_node_id(node), enabled=strength > 0)
    return ""


def check_mode(mode: str | None) -> bool | str:
    """In place of the host's own check, which would refuse the former modes of saved workflows. mode: None where it
    comes from another node."""
    return mode in (None, *MODES, *FORMER_MODES) or f'"{mode}" is unknown; choose one of {", ".join(MODES)}.'


class SafeCFGGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafeCFGGuider",
            display_name="SafeCFG Guider",
            category=CATEGORY,
            description="Classifier-free guidance that redirects harmful directions, for SamplerCustomAdvanced. If "
            "the HGR finds nothing in the prompt, the picture is exactly the one from CFG Guider.",
            inputs=[
                io.Model.Input("model", tooltip="The model to sample with."),
                io.Conditioning.Input(
                    "positive", tooltip="The prompt. Combined, area, masked and scheduled conditionings are supported."
                ),
                io.Conditioning.Input("negative", tooltip="The negative prompt, or an empty one. It works as usual."),
                _hgr_input(),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Scale of classifier-free guidance, 0 to 100. 5 to 8 suits SD 1.5 and SDXL. 1 is for "
                    "distilled models and leaves out the negative prompt.",
                ),
                *_settings(),
            ],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced.")],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # two equal nodes would share one output, and what fired would show on one of them
        )

    @classmethod
    def validate_inputs(cls, mode: str | None) -> bool | str:
        return check_mode(mode)

    @classmethod
    def fingerprint_inputs(cls, strength: float | None = None, **_: Any) -> str:
        return _expect(cls, strength)

    @classmethod
    def execute(cls, *, model: Any, positive: Any, negative: Any, cfg: float, **settings: Any) -> io.NodeOutput:
        patched = guidance.patch_model(model, **settings, node_id=_node_id(cls))
        return io.NodeOutput(guidance.make_guider(patched, positive, negative, cfg=cfg))


class SafeCFGModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafeCFGModel",
            display_name="SafeCFG (Model)",
            category=CATEGORY,
            description="A model whose guidance redirects harmful directions, for KSampler and every other sampler. "
            "If the HGR finds nothing in the prompt, the picture is exactly the one that you get without this node.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to sample with. LoRAs and other patches may come before or after this node, "
                    "model merges only before it: they keep the patches of one model alone.",
                ),
                _hgr_input(),
                *_settings(),
            ],
            outputs=[io.Model.Output(tooltip="The same model with safe guidance. The input model is not changed.")],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # two equal nodes would share one output, and what fired would show on one of them
        )

    @classmethod
    def validate_inputs(cls, mode: str | None) -> bool | str:
        return check_mode(mode)

    @classmethod
    def fingerprint_inputs(cls, strength: float | None = None, **_: Any) -> str:
        return _expect(cls, strength)

    @classmethod
    def execute(cls, *, model: Any, **settings: Any) -> io.NodeOutput:
        return io.NodeOutput(guidance.patch_model(model, **settings, node_id=_node_id(cls)))


NODES = [SafeCFGGuider, SafeCFGModel]
