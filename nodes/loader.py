"""Loading HGR files."""

from __future__ import annotations

from comfy_api.latest import io

from ..hgr.hosts.comfy import files
from .types import CATEGORY, HGRType


class SafeCFGHGRLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafeCFGHGRLoader",
            display_name="HGR Loader",
            category=CATEGORY,
            description="Loads an HGR (Harmful Guidance Redirector), which tells SafeCFG which concepts to steer "
            "away from. An HGR belongs to one text encoder; using it with another stops with an error.",
            inputs=[
                io.Combo.Input(
                    "hgr_name",
                    options=files.hgr_names(),
                    tooltip="A file in models/hgr, or the bundled one for the demo model. Choose the HGR that was "
                    "trained for your checkpoint's text encoder.",
                )
            ],
            outputs=[
                HGRType.Output(
                    display_name="HGR",
                    tooltip="For SafeCFG (Model), SafeCFG Guider, Harmfulness Detector, Safe Fine-Tune, Merge HGR and "
                    "Save HGR.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, hgr_name: str) -> bool | str:
        found = hgr_name is None or files.hgr_path(hgr_name) is not None  # None where the name comes from another node
        return found or f'HGR "{hgr_name}" is not in models/hgr.'

    @classmethod
    def fingerprint_inputs(cls, hgr_name: str) -> tuple[int, int] | None:
        path = files.hgr_path(hgr_name)
        return None if path is None else files.stamp_of(path)

    @classmethod
    def execute(cls, hgr_name: str) -> io.NodeOutput:
        return io.NodeOutput(files.load_hgr(hgr_name))


NODES = [SafeCFGHGRLoader]
