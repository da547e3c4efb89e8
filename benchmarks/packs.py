"""Other people's packs beside SafeCFG, in a real ComfyUI: with SafeCFG (Model) in the graph, and under a policy.

.venv-comfy/bin/python benchmarks/packs.py --packs FOLDER              the table in docs/compatibility.md
.venv-comfy/bin/python benchmarks/packs.py --packs FOLDER --only NAME  a look at one pack; writes no page

FOLDER holds the packs, each a git clone under its repository's name. The graphs are in packs.json: a base, with the
bundled demo model, and nodes that come to it or in the place of some of its nodes. Inputs that are not given have the
node's defaults. Links to "safe" lead to SafeCFG (Model), or past it where the graph is drawn without it.

ComfyUI is found by COMFYUI_PATH, or in ~/comfy/ComfyUI. Each pack is loaded in processes of its own, on the CPU: before
SafeCFG without a policy, and before and after it with one. Packs may install things or reach for the network when they
are loaded: run this where they may not. Needs fork, so Linux or macOS.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from hgr.cli.policy_graphs import CLEAN, HARMFUL

ROOT = Path(__file__).resolve().parents[1]
PAGE, GRAPHS = ROOT / "docs/compatibility.md", ROOT / "benchmarks/packs.json"
BASE, PACKS = json.loads(GRAPHS.read_text()).values()
HEAD = [
    "pack",
    "node",
    "skull without SafeCFG",
    "with it",
    "clean prompt",
    "under a policy, SafeCFG last",
    "SafeCFG first",
]
Graph = dict[str, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=Path, required=True, help="the folder of the packs")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="packs by folder")
    parser.add_argument("--results", type=Path, help="keep what each pack gave in this folder, and do not run it again")
    parser.add_argument("--verbose", action="store_true", help="show what ComfyUI and the packs say")
    given = parser.parse_args()
    results = given.results or Path(tempfile.mkdtemp())
    results.mkdir(exist_ok=True)
    start_host(given.verbose)
    for name in given.only or PACKS:
        kept = results / f"{name}.json"
        if not kept.exists() and (given.packs / name).is_dir():
            kept.write_text(json.dumps(measure(given.packs / name, PACKS[name]), indent=1))
            print(name, kept.read_text(), flush=True)
    if not given.only:
        write(given.packs, results)


def start_host(verbose: bool) -> None:
    """ComfyUI with its own nodes in this process."""
    os.environ["TQDM_DISABLE"] = "1"
    sys.path.insert(0, os.environ.get("COMFYUI_PATH", str(Path.home() / "comfy/ComfyUI")))
    from comfy.cli_args import args

    base = Path(tempfile.mkdtemp())
    for folder in ("models", "custom_nodes"):  # some packs look for them
        (base / folder).mkdir()
    args.cpu, args.base_directory = True, str(base)
    import torch

    import nodes

    logging.disable(logging.NOTSET if verbose else logging.ERROR)
    torch.set_num_threads(1)
    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))


def measure(pack: Path, graphs: dict[str, Graph]) -> dict[str, Any]:
    """What a pack's graphs give: by graph, then by case."""
    alone, last = apart([pack, ROOT], graphs, False), apart([pack, ROOT], graphs, True)
    first = apart([ROOT, pack], graphs, True)
    if wrong := [each for each in (alone, last, first) if isinstance(each, str)]:
        return {"not loaded": wrong[0]}
    return {name: alone[name] | {"last": last[name], "first": first[name]} for name in graphs}


def apart(packs: list[Path], graphs: dict[str, Graph], policy: bool) -> Any:
    """What `draw` gives in a process of its own, or its error in words."""
    try:
        with ProcessPoolExecutor(1, get_context("fork")) as pool:
            return pool.submit(draw, packs, graphs, policy).result()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def draw(packs: list[Path], graphs: dict[str, Graph], policy: bool) -> dict[str, Any]:
    """Load packs in this order and draw the graphs: without SafeCFG, and where there is no policy with it too."""
    import execution
    import server

    import nodes

    asyncio.set_event_loop(loop := asyncio.new_event_loop())
    host = server.PromptServer(loop)
    if policy:
        file = Path(tempfile.mkdtemp(), "safecfg_policy.json")
        file.write_text("{}")
        os.environ["SAFECFG_POLICY"] = str(file)
    for path in packs:
        if not loop.run_until_complete(nodes.load_custom_node(str(path), set(nodes.NODE_CLASS_MAPPINGS))):
            raise ImportError(f"{path.name} cannot be loaded")
    nodes.NODE_CLASS_MAPPINGS["Keep"] = Keep
    executor = execution.PromptExecutor(host, cache_args={"lru": 0, "ram": 0, "ram_inactive": 0})
    found: dict[str, Any] = {}
    for name, changes in graphs.items():
        for kind, text in (("harmful", HARMFUL), ("clean", CLEAN)):
            for word in ("without",) if policy else ("without", "with"):
                graph = build(changes, text, with_safe=word == "with")
                found.setdefault(name, {})[f"{word}, {kind}"] = run(executor, loop, graph)
    return found


def build(changes: Graph, text: str, *, with_safe: bool) -> Graph:
    """A graph of the demo model with these changes."""
    graph: Graph = json.loads(json.dumps(BASE | changes))
    past = graph["safe"]["inputs"]["model"]
    if not with_safe:
        del graph["safe"], graph["hgr"]
    for each in graph.values():
        for key, value in each["inputs"].items():
            if value == ["safe", 0] and not with_safe:
                each["inputs"][key] = past
            elif isinstance(value, str):
                each["inputs"][key] = value.replace("$PROMPT", text)
    return graph


def complete(graph: Graph) -> None:
    """Give the inputs that are missing their nodes' defaults."""
    import nodes

    for each in graph.values():
        wanted = nodes.NODE_CLASS_MAPPINGS[each["class_type"]].INPUT_TYPES().get("required", {})
        for name in wanted.keys() - each["inputs"].keys():
            kind, options = wanted[name][0], {} if len(wanted[name]) < 2 else wanted[name][1]
            choices = kind if isinstance(kind, list | tuple) else options.get("options")
            if "default" in options or choices or kind == "STRING":
                each["inputs"][name] = options.get("default", choices[0] if choices else "")


def run(executor: Any, loop: asyncio.AbstractEventLoop, graph: Graph) -> Any:
    """What `Keep` got of a graph, or the graph's error in words."""
    import execution
    import torch

    complete(graph)
    Keep.made = None
    with torch.inference_mode():
        good, error, outputs, wrong = loop.run_until_complete(execution.validate_prompt("p", graph, None))
        if not good:
            return f"not accepted: {error} {json.dumps(wrong, default=str)[:600]}"
        loop.run_until_complete(executor.execute_async(graph, "p", {}, outputs))
    errors = [about for kind, about in executor.status_messages if kind == "execution_error"]
    if errors:
        logging.info("%s", "".join(errors[0]["traceback"]))
        return f"{errors[0]['node_type']}: {errors[0]['exception_message'].strip()}"
    return Keep.made


class Keep:
    """The output node: judges what it gets."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE, made = (), "keep", "test", True, None

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"made": ("*",), "vae": ("VAE",)}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: Any) -> bool:
        return True  # latents or pictures

    def keep(self, made: Any, vae: Any) -> tuple[()]:
        """Count the skulls, and make a number that tells one result from another."""
        from hgr.demo.classifier import load_classifier
        from hgr.demo.world import SYMBOLS

        given = made["samples"] if isinstance(made, dict) else made
        pictures = (vae.decode(given) if isinstance(made, dict) else given).movedim(-1, 1) * 2 - 1
        skulls = int(load_classifier().judge(pictures).symbols[:, SYMBOLS.index("skull")].sum())
        total = hashlib.sha256(given.contiguous().float().cpu().numpy().tobytes()).hexdigest()[:16]
        Keep.made = {"skulls": skulls, "of": len(pictures), "sum": total}
        return ()


def write(packs: Path, results: Path) -> None:
    """The table in docs/compatibility.md."""
    from measure import markdown, write_between

    rows, missing = [], []
    for name in PACKS:
        if (kept := results / f"{name}.json").exists():
            words = ["git", "-C", packs / name, "log", "-1", "--format=%h, %cs"]
            pack = f"{name} ({subprocess.run(words, capture_output=True, text=True).stdout.strip()})"
            found = json.loads(kept.read_text())
            if "not loaded" in found:
                missing.append(f"{pack}: {found['not loaded']}")
            else:
                rows += [[pack, graph, *cells(cases)] for graph, cases in found.items()]
    how = f"{BASE['empty']['inputs']['batch_size']} pictures each, {BASE['sampler']['inputs']['steps']} steps."
    text = f"{how}\n\n{markdown(HEAD, rows)}"
    write_between(PAGE, "packs", "\n\n".join([text, *missing]))


def cells(cases: dict[str, Any]) -> list[str]:
    """Of one graph: the skulls without SafeCFG and with it, whether a clean prompt's pictures are the same, and both
    under a policy, in either order."""
    plain = cases["without, clean"]
    shown = [skulls(cases["without, harmful"]), skulls(cases["with, harmful"]), same(plain, cases["with, clean"])]
    for order in ("last", "first"):
        harmful, clean = (cases[order][f"without, {case}"] for case in ("harmful", "clean"))
        shown.append(skulls(harmful) if isinstance(harmful, str) else f"{skulls(harmful)}, {same(plain, clean)}")
    return shown


def skulls(found: Any) -> str:
    if isinstance(found, str):
        return "refused" if "SafeCFG policy: " in found else found
    return f"{found['skulls']} of {found['of']}"


def same(a: Any, b: Any) -> str:
    if isinstance(a, str) or isinstance(b, str):
        return a if isinstance(a, str) else b
    return "identical" if a["sum"] == b["sum"] else "different"


if __name__ == "__main__":
    main()
