"""Training an HGR for the user's own model, and what it does there."""

from __future__ import annotations

import argparse


def add(commands: argparse._SubParsersAction) -> None:
    pass
