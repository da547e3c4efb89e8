"""Options that several commands share, and options made from a trainer's settings."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from ..core.options import DEFAULT_MODE, DEFAULT_SENSITIVITY, MODES, SENSITIVITIES
from ..training.settings import HGRSettings, LoRASettings

Settings = TypeVar("Settings", HGRSettings, LoRASettings)

MODEL: dict[str, Any] = {"model": None, "device": None}  # the defaults of `add_model`


def add_model(parser: argparse.ArgumentParser) -> None:
    """--model and --device."""
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="a model in diffusers' layout; default: the bundled model"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")


def add_hgr(parser: argparse.ArgumentParser, what: str = "the HGR made for the model") -> None:
    parser.add_argument("--hgr", type=Path, metavar="FILE", help=f"{what}; default for the bundled model: its own")


def add_sensitivity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sensitivity",
        choices=tuple(SENSITIVITIES),
        default=DEFAULT_SENSITIVITY,
        help='false alarms: a quarter, half, twice or five times those at "normal"',
    )


def add_guidance(parser: argparse.ArgumentParser) -> None:
    """--mode, --strength, --concepts and --sensitivity, as `SafeCFG` takes them."""
    parser.add_argument("--mode", choices=MODES, default=DEFAULT_MODE)
    parser.add_argument(
        "--strength", type=float, default=1.0, help="strength of all concepts, 0 (off) to about 2, default: %(default)s"
    )
    parser.add_argument("--concepts", default="", metavar="JSON", help="strength by concept id, e.g. '{\"skull\": 0}'")
    add_sensitivity(parser)


def hgr_file(given: argparse.Namespace, *, instead: str = "") -> Path:
    """The HGR to load. Raises ValueError for a model without the HGR made for it. instead: what else would help."""
    from ..demo import assets

    if given.model and not given.hgr:
        raise ValueError(f"--model needs the HGR that was made for it: give --hgr FILE{instead}.")
    return given.hgr or assets.HGR_FILE


def add_settings(parser: argparse.ArgumentParser, kind: type[HGRSettings] | type[LoRASettings]) -> None:
    """An option for each field of the settings, without a default of its own."""
    for field in dataclasses.fields(kind):
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type={int: int, float: float, str: str}[type(field.default)],  # a switch would need an option of its own
            choices=field.metadata["choices"] or None,
            metavar=None if field.metadata["choices"] else field.metadata["unit"],
            help=f"{field.metadata['help']}, default: {field.default}",
        )


def defaults(kind: type[HGRSettings] | type[LoRASettings]) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(kind)}


def settings_from(given: argparse.Namespace, kind: type[Settings], *, processes: int = 1) -> Settings:
    """The settings from the options. processes: how many, each with a batch of its own."""
    values = {field.name: getattr(given, field.name) for field in dataclasses.fields(kind)}
    return kind(**values | {"batch_size": values["batch_size"] * processes})
