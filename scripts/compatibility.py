"""Writes the tables of docs/compatibility.md from a run of tests/host/test_compatibility.py in ComfyUI.

    .venv-comfy/bin/python scripts/compatibility.py

ComfyUI is found as the tests find it: by COMFYUI_PATH, above custom_nodes, or in ~/comfy/ComfyUI.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / folder) for folder in ("tests/host", "benchmarks")]
from measure import markdown, write_between  # noqa: E402 (it lies with the benchmarks)
from server_kit import find_comfyui, version_of  # noqa: E402 (it lies with the tests)

TITLES = {"OWN": "In ComfyUI's own nodes", "STAND_INS": "In stand-ins for what other packs do"}


class Rows:
    """A pytest plugin that keeps what the tests record."""

    def __init__(self):
        self.found: list[tuple[str, str, int, int, bool]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.found += [value for name, value in report.user_properties if name == "row"]


def main() -> None:
    comfyui, rows = find_comfyui(), Rows()
    if comfyui is None:
        sys.exit("no ComfyUI found: set COMFYUI_PATH to its folder")
    code = pytest.main(["-q", "--show-capture=no", str(ROOT / "tests/host/test_compatibility.py")], plugins=[rows])
    parts = [f"ComfyUI {'.'.join(map(str, version_of(comfyui)))}, two pictures each, seed 3."]
    for group, title in TITLES.items():
        cells = [
            [name, f"{plain} of 2", f"{safe} of 2", "identical" if same else "**different**"]
            for found, name, plain, safe, same in rows.found
            if found == group
        ]
        parts.append(markdown([title, "skull without SafeCFG", "with it", "clean prompt"], cells))
    write_between(ROOT / "docs/compatibility.md", "compatibility", "\n\n".join(parts))
    sys.exit(code)


if __name__ == "__main__":
    main()
