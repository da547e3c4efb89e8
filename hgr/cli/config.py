"""A command's options from a JSON file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

from ..core.excerpt import excerpt


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def merged(
    given: argparse.Namespace,
    options: Callable[[argparse.ArgumentParser], None],
    defaults: dict[str, Any],
    *,
    switches: Collection[str] = (),
    objects: Collection[str] = (),
) -> argparse.Namespace:
    """The defaults, replaced by the values of --config, replaced by the command line's; see `read_config`."""
    options_given = vars(given)
    if "config" in options_given:
        from_file = read_config(given.config, options, list(defaults), switches=switches, objects=objects)
        options_given = from_file | options_given
    return argparse.Namespace(**(defaults | options_given))


def read_config(
    path: Path,
    options: Callable[[argparse.ArgumentParser], None],
    names: list[str],
    *,
    switches: Collection[str] = (),
    objects: Collection[str] = (),
) -> dict[str, Any]:
    """Command-line options from a JSON file, such as {"steps": 500, "concepts": ["violence"], "demo": true}.

    options: adds them to a parser.
    names: their names, with underscores; the file may have dashes instead.
    switches: options without a value.
    objects: options whose value is itself JSON.

    Raises ValueError, naming the file and the key, for an unknown key and for a value that the option does not take.
    """
    file = excerpt(path.name)
    try:
        given = json.loads(path.read_text("utf-8-sig"), parse_constant=_refuse)
        json.dumps(given)  # what is nested too deeply fails here, and not where an error shows it
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not valid JSON ({excerpt(error)}).") from None
    if not isinstance(given, dict):
        raise ValueError(f'{file}: must be a JSON object such as {{"steps": 500}}.')
    parser = _Parser(argument_default=argparse.SUPPRESS, allow_abbrev=False, add_help=False)
    options(parser)
    found = argparse.Namespace()
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in names:
            known = ", ".join(each.replace("_", "-") for each in names)
            raise ValueError(f'{file}: "{excerpt(key)}" is unknown; the options are {known}.')
        if value is None:
            continue
        if name in objects and isinstance(value, dict):
            words = [json.dumps(value)]
        elif name in switches and isinstance(value, bool):
            words = [""] if value else []
        elif name not in switches and all(type(each) in (str, int, float) for each in _listed(value)):
            words = [str(each) for each in _listed(value)]
        else:
            wanted = "true or false" if name in switches else "a number, a string or a list of strings"
            raise ValueError(f'{file}: "{key}" is {excerpt(json.dumps(value))}, but must be {wanted}.')
        flag = "--" + name.replace("_", "-")
        try:
            parser.parse_args([flag if name in switches else f"{flag}={word}" for word in words], found)
        except ValueError as error:
            raise ValueError(f"{file}: {excerpt(error, 300)}.") from None
    return vars(found)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number")
