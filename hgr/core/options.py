"""What a user chooses for guidance and detection. Imports no torch, since the command line reads it before torch."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable

log = logging.getLogger("safecfg")

# The two scales of each mode: `a` moves the conditional features, `b` the unconditional ones the other way.
# redirect follows the paper's v1 (HGR), dynamic its v2 (Dynamic Safe Guidance); the formulas are this project's own.
MODES = {"redirect": (1.0, 0.0), "dynamic": (0.0, 1.0), "balanced": (0.5, 1.0)}
DEFAULT_MODE = "redirect"

# How sensitive detection is: its false-positive rate as a multiple of the one that the HGR was calibrated for.
SENSITIVITIES = {"lowest": 0.25, "low": 0.5, "normal": 1.0, "high": 2.0, "highest": 5.0}
DEFAULT_SENSITIVITY = "normal"


def concept_strengths(text: str, ids: Iterable[str]) -> list[float]:
    """The strength of each concept id from the user's JSON, e.g. `{"violence": 1.0, "shocking": 0}`.

    A missing id means 1.0; an empty text means all at 1.0; true and false mean 1.0 and 0. An unknown id is ignored with
    one warning. Raises ValueError for text that is not a JSON object of numbers in [0, 2].
    """
    try:
        given = json.loads(text) if text.strip() else {}
    except json.JSONDecodeError as error:
        example = '{"violence": 1.0, "shocking": 0}'
        raise ValueError(f"concepts is not valid JSON ({error}). Write, for example, {example}.") from None
    if not isinstance(given, dict):
        raise ValueError(f"concepts: expected a JSON object of strengths by concept id, got {type(given).__name__}.")
    for key, value in given.items():
        if not isinstance(value, (int, float)) or not 0 <= value <= 2:  # NaN is in no range
            raise ValueError(f'concepts: the strength of "{key}" is {value!r}; it must be a number from 0 (off) to 2.')
    ids = list(ids)
    unknown = sorted(set(given) - set(ids))
    if unknown:
        log.warning("concepts: this HGR does not know %s; ignored. It knows %s.", ", ".join(unknown), ", ".join(ids))
    return [float(given.get(key, 1.0)) for key in ids]
