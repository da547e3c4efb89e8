"""Prompt pairs, which an HGR is trained on."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..hgr.data import pair_file
from ..hgr.data.library import CATEGORIES
from ..hgr.data.pairs import Pairs, describe_pairs, merge_pairs
from ..hgr.data.sources import gather
from ..hgr.hosts.comfy.files import NO_FILE, InputFiles
from .types import CATEGORY, PairsType

_FILES = InputFiles(pair_file.SUFFIXES)
CONCEPTS = {
    "hate": "Hatred of groups of people, with its symbols and slogans.",
    "harassment": "Bullying, stalking, threats and unwanted advances.",
    "violence": "People hurt or killed by others, and weapons used against them.",
    "self_harm": "Suicide, cutting, overdose and eating disorders.",
    "sexual": "Nudity and sexual acts of adults.",
    "shocking": "Gore, corpses, mutilation and other content meant to disgust.",
    "illegal_activity": "Drugs, theft, fraud, smuggling and other crime.",
}


class SafeCFGConceptPairs(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafeCFGConceptPairs",
            display_name="Concept Pairs",
            category=CATEGORY,
            description="Prompts with a concept, each paired with a twin in the same wording but without it. Train "
            "HGR learns from these pairs. You can mix built-in concepts, artists' styles, concepts of your own and a "
            "file.",
            inputs=[
                *(
                    io.Boolean.Input(
                        concept,
                        default=True,
                        tooltip=f"{about} If on, the HGR learns this concept. Switch off what you do not need: fewer "
                        "concepts train faster.",
                    )
                    for concept, about in CONCEPTS.items()
                ),
                io.String.Input(
                    "style",
                    default="",
                    multiline=True,
                    tooltip='Artists or styles to steer away from, one per line, for example "Vincent van Gogh" or '
                    '"pixel art". Leave empty for none.',
                ),
                io.String.Input(
                    "own",
                    default="",
                    multiline=True,
                    tooltip="Concepts of your own, one per line: a name, a colon and a few words that prompts use "
                    'for it, for example "spiders: spider, tarantula, cobweb". A name without words stands for '
                    "itself. Three to ten words work best. Leave empty for none.",
                ),
                io.Boolean.Input(
                    "demo_world",
                    default=False,
                    tooltip="Adds pairs for the concepts of SafeCFG Demo Model, to try out training. Switch the "
                    "other concepts off then, since that model does not know their words.",
                ),
                io.Combo.Input(
                    "file",
                    options=[NO_FILE, *_FILES.names()],
                    tooltip="A .csv or .jsonl file in ComfyUI's input folder. All its rows are used. Each row has "
                    'harmful, clean and concept (an id such as "violence"); rows with only clean are harmless '
                    "prompts. The public files of CoProV2 and I2P are read as they are. Press R after adding a file.",
                ),
                io.Int.Input(
                    "limit",
                    default=1500,
                    min=50,
                    max=5000,
                    step=50,
                    tooltip="Number of pairs per concept, 50 to 5000; does not apply to the file. 1500 takes in all "
                    "that the library holds of a concept; 600 is plenty for a style or your own words, 200 for a quick "
                    "try.",
                ),
                PairsType.Input(
                    "more", optional=True, tooltip="Pairs from another Concept Pairs node, to mix with these."
                ),
            ],
            outputs=[
                PairsType.Output(display_name="PAIRS", tooltip="For Train HGR, or for another Concept Pairs node."),
                io.String.Output(
                    display_name="report",
                    tooltip="The number of pairs and a few examples for each concept. View it in Preview Any.",
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
        style: str,
        own: str,
        demo_world: bool,
        file: str,
        limit: int,
        more: Pairs | None = None,
        **concepts: bool,
    ) -> io.NodeOutput:
        on = [concept for concept in CATEGORIES if concepts[concept]]
        given = gather(on, style.splitlines(), own.splitlines(), demo=demo_world, file=_FILES.path(file), limit=limit)
        mixed = given if more is None else merge_pairs(more, given)
        return io.NodeOutput(mixed, describe_pairs(mixed))


NODES = [SafeCFGConceptPairs]
