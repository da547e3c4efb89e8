"""JSON as every program reads it, and bounded: what a hostile file holds costs little time."""

from __future__ import annotations

import json
import math
from typing import Any

from .excerpt import excerpt

_DEPTH = 16  # of lists and objects in each other
_DIGITS = 40  # of a whole number


def parse_json(text: str) -> Any:
    """The value of a JSON text. NaN and infinity, which Python writes though JSON has no word for them, become None.

    Raises ValueError, with a reason of bounded length, for text that is no JSON, a key that an object has twice, lists
    and objects more than 16 deep, a whole number of more than 40 digits, and half of a surrogate pair.
    """
    try:
        found = json.loads(
            text, parse_int=_whole, parse_float=_real, parse_constant=lambda _: None, object_pairs_hook=_object
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check(found)
    return found


def json_text(value: Any, *, indent: int | None = None) -> str:
    """A value as JSON; NaN and infinity become null. Raises TypeError for a value that JSON cannot hold."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number has {len(digits)} digits; at most {_DIGITS} are allowed")
    return int(digits)


def _real(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f'"{excerpt(key)}" is there twice')
        found[key] = value
    return found


def _check(found: Any) -> None:
    level = [found]
    for _ in range(_DEPTH + 1):
        inner: list[Any] = []
        for value in level:
            kind = type(value)
            if kind is dict:
                inner += value
                inner += value.values()
            elif kind is list:
                inner += value
            elif kind is str and not value.isascii():
                _check_text(value)
        if not inner:
            return
        level = inner
    raise ValueError(f"it is nested more than {_DEPTH} deep")


def _check_text(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("a text has half of a surrogate pair") from None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
