"""An operator's policy: checks and shows its file, and verifies that a running server keeps to it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ...core.excerpt import excerpt
from ...core.json_text import json_text
from ...core.policy import Policy, PolicyError, read_policy
from ...core.policy_file import FILE_NAME, VARIABLE
from ..tables import aligned


def add(commands: argparse._SubParsersAction) -> None:
    policy = commands.add_parser("policy", help="check and show a server's policy, and verify that it holds")
    parts = policy.add_subparsers(required=True, metavar="ACTION")
    check = parts.add_parser("check", help="say what is wrong with a policy file, if anything")
    check.add_argument("file", type=Path)
    check.set_defaults(run=_check)
    show = parts.add_parser("show", help="show every setting of a policy file, those that it leaves out too")
    show.add_argument("file", type=Path, nargs="?", help=f"{FILE_NAME}; without it, the file that {VARIABLE} names")
    show.set_defaults(run=_show)
    verify = parts.add_parser("verify", help="queue a few graphs of the demo model and say what came out of them")
    verify.add_argument("--server", required=True, metavar="URL", help="such as http://127.0.0.1:8188")
    verify.set_defaults(run=_verify)


def _check(given: argparse.Namespace) -> None:
    _read(given.file)
    print(f"{excerpt(given.file.name)}: a sound policy. Whether its files are there the server says when it starts.")


def _show(given: argparse.Namespace) -> None:
    named = given.file or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is None:
        raise ValueError(f"name a policy file, or set {VARIABLE}.")
    rows = [(name, json_text(value)) for name, value in _read(named).about().items()]
    print(aligned([("setting", "value"), *rows]))


def _read(path: Path) -> Policy:
    try:
        return read_policy(path)
    except PolicyError as error:
        raise PolicyError(f"{excerpt(path.name)}: {error}") from None


def _verify(given: argparse.Namespace) -> int:
    from ..policy_graphs import verify

    rows, holds = verify(given.server)
    print(aligned([("graph", "what came out"), *rows]))
    print("\nThe policy holds." if holds else "\nTHE POLICY DOES NOT HOLD.")
    return int(not holds)
