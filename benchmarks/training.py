"""Training an HGR on the demo world: what the node's defaults give beside the bundled HGR, text alone, and how much
data it takes.

    python benchmarks/training.py                      the tables of docs/benchmarks.md
    python benchmarks/training.py --rows default text  some rows

A trained HGR and its finished cells are kept under --runs. Prompts, noise and the classifier are those of
demo_world.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import torch
from demo_world import HARMFUL_KINDS, ROOT, Bench
from demo_world import Settings as World
from measure import markdown, rate, with_interval, write_between

from hgr.core import file
from hgr.core.hgr import HGR
from hgr.data.sources import demo_world
from hgr.demo.captions import CLEAN_KINDS
from hgr.hosts.diffusers.denoiser import denoiser
from hgr.hosts.diffusers.prompts import encode, encoder
from hgr.training.settings import Settings
from hgr.training.train_hgr import train

log = logging.getLogger("benchmark")

FAMILY = "the SafeCFG demo model (SD 1.5 family)"
PAIRS = 600  # of a concept: the default of the node Concept Pairs
PROMPTS = 2000  # of each clean kind, for false alarms
# (pairs of a concept, settings)
ROWS: dict[str, tuple[int, Settings]] = {
    "default": (PAIRS, Settings()),
    "text": (PAIRS, Settings(losses="text")),
    **{f"{count} pairs": (count, Settings()) for count in (60, 120, 240)},
}
NAMES = {"default": f"defaults: attention, {PAIRS} pairs", "text": f"text alone, {PAIRS} pairs"}


def trained(bench: Bench, pairs: int, settings: Settings, folder: Path) -> HGR:
    """The HGR of a row, from `folder` where it is done."""
    path = folder / "hgr.safetensors"
    if not path.exists():
        # clean prompts are at hand in any number: only the pairs are few
        given = dataclasses.replace(demo_world(PAIRS), pairs=demo_world(pairs).pairs)
        hgr = train(
            given,
            encoder(bench.pipe),
            FAMILY,
            settings,
            folder / "work",
            denoiser=lambda: denoiser(bench.pipe, settings.seed),
        )
        file.save(hgr, path)
    return file.load(path)


def measure(bench: Bench, kinds: list[str]) -> dict[str, Any]:
    """Harmful rates and what stays, by kind; the share of clean prompts in which a concept fires."""
    flagged = {}
    for kind in CLEAN_KINDS:
        texts = [caption.text for caption in bench.captions(kind, PROMPTS)]
        gates = [
            bench.hgr.read(encode(bench.pipe, texts[at : at + 250]).features).prompt_gates
            for at in range(0, PROMPTS, 250)
        ]
        flagged[kind] = rate((torch.cat(gates) >= bench.hgr.thresholds).any(1))
    return {
        "harm": {kind: bench.harm("redirect", kind) for kind in kinds},
        "flagged": flagged,
        "training": bench.hgr.training,
    }


def table(results: dict[str, Any], bundled: dict[str, Any] | None) -> str:
    """The results as Markdown; `bundled`: the results of demo_world.py."""
    head = [
        "HGR",
        *(f"harmful, {kind}" for kind in HARMFUL_KINDS),
        "benign kept",
        *(f"fires, {kind}" for kind in CLEAN_KINDS),
    ]
    rows = []
    if bundled:
        cells = {kind: bundled["harm"][kind]["redirect"] for kind in HARMFUL_KINDS}
        rows.append(
            ["bundled", *_harm(cells), *(with_interval(bundled["detection"]["flagged"][kind]) for kind in CLEAN_KINDS)]
        )
    for name, result in results.items():
        rows.append(
            [
                NAMES.get(name, f"attention, {name}"),
                *_harm(result["harm"]),
                *(with_interval(result["flagged"][kind]) for kind in CLEAN_KINDS),
            ]
        )
    return markdown(head, rows)


def _harm(cells: dict[str, Any]) -> list[str]:
    kept = [cell["kept"]["value"] for cell in cells.values()]
    return [
        *(with_interval(cells[kind]["harmful"]) if kind in cells else "" for kind in HARMFUL_KINDS),
        f"{sum(kept) / len(kept):.3f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--pictures", type=int, default=World().pictures, help="a cell; default: %(default)s")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/training")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/benchmarks.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/training.json")
    given = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    log.setLevel(logging.INFO)
    logging.getLogger("safecfg").setLevel(logging.INFO)

    world = World(pictures=given.pictures)
    bench = Bench(world, given.runs)
    home, results = bench.folder, {}
    for name in ROWS:
        pairs, settings = ROWS[name]
        bench.folder = home / name.replace(" ", "-")
        done = bench.folder / "result.json"
        if name in given.rows and not done.exists():
            bench.hgr = trained(bench, pairs, settings, bench.folder)
            done.write_text(json.dumps(measure(bench, list(HARMFUL_KINDS))))
        if done.exists():
            results[name] = json.loads(done.read_text())
    e = bench.environment
    note = (
        f"{world.pictures} pictures a cell, {world.steps} DDIM steps, CFG {world.cfg}, mode redirect; {PROMPTS} prompts of each clean "
        f"kind; {dataclasses.asdict(Settings())}; torch {e['torch']}, diffusers {e['diffusers']}, {e['threads']} threads on "
        f"{e['cpus']} CPUs. In brackets: 95 % intervals."
    )
    beside = ROOT / "benchmarks/results/demo_world.json"
    text = note + "\n\n" + table(results, json.loads(beside.read_text()) if beside.exists() else None)
    print(text)
    if world == World():
        write_between(given.page, "training", text)
        given.results.write_text(json.dumps({"environment": e, "rows": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
