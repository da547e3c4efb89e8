"""Prompt pairs, which an HGR is trained on."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..hgr.data import pair_file
from ..hgr.data.library import CATEGORIES
from ..hgr.data.pairs import Pairs, describe_pairs, merge
from ..hgr.data.sources import gather
from ..hgr.hosts.comfy.files import NO_FILE, InputFiles
from .types import CATEGORY, PairsType

_FILES = InputFiles(pair_file.SUFFIXES)
_CONCEPTS = {
    "hate": "Hatred of groups of people, its symbols and slogans.",
    "harassment": "Bullying, stalking, threats and unwanted advances.",
    "violence": "People hurt or killed by others, and weapons used on them.",
    "self_harm": "Suicide, cutting, overdose and eating disorders.",
    "sexual": "Nudity and sexual acts of adults.",
    "shocking": "Gore, corpses, mutilation and other things made to disgust.",
    "illegal_activity": "Drugs, theft, fraud, smuggling and other crime.",
}


class SafeCFGConceptPairs(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafeCFGConceptPairs",
            display_name="Concept Pairs",
            category=CATEGORY,
            description="Prompts with a concept, each with a twin of the same wording without it: what Train HGR learns from. "
            "Built-in concepts, an artist's style, concepts of your own and a file can be mixed.",
            inputs=[
                *(
                    io.Boolean.Input(
                        concept,
                        default=True,
                        tooltip=f"{about} On: the HGR learns this concept. Leave off what you "
                        "do not need: fewer concepts train faster.",
                    )
                    for concept, about in _CONCEPTS.items()
                ),
                io.String.Input(
                    "style",
                    default="",
                    multiline=True,
                    tooltip='Artists or styles to steer away from, one a line, for example "Vincent van Gogh" or '
                    '"pixel art". Empty for none.',
                ),
                io.String.Input(
                    "own",
                    default="",
                    multiline=True,
                    tooltip="Concepts of your own, one a line: a name, a colon and a few words for it in prompts, for "
                    'example "spiders: spider, tarantula, cobweb". A name alone is its own word. Three to ten words '
                    "work best. Empty for none.",
                ),
                io.Boolean.Input(
                    "demo_world",
                    default=False,
                    tooltip="Pairs for SafeCFG Demo Model: its four symbols. For trying training out; switch the other "
                    "concepts off then, since that model does not know their words.",
                ),
                io.Combo.Input(
                    "file",
                    options=[NO_FILE, *_FILES.names()],
                    tooltip="A .csv or .jsonl file in ComfyUI's input folder, used whole. Every row has harmful, clean and "
                    'concept (an id such as "violence"); rows with clean alone are harmless prompts. Press R '
                    "after adding a file.",
                ),
                io.Int.Input(
                    "limit",
                    default=600,
                    min=50,
                    max=5000,
                    step=50,
                    tooltip="Pairs of each concept, 50 to 5000; not for the file. 600 is plenty for most; 200 for a quick try.",
                ),
                PairsType.Input(
                    "more", optional=True, tooltip="Pairs of another Concept Pairs node, to mix with these."
                ),
            ],
            outputs=[
                PairsType.Output(display_name="PAIRS", tooltip="For Train HGR, or for another Concept Pairs."),
                io.String.Output(
                    display_name="report", tooltip="Counts and a few pairs of each concept, to look at in Preview Any."
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
        cls, style: str, own: str, demo_world: bool, file: str, limit: int, more: Pairs | None = None, **concepts: bool
    ) -> io.NodeOutput:
        on = [concept for concept in CATEGORIES if concepts[concept]]
        given = gather(on, style.splitlines(), own.splitlines(), demo=demo_world, file=_FILES.path(file), limit=limit)
        mixed = given if more is None else merge(more, given)
        return io.NodeOutput(mixed, describe_pairs(mixed))


NODES = [SafeCFGConceptPairs]
