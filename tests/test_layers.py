"""The house's rules: arrows run one way, what is light stays light, signatures can be read, one thing has one name."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import hgr

HGR = Path(hgr.__file__).parent
ROOT = HGR.parent
# Each room with the rooms that it may import. Nothing imports upward, and only `hosts` knows a host.
ALLOWED = {
    "core": set(),
    "demo": set(),
    "data": {"core", "demo"},
    "detection": {"core", "demo"},
    "training": {"core", "demo", "data", "detection"},
    "hosts": {"core", "demo", "data", "detection", "training"},
    "cli": {"core", "demo", "data", "detection", "training", "hosts"},
    "nodes": {"core", "demo", "data", "detection", "training", "hosts"},
}
FLOORS = (("core", "demo"), ("data", "detection"), ("training",), ("hosts",), ("cli", "nodes"))
FILES = sorted(path for path in [*HGR.rglob("*.py"), *(ROOT / "nodes").glob("*.py")] if path.parent != HGR)
BELOW_HOSTS = [
    path for path in FILES if path.relative_to(HGR.parent).parts[1] in ("core", "data", "detection", "training")
]
# Hosts and what belongs to them, by where they may be imported. Elsewhere a host is somebody else's business.
HOSTS = {
    "hosts/comfy": {
        "comfy",
        "comfy_api",
        "comfy_execution",
        "comfy_extras",
        "execution",
        "folder_paths",
        "latent_preview",
        "server",
    },
    "hosts/diffusers": {"diffusers", "transformers", "peft"},
}
MAY_ALSO = {
    "nodes": {"comfy_api"},  # schemas
    "cli/processes.py": {"accelerate"},
    "cli/commands/finetune.py": {"diffusers", "peft"},  # their versions
    "demo/tokenizer.py": {"transformers"},
}
MAY_DRAW = {"detection/sheet.py": {"PIL"}}  # every host has it, but who only detects needs no picture
EVERY_HOST_HAS = {"torch", "safetensors", "numpy", "einops", *sys.stdlib_module_names}
# Somebody else says in which order these take their arguments.
GIVEN_ORDER = {
    ("hosts/comfy/demo.py", "__init__"),  # ComfyUI
    ("hosts/comfy/inside.py", "patch"),
    ("hosts/comfy/shown_pictures.py", "judged_output"),
    ("hosts/diffusers/sampling.py", "_mix"),  # torch's forward hooks
    ("benchmarks/rivals/nag.py", "push"),  # torch's hooks
    ("demo/world.py", "ellipse"),  # coordinates
    ("demo/world.py", "box"),
}


def room_of(path: Path) -> str:
    return path.relative_to(HGR).parts[0] if path.is_relative_to(HGR) else "nodes"


def imports(path: Path, node: ast.AST) -> list[str]:
    """The full names of the modules and of the names in them that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        package = ROOT.name + "/" + path.relative_to(ROOT).parent.as_posix()
        parts = package.split("/")[1:]
        kept = parts[: len(parts) - (node.level - 1)]
        base = ".".join([*kept, *([node.module] if node.module else [])])
    return [f"{base}.{alias.name}" if base else alias.name for alias in node.names]


def rooms_imported(path: Path) -> set[str]:
    names = [name for node in ast.walk(ast.parse(path.read_text("utf-8"))) for name in imports(path, node)]
    found = {name.split(".")[1] for name in names if name.startswith("hgr.")}
    return (found & ALLOWED.keys()) | ({"nodes"} if any(name.startswith("nodes.") for name in names) else set())


RULE = "a room imports only from its left: " + " <- ".join(", ".join(floor) for floor in FLOORS)


def test_arrows_run_one_way():
    upward = [
        f"{path.relative_to(ROOT)} imports {other}"
        for path in FILES
        for other in sorted(rooms_imported(path) - ALLOWED[room_of(path)] - {room_of(path)})
    ]
    assert not upward, f"{RULE}; move the code or turn the arrow round: {upward}"


def test_the_floors_are_those_of_the_rule():
    """The floors that the files' imports make, not those that are written down."""
    stands_on = defaultdict(set)
    for path in FILES:
        stands_on[room_of(path)] |= rooms_imported(path) - {room_of(path)}
    left, floors = set(ALLOWED), []
    while left:
        floor = {room for room in left if not stands_on[room] & left}
        assert floor, f"{RULE}; these rooms import each other in a circle: {sorted(left)}"
        floors.append(floor)
        left -= floor
    assert floors == [set(floor) for floor in FLOORS], RULE


def test_only_hosts_know_a_host():
    known = set().union(*HOSTS.values()) | {"accelerate"}
    strangers = []
    for path in FILES:
        place = path.relative_to(HGR).as_posix() if path.is_relative_to(HGR) else "nodes"
        allowed = set().union(*(names for home, names in (HOSTS | MAY_ALSO).items() if place.startswith(home)))
        tree = ast.walk(ast.parse(path.read_text("utf-8")))
        found = [name for node in tree for name in imports(path, node)]
        strangers += [f"{place} imports {name}" for name in found if name.partition(".")[0] in known - allowed]
        for one, other in (("comfy", "diffusers"), ("diffusers", "comfy")):
            if place.startswith(f"hosts/{one}"):
                strangers += [f"{place} imports {name}" for name in found if name.startswith(f"hgr.hosts.{other}")]
        assert "importlib" not in {name.partition(".")[0] for name in found}, (
            f"{place}: imports must be seen by this test"
        )
    assert not strangers, f"only hgr/hosts knows a host, and no host the other: {strangers}"


@pytest.mark.parametrize("path", BELOW_HOSTS, ids=lambda path: path.relative_to(HGR).as_posix())
def test_below_the_hosts_only_what_every_host_has_is_imported(path):
    allowed = EVERY_HOST_HAS | MAY_DRAW.get(path.relative_to(HGR).as_posix(), set())
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            continue
        assert {name.partition(".")[0] for name in imports(path, node)} <= allowed


@pytest.mark.parametrize(
    "path", sorted((HGR / "data").rglob("*.py")), ids=lambda path: path.relative_to(HGR).as_posix()
)
def test_data_needs_no_torch(path):
    names = {
        name.partition(".")[0] for node in ast.walk(ast.parse(path.read_text("utf-8"))) for name in imports(path, node)
    }
    assert not names & {"torch", "safetensors", "einops"}


def without(*modules: str) -> str:
    """Python in which these modules cannot be imported."""
    return f"import sys; sys.modules.update(dict.fromkeys({modules!r}));"


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        (("torch", "numpy"), "import hgr, hgr.cli, hgr.data.sources, hgr.training.settings; hgr.cli._parser()"),
        (
            ("torch", "diffusers"),
            "import hgr.data.pair_file, hgr.data.prompt_file, hgr.data.examples as x, hgr.data.sources as s;"
            "x.Examples(s.built_in(), 0); s.art_style('x')",
        ),
        (
            ("diffusers", "transformers", "accelerate", "PIL"),
            "import hgr.core.file, hgr.detection.judge, hgr.training.train_hgr, hgr.training.train_lora",
        ),
    ],
    ids=["the command line without torch", "prompt pairs without torch", "the method without diffusers"],
)
def test_what_is_light_stays_light(missing, code):
    subprocess.run([sys.executable, "-c", without(*missing) + code], check=True, cwd=ROOT)


def test_the_lazy_face():
    """`hgr.load` and its kind, without torch until one is asked for."""
    assert hgr.HGR is __import__("hgr.core.hgr", fromlist=["HGR"]).HGR
    assert hgr.load is __import__("hgr.core.file", fromlist=["load"]).load
    assert all(hasattr(hgr, name) for name in hgr.__all__) and dir(hgr) == sorted(hgr.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = hgr.nonsense


def test_no_signature_has_more_than_three_positional_parameters():
    """What a call says must be readable in the call: from the fourth parameter on it is said by name."""
    long = []
    for path in [*FILES, *(ROOT / "scripts").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        name = path.relative_to(HGR if path.is_relative_to(HGR) else ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (name, node.name) not in GIVEN_ORDER:
                taken = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
                if len(taken) > 3:
                    long.append(f"{name}:{node.lineno} {node.name}({', '.join(taken)})")
    assert not long, f"put `*` after the third parameter: {long}"


def test_one_name_means_one_thing():
    """Public functions and classes of hgr have names of their own; hosts and commands mirror each other on purpose."""
    mirrored = {"add", "adapt", "encoder_of", "encoder_family", "denoiser_of", "report_card"}
    places = defaultdict(set)
    for path in FILES:
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                places[node.name].add(path.relative_to(ROOT).as_posix())
    twice = {name: sorted(found) for name, found in places.items() if len(found) > 1 and name not in mirrored}
    assert not twice, twice


def test_the_version_is_the_same_in_both_places():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    assert re.search(r'^version = "(.+?)"', text, re.M)[1] == hgr.__version__
