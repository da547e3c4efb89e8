"""A newcomer's first run: from a clone to the first picture of a checkpoint of full size, with every message.

    .venv-comfy/bin/python benchmarks/first_run.py      the list in docs/training.md; a quarter of an hour on a CPU

A checkpoint of SD 1.5's size with random weights is written to a temporary folder. A real ComfyUI is started with a
clone of this repository in its custom_nodes, and the template "SafeCFG for your checkpoint" is run as shipped, but for
the checkpoint's name and few sampling steps. It runs twice: without an HGR for this checkpoint, and with the one that
the first run has made, which ComfyUI still holds. ComfyUI is found by COMFYUI_PATH, or in ~/comfy/ComfyUI.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import re
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from full_size import SEED, make
from measure import markdown, write_between

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/host"))

from server_kit import Server, find_comfyui, running_server  # noqa: E402
from workflow import to_prompt  # noqa: E402

PAGE = ROOT / "docs/training.md"
TEMPLATE = ROOT / "example_workflows/SafeCFG for your checkpoint.json"
STEPS = 4
TEXT_FRAME = 3  # the host's number for a node's text
Messages = list[tuple[float, str, str]]  # seconds, where, words


def write_checkpoint(comfyui: Path, folder: Path) -> None:
    """In a process of its own, as the server's must start clean."""
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args

    args.cpu = True
    torch.manual_seed(SEED)
    with torch.inference_mode():
        make("sd15", folder)


def graph_of(server: Server) -> dict[str, Any]:
    """The template as a prompt."""
    graph = to_prompt(json.loads(TEMPLATE.read_text()), server.json("/object_info"))
    for node in graph.values():
        inputs = node["inputs"]
        if node["class_type"] == "CheckpointLoaderSimple":
            inputs["ckpt_name"] = "sd15.safetensors"
        elif node["class_type"] == "KSampler":
            inputs |= {"steps": STEPS, "seed": SEED}
    return graph


def timed(server: Server, graph: dict[str, Any]) -> tuple[float, Messages]:
    """Run a graph. The seconds that it took, and what the editor was told, counters left out."""
    told: dict[tuple[str, str], tuple[float, str, str]] = {}
    start = time.perf_counter()

    def note(where: str, words: str) -> None:
        key = where, re.sub(r"\d[\d,.]*", "", re.sub(r": \d.*| \(.*", "", words))
        told.setdefault(key, (time.perf_counter() - start, where, words))

    def hear(_: str, message: Any) -> None:
        if isinstance(message, bytes):
            kind, length = struct.unpack(">II", message[:8])
            if kind == TEXT_FRAME:
                note(graph[message[8 : 8 + length].decode()]["class_type"], message[8 + length :].decode())
            return
        node = message["data"].get("node")
        if message["type"] == "executing" and node:
            note("ComfyUI", f"runs {graph[node]['class_type']}")
        if message["type"] == "executed":
            for words in message["data"]["output"].get("text", ()):
                note(graph[node]["class_type"], words)

    asyncio.run(server.follow(graph, hear))
    return time.perf_counter() - start, list(told.values())


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    comfyui = find_comfyui()
    if comfyui is None:
        raise SystemExit("no ComfyUI found: set COMFYUI_PATH to its folder.")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        checkpoints = base / "models/checkpoints"
        checkpoints.mkdir(parents=True)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(write_checkpoint, comfyui, checkpoints).result()
        start = time.perf_counter()
        subprocess.run(["git", "clone", "-q", str(ROOT), str(base / "safecfg")], check=True)
        steps = [("git clone", time.perf_counter() - start)]
        start = time.perf_counter()
        with running_server(comfyui, base, base / "safecfg") as server:
            steps.append(("ComfyUI starts", time.perf_counter() - start))
            graph = graph_of(server)
            runs = []
            for name in ("first run", "second run"):
                seconds, messages = timed(server, graph)
                steps.append((name, seconds))
                runs.append([[f"{at:.0f} s", where, words.replace("\n", " ")] for at, where, words in messages])
                next(node for node in graph.values() if node["class_type"] == "KSampler")["inputs"]["seed"] += 1
            kept = [path.name for path in (base / "models/hgr").glob("*.safetensors")]
    text = (
        f"Two concepts, quality auto, {STEPS} sampling steps at 512 px; random weights, seed {SEED}; torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads. Kept: "
        f"{', '.join(f'`{name}`' for name in kept)}.\n\n"
        + markdown(["", "seconds"], [[name, f"{seconds:.0f}"] for name, seconds in steps])
        + "".join(
            f"\n\nThe {name}:\n\n" + markdown(["after", "where", "message"], rows)
            for (name, _), rows in zip(steps[-2:], runs, strict=True)
        )
    )
    print(text)
    write_between(PAGE, "first_run", text)


if __name__ == "__main__":
    main()
