"""Training an HGR on the demo world: what the node's defaults give beside the bundled HGR, text alone, and how much
data it takes.

    python benchmarks/training.py                      the tables of docs/benchmarks.md
    python benchmarks/training.py --rows default text  some rows
    python benchmarks/training.py --pictures 60        a quick look; writes no page

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
from demo_world import ROOT, Bench
from demo_world import Settings as World
from measure import markdown, rate, with_interval, write_between

from hgr.core import file
from hgr.core.fingerprint import fingerprint
from hgr.core.hgr import HGR
from hgr.data.sources import demo_world
from hgr.demo.captions import CLEAN_KINDS
from hgr.hosts.diffusers.denoiser import denoiser_of
from hgr.hosts.diffusers.prompts import encode, encoder_of
from hgr.training.settings import HGRSettings
from hgr.training.train_hgr import train_hgr

log = logging.getLogger("benchmark")

FAMILY = "the SafeCFG demo model (SD 1.5 family)"
HARMFUL = ("seen", "held_out", "rewrite")  # the kinds that are painted
PAIRS = 600  # of a concept: the default of the node Concept Pairs
# (pairs of a concept, losses)
ROWS: dict[str, tuple[int, str]] = {
    "default": (PAIRS, HGRSettings().losses),
    "text": (PAIRS, "text"),
    **{f"{count} pairs": (count, HGRSettings().losses) for count in (60, 200)},
}
NAMES = {"default": f"defaults: attention, {PAIRS} pairs", "text": f"text only, {PAIRS} pairs"}


def trained(bench: Bench, pairs: int, settings: HGRSettings, *, folder: Path) -> HGR:
    """The HGR of a row, from `folder` where it is done."""
    path = folder / "hgr.safetensors"
    if not path.exists():
        # clean prompts are at hand in any number: only the pairs are few
        given = dataclasses.replace(demo_world(PAIRS), pairs=demo_world(pairs).pairs)
        hgr = train_hgr(
            given,
            encoder_of(bench.pipe),
            settings,
            family=FAMILY,
            work=folder / "work",
            denoiser=lambda: denoiser_of(bench.pipe, settings.seed),
        )
        file.save(hgr, path)
    return file.load(path)


def measure(bench: Bench, kinds: list[str]) -> dict[str, Any]:
    """Harmful rates and what stays, by kind; the share of clean prompts in which a concept fires."""
    flagged, count = {}, bench.settings.prompts
    for kind in CLEAN_KINDS:
        texts = [caption.text for caption in bench.captions(kind, count)]
        gates = [
            bench.hgr.read(encode(bench.pipe, texts[at : at + 250]).features).prompt_gates
            for at in range(0, count, 250)
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
        *(f"harmful, {kind}" for kind in HARMFUL),
        "benign kept",
        *(f"fires, {kind}" for kind in CLEAN_KINDS),
    ]
    rows = []
    if bundled:
        cells = {kind: bundled["harm"][kind]["redirect"] for kind in HARMFUL}
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
        *(with_interval(cells[kind]["harmful"]) if kind in cells else "" for kind in HARMFUL),
        f"{sum(kept) / len(kept):.3f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    for field, of in (("pictures", "per cell"), ("prompts", "per clean kind"), ("steps", "of sampling")):
        default = getattr(World(), field)
        parser.add_argument(f"--{field}", type=int, default=default, help=f"{of}; default: %(default)s")
    for field, of in (("steps", "of training"), ("pictures", "that the model makes to learn from")):
        option, default = f"--training-{field}", getattr(HGRSettings(), field)
        parser.add_argument(option, type=int, default=default, help=f"{of}; default: %(default)s")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/training")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/benchmarks.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/training.json")
    given = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    log.setLevel(logging.INFO)
    logging.getLogger("safecfg").setLevel(logging.INFO)

    world = World(pictures=given.pictures, prompts=given.prompts, steps=given.steps)
    settings = HGRSettings(steps=given.training_steps, pictures=given.training_pictures)
    bench = Bench(world, given.runs)
    # the HGR's digest is that of guidance's mathematics too
    home, results = bench.folder / f"{bench.environment['HGR']}-{fingerprint(settings)}", {}
    for name, (pairs, losses) in ROWS.items():
        bench.folder = home / name.replace(" ", "-")
        done = bench.folder / "result.json"
        if name in given.rows and not done.exists():
            bench.hgr = trained(bench, pairs, dataclasses.replace(settings, losses=losses), folder=bench.folder)
            done.write_text(json.dumps(measure(bench, list(HARMFUL))))
        if done.exists():
            results[name] = json.loads(done.read_text())
    e = bench.environment
    note = (
        f"{world.pictures} pictures a cell, {world.steps} DDIM steps, CFG {world.cfg}, mode redirect; {world.prompts} "
        f"prompts of each clean kind; training settings {dataclasses.asdict(settings)}; torch {e['torch']}, "
        f"diffusers {e['diffusers']}, {e['threads']} threads on {e['cpus']} CPUs. In brackets: 95 % intervals."
    )
    beside = json.loads((ROOT / "benchmarks/results/demo_world.json").read_text())
    # of these weights, and complete
    same = all(beside["environment"][key] == e[key] for key in ("world", "HGR")) and "detection" in beside
    text = note + "\n\n" + table(results, beside if same else None)
    print(text)
    if world == World() and settings == HGRSettings():
        write_between(given.page, "training", text)
        given.results.write_text(json.dumps({"environment": e, "rows": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
