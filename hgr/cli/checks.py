"""Checks of options before any work."""

from __future__ import annotations

import argparse
import math

SEEDS = (0, 2**63 - 1)  # those that every random generator takes
STEPS = (1, 1000)
CFG = STRENGTH = (0, math.inf)


def check_ranges(given: argparse.Namespace, **ranges: tuple[float, float]) -> None:
    """Raise ValueError for an option that is not a finite number from its range (low, high)."""
    for name, (low, high) in ranges.items():
        value = getattr(given, name)
        if not low <= value <= high or not math.isfinite(value):
            allowed = f"from {low} to {high}" if math.isfinite(high) else f"of {low} or more"
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be a number {allowed}.")
