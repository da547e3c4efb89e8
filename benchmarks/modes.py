"""What mode "dynamic" is for, beside "redirect": how much of the harm goes, and how far the picture moves.

python benchmarks/modes.py                 the table of docs/benchmarks.md
python benchmarks/modes.py --pictures 32   a quick look; writes no page

Each row is a share of the harmful direction that goes (lambda; all of it in "redirect") and the part of sampling, from
its start, in which guidance is safe. Pictures are compared with plain CFG's from the same noise.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from demo_world import ROOT, Bench, Settings, log, mixing, sampled
from measure import markdown, mean, once, rate, with_interval, write_between
from rivals.method import Guide, guided
from torch import Tensor

from hgr.core import guidance
from hgr.core.redirect import redirect
from hgr.demo.captions import Caption
from hgr.demo.classifier import kept
from hgr.hosts.diffusers.demo import decode
from hgr.hosts.diffusers.prompts import encode

KINDS = ("seen", "two")
PICTURES = 100


@dataclass(frozen=True)
class Way:
    """amount: lambda of mode "dynamic", or None for "redirect". until: the part of the steps that is safe."""

    amount: float | None
    until: float = 1.0

    @property
    def label(self) -> str:
        mode = "redirect" if self.amount is None else f"dynamic, lambda {self.amount:g}"
        return mode if self.until == 1 else f"{mode}, first {self.until:.0%}"


WAYS = (
    *(Way(None, until) for until in (1.0, 0.6, 0.4, 0.25)),
    *(Way(amount) for amount in (0.5, 0.75, 1.0, 1.1)),
    *(Way(1.0, until) for until in (0.6, 0.4, 0.25)),
)


def guide_of(bench: Bench, captions: list[Caption], way: Way) -> Guide:
    """The way's guidance for a batch of captions."""
    settings, pipe = bench.settings, bench.pipe
    prompt = encode(pipe, [caption.text for caption in captions])
    empty = encode(pipe, [""]).features.expand_as(prompt.features)
    found = redirect(bench.hgr, prompt, strengths=[settings.strength] * len(bench.hgr.ids))
    if way.amount is None:
        share = (found.harm == 0).to(found.harm)
    else:
        share = 1 - way.amount * (1 - guidance.kept_share(found.harm, settings.cfg)) / guidance.LAMBDA
    safe = mixing(pipe, prompt.features, empty, safe=found.safe.features, share=share, cfg=settings.cfg)
    plain = guided(pipe, prompt.features, empty, cfg=settings.cfg)
    last = round(way.until * settings.steps)

    def guide(latents: Tensor, t: Tensor, step: int) -> tuple[Tensor, Tensor]:
        return (safe if step < last else plain)(latents, t, step)

    return guide


def measure(bench: Bench, kind: str) -> dict[str, Any]:
    """The figures of every way on one kind of captions; "plain" is plain CFG."""
    settings, named = bench.settings, bench.named(kind)
    captions, noise = bench.captions(kind, settings.pictures), bench.noise(kind, settings.pictures)
    scenes, plain = [caption.scene for caption in captions], bench.cell("plain", kind)
    spread = plain["features"].std(0).norm()

    def figures(cell: dict[str, Tensor]) -> dict[str, Any]:
        return {
            "harmful": rate(cell["symbols"].any(1)),
            "own": rate((cell["symbols"] & named).any(1)),
            "kept": mean(cell["kept"]),
            "latents": mean((cell["latents"] - plain["latents"]).abs().flatten(1).mean(1)),
            "features": mean((cell["features"] - plain["features"]).norm(dim=1) / spread),
        }

    def sample(way: Way) -> dict[str, Any]:
        parts = []
        for at in range(0, settings.pictures, settings.batch_size):
            rows = slice(at, at + settings.batch_size)
            guide = guide_of(bench, captions[rows], way)
            parts.append(sampled(bench.pipe, guide, noise=noise[rows], steps=settings.steps))
        latents = torch.cat(parts)
        judged = bench.judge.judge(decode(bench.pipe.vae, latents))
        cell = {"latents": latents, "features": judged.features, "symbols": judged.symbols}
        return figures(cell | {"kept": kept(judged, scenes)})

    folder = bench.folder / f"modes-{bench.environment['HGR']}"
    folder.mkdir(exist_ok=True)
    return {"plain": figures(plain)} | {
        way.label: once(folder / f"{kind}, {way.label}.json", lambda way=way: sample(way)) for way in WAYS
    }


def tables(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    e = results["environment"]
    text = [
        f"{e['pictures']} pictures a row and kind, {e['steps']} DDIM steps, CFG {e['cfg']}, seed {e['seed']}, torch "
        f"{e['torch']}; world {e['world']}, HGR {e['HGR']}. In brackets: 95 % intervals. Distances are from "
        "plain CFG's picture from the same noise: mean absolute difference of the latents, and distance of the "
        "classifier's features in units of their spread."
    ]
    for kind in KINDS:
        text.append(
            f"### The modes: {kind}\n\n"
            + markdown(
                ["guidance", "harmful", "named symbol seen", "benign kept", "distance, latents", "distance, features"],
                [
                    [name, *(with_interval(row[key]) for key in ("harmful", "own", "kept", "latents", "features"))]
                    for name, row in results[kind].items()
                ],
            )
        )
    return "\n\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=PICTURES, help="per row and kind; default: %(default)s")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="default: %(default)s")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/modes")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/benchmarks.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/modes.json")
    given = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    log.setLevel(logging.INFO)
    # to choose by, so not the prompts and noise of the report
    bench = Bench(
        dataclasses.replace(Settings(pictures=given.pictures, steps=given.steps), split="validation"), given.runs
    )
    results = {"environment": bench.environment} | {kind: measure(bench, kind) for kind in KINDS}
    text = tables(results)
    print(text)
    if (given.pictures, given.steps) == (PICTURES, Settings.steps) and given.page.exists():
        write_between(given.page, "modes", text)
        given.results.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
