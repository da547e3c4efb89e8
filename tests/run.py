"""Run every test and close with one total. `make test` calls this once the environments are there.

    python tests/run.py [COMFYUI [OLDEST]]

COMFYUI is the folder of a ComfyUI, OLDEST that of the oldest one supported. Missing or empty: there is none.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
# The executables and not `python -m pytest`: that puts the root on sys.path, and this pack's `nodes` before ComfyUI's.
PYTEST = ROOT / ".venv/bin/pytest"
PYTEST_IN_COMFYUI = ROOT / ".venv-comfy/bin/pytest"
NO_TESTS = 5  # pytest's exit code; no failure of its own, as long as some run has tests


@dataclass
class Run:
    """One pytest run, counted."""

    name: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def run(name: str, pytest: Path, *arguments: str, comfyui: str = "") -> Run:
    """Run pytest and count from its JUnit report. A run that broke off counts as a failure, whatever it reported."""
    print(f"\n{name}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        environment = os.environ | ({"COMFYUI_PATH": comfyui} if comfyui else {})
        code = subprocess.run([pytest, *arguments, f"--junit-xml={report}"], cwd=ROOT, env=environment).returncode
        suite = ElementTree.parse(report).find("testsuite").attrib if report.exists() else {}
    total, failures, errors, skipped = (int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped"))
    failed = failures + errors
    return Run(name, total - failed - skipped, max(failed, code not in (0, NO_TESTS)), skipped)


def skip_host() -> Run:
    """Without ComfyUI: how many tests are not run. They must be collected all the same, so that none goes missing unnoticed."""
    command = [PYTEST, "--collect-only", "-q", "tests/host"]
    collected = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if collected.returncode not in (0, NO_TESTS):
        print(collected.stdout, collected.stderr, "tests/host: cannot be collected without ComfyUI", sep="\n")
        return Run("tests/host", failed=1)
    return Run("tests/host", skipped=sum("::" in line for line in collected.stdout.splitlines()))


def version(comfyui: str) -> str:
    return re.search(r'__version__ = "(.+)"', Path(comfyui, "comfyui_version.py").read_text())[1]


def main(comfyui: str = "", oldest: str = "") -> int:
    runs = [run("tests", PYTEST, "tests", "--ignore=tests/host")]
    if comfyui:
        runs.append(run(f"tests/host in ComfyUI {version(comfyui)}", PYTEST_IN_COMFYUI, "tests/host", comfyui=comfyui))
        if oldest:
            name = f"tests/host in ComfyUI {version(oldest)}, the oldest"
            runs.append(run(name, PYTEST_IN_COMFYUI, "tests/host", "-m", "oldest", comfyui=oldest))
    else:
        runs.append(skip_host())

    if comfyui and not oldest:
        print("\nThe oldest supported ComfyUI is not here (COMFYUI_OLDEST_PATH, or ~/comfy/ComfyUI-0.8.0): nothing was tested on it.")
    print()
    for each in runs:
        print(f"{each.name} - {each}")
    if not comfyui:
        print(f"tests/host: SKIPPED, {runs[-1].skipped} tests not run: no ComfyUI found. To run them: "
              "git clone https://github.com/comfyanonymous/ComfyUI ~/comfy/ComfyUI, or name yours in COMFYUI_PATH; then make test.")
    total = Run("total", *(sum(getattr(each, field) for each in runs) for field in ("passed", "failed", "skipped")))
    print(total)
    return 1 if total.failed or not total.passed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
