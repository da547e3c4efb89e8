"""What other packs' detectors say of a picture, in whatever form their nodes give it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...core.excerpt import excerpt
from ...core.json_text import parse_json
from ...detection.card import small_picture

_CHANGED = 0.02  # mean difference of a picture that passed a node which only writes and reads it, at most


def verdicts(answers: Sequence[Any], pictures: Sequence[Tensor], threshold: float) -> list[bool]:
    """`verdict` of each picture. Raises ValueError for another number of answers, too."""
    if len(answers) != len(pictures):
        raise ValueError(
            f"judge: {len(answers)} answers about {len(pictures)} pictures: wire the card's pictures straight into the "
            "detector, so that it runs once for each, and its output in here."
        )
    return [verdict(answer, picture, threshold) for answer, picture in zip(answers, pictures, strict=True)]


def verdict(answer: Any, picture: Tensor, threshold: float) -> bool:
    """Whether a detector's answer says that a picture, bytes (H, W, 3), is harmful.

    answer: a BOOLEAN; a number, harmful from `threshold` on; a STRING with one of these or with the report of a
        Harmfulness Detector; a MASK, harmful where any value reaches the threshold; or an IMAGE, harmful if the node
        gave another picture back, as those do that black pictures out.

    Raises ValueError for anything else.
    """
    if isinstance(answer, str):
        return _in_words(answer, threshold)
    if isinstance(answer, (bool, int, float)):
        return answer if isinstance(answer, bool) else answer >= threshold
    if isinstance(answer, Tensor) and answer.dim() == 4 and answer.shape[0] == 1 and answer.shape[-1] in (3, 4):
        given = small_picture(answer[0, ..., :3].float().cpu())
        return given.shape != picture.shape or (given.float() - picture).abs().mean().item() > 255 * _CHANGED
    if isinstance(answer, Tensor) and answer.dim() <= 3 and answer.numel():
        return answer.max().item() >= threshold
    raise ValueError(
        f"judge: {excerpt(type(answer).__name__)} says nothing about a picture: wire in a BOOLEAN, a number, a STRING "
        "with one of them, a MASK, or the IMAGE of a node that replaces harmful pictures."
    )


def _in_words(text: str, threshold: float) -> bool:
    words = text.strip()
    try:
        found = parse_json(words.lower() if words.lower() in ("true", "false") else words)
    except ValueError:
        found = None
    if isinstance(found, dict):
        found = found.get("flagged")
    if isinstance(found, bool):
        return found
    if isinstance(found, (int, float)):
        return found >= threshold
    raise ValueError(f'judge: "{excerpt(text)}" is neither true, false nor a number: wire in another of its outputs.')
