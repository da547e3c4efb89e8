"""What a user chooses for guidance and detection. Imports no torch, since the command line reads it before torch."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from .excerpt import excerpt
from .json_text import json_text, parse_json

log = logging.getLogger("safecfg")

# redirect follows the paper's v1 (HGR), dynamic its v2 (Dynamic Safe Guidance); the formulas are this project's own.
MODES = ("redirect", "dynamic")
DEFAULT_MODE = "redirect"
# Modes of earlier versions, which saved workflows may name, and the mode that each is now.
FORMER_MODES = {"balanced": "dynamic"}

# How sensitive detection is: its false-positive rate as a multiple of the one that the HGR was calibrated for.
SENSITIVITIES = {"lowest": 0.25, "low": 0.5, "normal": 1.0, "high": 2.0, "highest": 5.0}
DEFAULT_SENSITIVITY = "normal"

_GUESSED = 8  # unknown ids for which a similar one is sought


def known_mode(name: str) -> str:
    """One of `MODES`: for a former mode the one that it is now, with a warning. Raises ValueError for other names."""
    if name in FORMER_MODES:
        log.warning('mode "%s" no longer exists: it now does what "%s" does.', name, FORMER_MODES[name])
        return FORMER_MODES[name]
    if name not in MODES:
        raise ValueError(f"mode: {excerpt(repr(name))} is unknown; it must be one of {', '.join(MODES)}.")
    return name


def concept_strengths(text: str, ids: Iterable[str]) -> list[float]:
    """The strength of each concept id from the user's JSON, e.g. `{"violence": 1.0, "shocking": 0}`.

    A missing id means 1.0; an empty text means all at 1.0; true and false mean 1.0 and 0. Case and surrounding spaces
    do not matter, but what is written exactly counts. An unknown id may belong to another HGR: it is ignored, with one
    warning that names the most similar one. Raises ValueError for text that is not a JSON object of numbers in [0, 2],
    and if it names a concept twice.
    """
    ids = list(ids)
    names: dict[str, list[str]] = {}
    for id in ids:
        names.setdefault(id.strip().casefold(), []).append(id)
    found: dict[str, float] = {}
    unknown: list[str] = []
    given = _object(text)
    for key, value in given.items():
        if not isinstance(value, (int, float)) or not 0 <= value <= 2:
            raise ValueError(
                f'concepts: the strength of "{excerpt(key)}" is {excerpt(json_text(value))}; it must be a number from '
                "0 (off) to 2."
            )
        same = names.get(key.strip().casefold(), [])
        if len(same) > 1 and key not in same:
            raise ValueError(f'concepts: "{excerpt(key)}" may be {excerpt(" or ".join(same))}; write one of them.')
        id = key if key in same else next(iter(same), None)
        if id is None or (key != id and id in given):  # what is written exactly counts
            unknown.append(key)
        elif id in found:
            raise ValueError(f'concepts: "{excerpt(id)}" has two strengths; give one.')
        else:
            found[id] = float(value)
    if unknown:
        log.warning(
            "concepts: this HGR does not know %s; ignored%s. It knows %s.",
            excerpt(", ".join(unknown)),
            _similar(unknown, names),
            excerpt(", ".join(ids), 400),
        )
    return [found.get(id, 1.0) for id in ids]


def _object(text: str) -> dict[str, Any]:
    """The user's JSON object. Raises ValueError for anything else."""
    try:
        given = parse_json(text) if text.strip() else {}
    except ValueError as error:
        example = '{"violence": 1.0, "shocking": 0}'
        raise ValueError(f"concepts is not valid JSON ({error}). Write, for example, {example}.") from None
    if not isinstance(given, dict):
        raise ValueError(f"concepts: expected a JSON object of strengths by concept id, got {type(given).__name__}.")
    return given


def _similar(unknown: list[str], names: dict[str, list[str]]) -> str:
    """For the warning: the ids that the user may have meant. names: the ids by their names without case."""
    near = [name for key in unknown[:_GUESSED] for name in get_close_matches(excerpt(key).casefold(), names, 1)]
    meant = dict.fromkeys(id for name in near for id in names[name])
    return f" (did you mean {excerpt(', '.join(meant))}?)" if meant else ""
