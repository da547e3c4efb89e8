"""Run every test and close with one total. `make test` calls this once the environments are there.

    python tests/run.py [COMFYUI [OLDEST]]

COMFYUI is the folder of a ComfyUI, OLDEST that of the oldest one supported. Missing or empty: there is none.
"""

from __future__ import annotations

import os
import re
import shutil
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
NO_COMFYUI = (
    "no ComfyUI found: git clone https://github.com/comfyanonymous/ComfyUI ~/comfy/ComfyUI, "
    "or name yours in COMFYUI_PATH"
)
# A process for each core, each with one thread: torch's own threads would wait for each other.
PARALLEL = ["-n", "auto", "--dist", "loadfile"]
NO_TESTS = 5  # pytest's exit code; no failure of its own, as long as some run has tests


@dataclass
class Run:
    """One run of a test runner, counted."""

    name: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    why: str = ""  # tests are skipped

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def run(name: str, pytest: Path, *arguments: str, **environment: str) -> Run:
    """Run pytest and count from its JUnit report. A run that broke off counts as a failure, whatever it reported."""
    print(f"\n{name}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [pytest, *arguments, f"--junit-xml={report}"]
        code = subprocess.run(command, cwd=ROOT, env=os.environ | environment).returncode
        suite = ElementTree.parse(report).find("testsuite").attrib if report.exists() else {}
    total, failures, errors, skipped = (int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped"))
    failed = failures + errors
    return Run(name, total - failed - skipped, max(failed, code not in (0, NO_TESTS)), skipped)


def run_javascript() -> Run:
    """The editor extension's units by Node's own runner; counted as skipped without one."""
    files, name = sorted((ROOT / "tests/js").glob("*.test.mjs")), "tests/js"
    node = shutil.which("node")
    if node is None:
        count = sum(len(re.findall(r"^test\(", file.read_text(), re.MULTILINE)) for file in files)
        return Run(name, skipped=count, why="no Node.js found: install node 20 or newer")
    print(f"\n{name}", flush=True)
    done = subprocess.run([node, "--test", "--test-reporter=tap", *files], cwd=ROOT, capture_output=True, text=True)
    count = {
        key: int(found[1]) if (found := re.search(rf"^# {key} (\d+)", done.stdout, re.MULTILINE)) else 0
        for key in ("pass", "fail", "cancelled", "skipped")
    }
    failed = max(count["fail"] + count["cancelled"], done.returncode != 0)
    print(done.stdout + done.stderr if failed else f"{count['pass']} passed")
    return Run(name, count["pass"], failed, count["skipped"])


def skip(name: str, why: str) -> Run:
    """Tests that are not run. They must be collected all the same, so that none goes missing unnoticed."""
    collected = subprocess.run([PYTEST, "--collect-only", "-q", name], cwd=ROOT, capture_output=True, text=True)
    if collected.returncode not in (0, NO_TESTS):
        print(collected.stdout, collected.stderr, f"{name}: cannot be collected without ComfyUI", sep="\n")
        return Run(name, failed=1)
    return Run(name, skipped=sum("::" in line for line in collected.stdout.splitlines()), why=why)


def version(comfyui: str) -> str:
    return re.search(r'__version__ = "(.+)"', Path(comfyui, "comfyui_version.py").read_text())[1]


def main(comfyui: str = "", oldest: str = "") -> int:
    units = ["tests", "--ignore=tests/host", "--ignore=tests/browser", *PARALLEL]
    runs = [run("tests", PYTEST, *units, OMP_NUM_THREADS="1"), run_javascript()]
    if comfyui:
        host, alone = ["tests/host", *PARALLEL], {"OMP_NUM_THREADS": "1"}
        name = f"tests/host in ComfyUI {version(comfyui)}"
        runs.append(run(name, PYTEST_IN_COMFYUI, *host, COMFYUI_PATH=comfyui, **alone))
        runs.append(run("tests/browser", PYTEST_IN_COMFYUI, "tests/browser", COMFYUI_PATH=comfyui))
        if runs[-1].skipped:
            runs[-1].why = "no Chromium found: apt-get install chromium, or the like"
        if oldest:
            name = f"tests/host in ComfyUI {version(oldest)}, the oldest"
            runs.append(run(name, PYTEST_IN_COMFYUI, *host, "-m", "oldest", COMFYUI_PATH=oldest, **alone))
    else:
        runs += [skip(name, NO_COMFYUI) for name in ("tests/host", "tests/browser")]

    if comfyui and not oldest:
        print(
            "\nThe oldest supported ComfyUI is not here (COMFYUI_OLDEST_PATH, or ~/comfy/ComfyUI-0.8.0): "
            "nothing was tested on it."
        )
    print()
    for each in runs:
        print(f"{each.name} - {each}")
    for each in runs:
        if each.skipped and each.why:
            print(f"{each.name}: SKIPPED, {each.skipped} tests not run: {each.why}; then make test.")
    total = Run("total", *(sum(getattr(each, field) for each in runs) for field in ("passed", "failed", "skipped")))
    print(total)
    return 1 if total.failed or not total.passed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
