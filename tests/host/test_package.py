"""The pack as users install it: what the registry's archive holds, started in a fresh ComfyUI; what importing it costs;
its metadata."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_kit import NODES, ROOT, Server, running_server

PYPROJECT = (ROOT / "pyproject.toml").read_text()
# There wherever ComfyUI runs, and never installed by a pack
HOST = {"torch", "aiohttp", "comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths"}
HOST |= {"execution", "latent_preview", "nodes", "server"}
# What of `hgr` runs only outside ComfyUI: the command line, diffusers, and what judges pictures of the demo world.
OUTSIDE = re.compile(r"hgr/(__main__|cli/|hosts/diffusers/|demo/classifier\b)")

# As ComfyUI loads a pack, after all that it has loaded itself by then; prints which modules that brings.
LOADING = """
import asyncio, importlib.util, json, sys, types
pack, comfyui, base = sys.argv[1:]
sys.path[0], sys.argv = comfyui, sys.argv[:1]
from comfy.cli_args import args
args.cpu, args.base_directory = True, base
import utils.extra_config, aiohttp.web, nodes, server
asyncio.run(nodes.init_builtin_extra_nodes())
server.PromptServer.instance = types.SimpleNamespace(routes=aiohttp.web.RouteTableDef())
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("pack", pack + "/__init__.py", submodule_search_locations=[pack])
sys.modules["pack"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
async def load():
    return [node.GET_NODE_INFO_V1() for node in await (await module.comfy_entrypoint()).get_node_list()]
assert asyncio.run(load())
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments, "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.split("\0")[:-1]


@pytest.fixture(scope="module")
def archive() -> list[str]:
    """What the registry packs: the files that git tracks, without those of .comfyignore."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout: nobody knows which files are tracked")
    return sorted(set(git("ls-files")) - set(git("ls-files", "--cached", "--ignored", "--exclude-from=.comfyignore")))


@pytest.fixture(scope="module")
def server(archive: list[str], comfyui_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ComfyUI with nothing but the archive's files as a pack."""
    pack = tmp_path_factory.mktemp("archive")
    for name in archive:
        target = pack / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    with running_server(comfyui_path, tmp_path_factory.mktemp("fresh"), pack) as server:
        yield server


def test_the_archive_holds_nothing_that_only_developers_need(archive):
    assert {path.partition("/")[0] for path in archive if "/" in path} == {
        "example_workflows",
        "hgr",
        "locales",
        "nodes",
        "subgraphs",
        "web",
    }
    assert {path for path in archive if "/" not in path} == {
        "__init__.py",
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "requirements.txt",
    }
    assert sum((ROOT / path).stat().st_size for path in archive) < 20e6


@pytest.mark.oldest
def test_a_fresh_comfyui_starts_without_a_word_against_the_pack(server, comfyui_path):
    """One line of the log names it: how long it took to load. A warning or a traceback would have the pack's path or
    name. Folders that merely have such a name, as a clone's often has, do not count."""
    log = server.log.read_text()
    folders = [sys.executable, sys.prefix, comfyui_path, server.base, ROOT]
    for path in sorted({str(p) for folder in folders for p in (folder, Path(folder).resolve())}, key=len, reverse=True):
        log = log.replace(path, "")
    named = [line for line in log.splitlines() if re.search(r"safecfg|hgr", line, re.IGNORECASE)]
    assert len(named) == 1 and re.search(r"\d seconds: /custom_nodes/safecfg$", named[0]), named


@pytest.mark.oldest
def test_the_archive_runs(server, archive):
    """Every node, and the files that they need: the quick start as far as a picture, and prompt pairs of every
    concept."""
    info = server.json("/object_info")
    assert set(NODES) <= {name for name, node in info.items() if node["category"] == "SafeCFG"}
    sample = {
        "1": {"class_type": "SafeCFGDemoModel", "inputs": {}},
        "2": {"class_type": "SafeCFGHGRLoader", "inputs": {"hgr_name": "safecfg_demo (bundled)"}},
        "3": {
            "class_type": "SafeCFGModel",
            "inputs": {
                "model": ["1", 0],
                "hgr": ["2", 0],
                "strength": 1.0,
                "mode": "redirect",
                "concepts": "",
                "start_percent": 0.0,
                "end_percent": 1.0,
            },
        },
        "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a red ball and a skull"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "6": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["3", 0],
                "positive": ["4", 0],
                "negative": ["4", 0],
                "latent_image": ["5", 0],
                "seed": 0,
                "steps": 1,
                "cfg": 2.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "7": {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 2]}},
        "8": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}},
    }
    concepts = dict.fromkeys(
        ["hate", "harassment", "violence", "self_harm", "sexual", "shocking", "illegal_activity", "demo_world"], True
    )
    pairs = {
        "1": {
            "class_type": "SafeCFGConceptPairs",
            "inputs": concepts | {"style": "pixel art", "own": "spiders: spider, cobweb", "file": "none", "limit": 50},
        },
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}},
    }
    for prompt in (sample, pairs):
        history = server.run(prompt)
        assert history["status"]["status_str"] == "success", history["status"]


@pytest.mark.oldest
def test_the_editor_is_served_from_the_archive(server, archive):
    """Scripts, help pages and templates, by the addresses under which the editor asks for them."""
    for path in archive:
        if path.startswith("web/"):
            server.get(f"/extensions/safecfg/{path.removeprefix('web/')}")
    assert {f"example_workflows/{name}.json" for name in server.json("/workflow_templates")["safecfg"]} == {
        path for path in archive if path.startswith("example_workflows/") and path.endswith(".json")
    }
    assert "HGR" in json.dumps(server.json("/i18n")["de"])


@pytest.mark.slow
@pytest.mark.oldest
def test_loading_the_pack_brings_nothing_heavy(comfyui_path, tmp_path):
    """Start-up stays fast because the pack loads no library that ComfyUI has not, and of itself nothing that runs
    outside ComfyUI."""
    done = subprocess.run(
        [sys.executable, "-c", LOADING, ROOT, comfyui_path, tmp_path], cwd=comfyui_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    brought = json.loads(done.stdout.splitlines()[-1])
    own = {name for name in brought if name.partition(".")[0] == "pack"}
    assert "pack.nodes.guide" in own
    assert not {name.partition(".")[0] for name in set(brought) - own} - sys.stdlib_module_names - HOST
    assert not [name for name in own if OUTSIDE.match(name.removeprefix("pack.").replace(".", "/") + "/")]


def packages(lines: list[str]) -> set[str]:
    """The names of requirements, whatever versions they ask for."""
    return {re.match(r"[\w.-]+", line)[0] for line in lines if line and not line.startswith("#")}


def test_requirements_are_what_the_pack_imports(archive):
    used = set()
    for path in archive:
        if path.endswith(".py") and not OUTSIDE.match(path):
            for node in ast.walk(ast.parse((ROOT / path).read_text())):
                names = (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module]
                    if isinstance(node, ast.ImportFrom) and not node.level
                    else []
                )
                used |= {name.partition(".")[0] for name in names}
    required = packages((ROOT / "requirements.txt").read_text().splitlines())
    assert {"pillow" if name == "PIL" else name for name in used - sys.stdlib_module_names - HOST} == required
    dependencies = json.loads(re.search(r"^dependencies = (\[.+])$", PYPROJECT, re.MULTILINE)[1])
    assert packages(dependencies) <= required | {"torch"}, "what pip installs with `hgr` is no more"


def test_icon_and_banner_are_as_the_registry_wants_them():
    from PIL import Image

    repository = re.search(r'^Repository = "https://github\.com/(.+/safecfg)"$', PYPROJECT, re.MULTILINE)[1]
    raw = f"https://raw.githubusercontent.com/{repository}/main/"
    for key, shape in (("Icon", lambda w, h: w == h <= 400), ("Banner", lambda w, h: w * 9 == h * 21)):
        with Image.open(ROOT / re.search(rf'^{key} = "{raw}(.+)"$', PYPROJECT, re.MULTILINE)[1]) as picture:
            assert shape(*picture.size)


@pytest.mark.slow
@pytest.mark.oldest
def test_two_copies_of_the_pack_start_and_are_named(comfyui_path, tmp_path_factory):
    """A clone beside a download: one of them works, and the log says which two folders there are."""
    base = tmp_path_factory.mktemp("copies")
    with running_server(comfyui_path, base, names=("safecfg", "safecfg-main")) as server:
        assert server.json("/safecfg/hgr/safecfg_demo%20(bundled)")["probe"] is True
        assert NODES.keys() <= server.json("/object_info").keys()
    (line,) = (line for line in server.log.read_text().splitlines() if "two copies" in line)
    folders = [str(base / "custom_nodes" / name) for name in ("safecfg", "safecfg-main")]
    assert all(re.search(rf"{re.escape(folder)}(?![\w-])", line) for folder in folders) and "Remove one" in line
    assert "IMPORT FAILED" not in server.log.read_text()
