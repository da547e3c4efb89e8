"""Arrows run one way: the method knows no host, and importing it loads none."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hgr

HGR = Path(hgr.__file__).parent
METHOD = sorted(
    path for path in HGR.glob("*.py") if path.name != "__main__.py"
)  # the command line is hgr/cli, above the hosts
ALLOWED = {"torch", "safetensors", "numpy", "einops", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", METHOD, ids=lambda p: p.name)
def test_the_method_imports_nothing_but_what_every_host_has(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name.partition(".")[0] for alias in node.names} <= ALLOWED
        elif isinstance(node, ast.ImportFrom):
            assert node.level or node.module.partition(".")[0] in ALLOWED
            assert not (node.module or "").startswith(("hosts", "demo")), "the method must not know a host or the demo"


def test_what_comfyui_loads_of_the_demo_needs_no_diffusers():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('diffusers', 'transformers', 'accelerate', 'PIL')));"
        "import hgr.demo.assets, hgr.file, hgr.safecfg, hgr.detect, hgr.training"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HGR.parent)


def test_the_version_is_the_same_in_both_places():
    text = (HGR.parent / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.+?)"', text, re.M)[1] == hgr.__version__
