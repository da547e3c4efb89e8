"""An operator's policy: what every sampling run of a server must keep to, as a JSON file. Knows no host and no torch.

    {"hgr": ["sd15.safetensors"], "strength": 1.0, "pictures": "blur", "judge": {"checkpoint": ..., "hgr": ...}}

`docs/policy.md` explains each setting. A setting that is left out has the value of `Policy`, which is the safe one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .errors import HGRError
from .excerpt import excerpt
from .json_text import json_text, parse_json
from .options import DEFAULT_MODE, DEFAULT_SENSITIVITY, MODES, SENSITIVITIES

VERSION = 1
AUTO = "auto"
REFUSE, ALLOW = "refuse", "allow"
# What brings content into a picture that no text says.
BESIDE_TEXT = ("lora", "ip_adapter", "image_to_image")
PICTURES = ("off", "flag", "blur", "blank")
AUDIT = ("off", "on", "with text")


class PolicyError(HGRError):
    """Something that the policy does not allow, or a policy that cannot be used: a sentence for each fault."""


@dataclass(frozen=True)
class Judge:
    """What judges pictures: names of a file in models/checkpoints and of one in models/hgr, whose probe it is."""

    checkpoint: str
    hgr: str


@dataclass(frozen=True)
class Policy:
    """What holds for every sampling run.

    hgr: file names in models/hgr, or () for "auto", those that are there when the server starts.
    strength: the least, of all concepts; concepts: by id, times it. What is named above 0 the HGR must have; what is
        not named counts as 1.
    no_hgr: if no HGR fits the prompt's text encoder. unread_text: if a run has text that SafeCFG cannot see.
    unjudged: those of `BESIDE_TEXT` that may act on pictures that are not judged.
    pictures: what happens to a picture in which the judge finds a concept before it is saved or shown.
    """

    version: int = VERSION
    hgr: tuple[str, ...] = ()
    strength: float = 1.0
    concepts: dict[str, float] = field(default_factory=dict)
    sensitivity: str = DEFAULT_SENSITIVITY
    mode: str = DEFAULT_MODE
    no_hgr: str = REFUSE
    unread_text: str = REFUSE
    unjudged: tuple[str, ...] = ()
    pictures: str = "off"
    judge: Judge | None = None
    audit: str = "off"

    @property
    def required(self) -> set[str]:
        """The concepts that an HGR must have."""
        return {id for id, strength in self.concepts.items() if strength > 0}

    def strengths(self, ids: list[str]) -> list[float]:
        """The least strength of each concept of an HGR."""
        return [self.strength * self.concepts.get(id, 1.0) for id in ids]

    def about(self) -> dict[str, Any]:
        """The policy as its file has it, every setting named; without paths."""
        shown = {each.name: getattr(self, each.name) for each in fields(self)}
        judge = self.judge and {"checkpoint": self.judge.checkpoint, "hgr": self.judge.hgr}
        return shown | {"hgr": list(self.hgr) or AUTO, "unjudged": list(self.unjudged), "judge": judge}


def read_policy(path: Path) -> Policy:
    """The policy in a file. Raises PolicyError with a sentence for each mistake, OSError for a file that cannot be
    read."""
    try:
        return parse_policy(path.read_text("utf-8-sig"))
    except UnicodeDecodeError:
        raise PolicyError("it is not UTF-8 text.") from None


def parse_policy(text: str) -> Policy:
    """The policy of a file's text. Raises PolicyError with a sentence for each mistake."""
    try:
        given = parse_json(text)
    except ValueError as error:
        raise PolicyError(f"it is not valid JSON ({excerpt(error)}).") from None
    if not isinstance(given, dict):
        raise PolicyError(f'it must be a JSON object such as {{"hgr": "{AUTO}"}}.')
    if faults := [fault for key, value in given.items() if (fault := _fault(key, value))]:
        raise PolicyError(" ".join(faults))
    made = {key: value for key, value in given.items() if value is not None}
    names = made.pop("hgr", AUTO)
    judge = made.pop("judge", None)
    policy = Policy(
        **made
        | {
            "hgr": () if names == AUTO else tuple(names),
            "unjudged": tuple(made.get("unjudged", ())),
            "judge": Judge(**judge) if judge else None,
        }
    )
    if policy.pictures != "off" and policy.judge is None:
        raise PolicyError(
            f'pictures is "{policy.pictures}", which needs judge: {{"checkpoint": a file in models/checkpoints, "hgr": '
            "one in models/hgr with a picture probe for it}."
        )
    return policy


def _fault(key: str, value: Any) -> str:
    """What is wrong with a setting, in one sentence; empty if nothing."""
    if key not in _RULES:
        return f'"{excerpt(key)}" is unknown: the settings are {", ".join(_RULES)}.'
    allowed, rule = _RULES[key]
    return "" if allowed(value) else f"{key} is {excerpt(json_text(value))}, but must be {rule}."


def _is_number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_list(value: Any, allowed: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(allowed, value)) and len(set(value)) == len(value)


def _one_of(names: Any) -> tuple[Callable[[Any], bool], str]:
    return lambda value: isinstance(value, str) and value in names, "one of " + ", ".join(f'"{name}"' for name in names)


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "version": (lambda value: value == VERSION and type(value) is int, f"{VERSION}, the only one that there is"),
    "hgr": (
        lambda value: value == AUTO or (bool(value) and _is_list(value, _is_name)),
        f'"{AUTO}" or a list of names of files in models/hgr, each once',
    ),
    "strength": (
        lambda value: _is_number(value, 0.05, 2),
        "a number from 0.05 to 2; to do without a policy, remove its file",
    ),
    "concepts": (
        lambda value: isinstance(value, dict) and all(_is_number(each, 0, 2) for each in value.values()),
        "an object of numbers from 0 (off) to 2 by concept id",
    ),
    "sensitivity": _one_of(SENSITIVITIES),
    "mode": _one_of(MODES),
    "no_hgr": _one_of((REFUSE, ALLOW)),
    "unread_text": _one_of((REFUSE, ALLOW)),
    "unjudged": (
        lambda value: _is_list(value, lambda each: each in BESIDE_TEXT),
        f"a list with some of {', '.join(BESIDE_TEXT)}, each once",
    ),
    "pictures": _one_of(PICTURES),
    "judge": (
        lambda value: (
            value is None
            or (isinstance(value, dict) and set(value) == {"checkpoint", "hgr"} and all(map(_is_name, value.values())))
        ),
        "an object with two names, checkpoint and hgr",
    ),
    "audit": _one_of(AUDIT),
}
