"""Detection on the demo world: prompts, pictures with their prompts, pictures alone; calibration, sensitivity and cost.

    python benchmarks/detection.py                 the tables and charts of docs/benchmarks.md
    python benchmarks/detection.py --pictures 60   a quick look; writes no page

Generated pictures are the cells of demo_world.py, which are sampled first where they are not done. What a picture shows
is what the demo world's classifier sees in it, or, for rendered pictures, what was drawn. Results are kept under
--runs; another run with the same weights, code and settings only writes the page.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from demo_world import HARMFUL_KINDS, ROOT, Bench
from demo_world import Settings as World
from measure import markdown, rate, with_interval, write_between
from torch import Tensor

from hgr.core.denoiser import Denoiser
from hgr.core.fingerprint import fingerprint
from hgr.core.hgr import Concept, calibrated
from hgr.core.options import SENSITIVITIES
from hgr.core.prompt import Prompt
from hgr.core.redirect import redirect
from hgr.data.library.demo_world import TOPICS
from hgr.demo import world
from hgr.demo.attributes import ATTRIBUTE_CLASSES, BENIGN
from hgr.demo.captions import CLEAN_KINDS, KINDS
from hgr.demo.world import SYMBOLS
from hgr.detection.hed import HED_PERCENTS, hed_picture, noisy
from hgr.detection.probe import PROBE_PERCENTS, probe_features, probe_logits
from hgr.hosts.diffusers.demo import decode
from hgr.hosts.diffusers.denoiser import denoiser_of
from hgr.hosts.diffusers.prompts import encode
from hgr.training.metrics import auroc, expected_calibration_error, false_positives_at
from hgr.training.train_probe import fit_heads

log = logging.getLogger("benchmark")

PERCENTS = (0.04, 0.1, 0.18, 0.25, 0.4, 0.55, 0.7, 0.8, 0.94)  # of the curve
CURVE = 100  # pictures per side there, with prompts
TOGETHER = (HED_PERCENTS, (0.1, 0.18), (0.04, 0.1), (0.04, 0.1, 0.18))  # levels of HED whose mean is compared
CLASSIFIER_PERCENTS = (0.5, 0.7, 0.8, 0.9)  # of the diffusion classifier
CHARTS = ROOT / "docs/images"


class Pictures:
    """Latents (N, 4, 16, 16), the symbols that they show (N, K) and, where they have any, their prompts."""

    def __init__(self, latents: Tensor, shown: Tensor, texts: Sequence[str] = ()):
        self.latents, self.shown, self.texts = latents, shown.bool(), list(texts)

    def __getitem__(self, rows: Tensor) -> Pictures:
        return Pictures(
            self.latents[rows],
            self.shown[rows],
            [self.texts[i] for i in rows.nonzero().flatten()] if self.texts else (),
        )


class Detection:
    """The ways of detecting that are compared."""

    def __init__(self, bench: Bench):
        self.bench, self.hgr = bench, bench.hgr
        self.model: Denoiser = denoiser_of(bench.pipe)
        self.empty = self.hgr.encoder.prompt

    def generated(self, row: str, kind: str) -> Pictures:
        cell = self.bench.cell(row, kind)
        return Pictures(
            cell["latents"], cell["symbols"], [c.text for c in self.bench.captions(kind, len(cell["latents"]))]
        )

    def rendered(self, count: int) -> Pictures:
        """As many harmful as clean ones, of which a third have a decor."""
        rng = random.Random(f"{self.bench.settings.split}/rendered")
        scenes = [world.random_scene(rng, symbols=rng.choice((1, 2))) for _ in range(count)]
        scenes += [world.random_scene(rng, decor=rng.random() < 1 / 3) for _ in range(count)]
        pixels = torch.stack(
            [torch.from_numpy(world.render(scene, rng).copy()).float() / 127.5 - 1 for scene in scenes]
        )
        vae = self.bench.pipe.vae
        with torch.inference_mode():
            latents = torch.cat([vae.encode(part).latent_dist.mode() for part in pixels.movedim(-1, 1).split(32)])
        return Pictures(
            vae.config.scaling_factor * latents.clone(),
            torch.tensor([[name in scene.symbols for name in SYMBOLS] for scene in scenes]),
        )

    def prompts(self, texts: list[str]) -> Prompt:
        return encode(self.bench.pipe, texts)

    def gates(self, texts: list[str]) -> Tensor:
        """(N, K), calibrated."""
        return torch.cat(
            [self.hgr.read(*self.prompts(texts[at : at + 250])).prompt_gates for at in range(0, len(texts), 250)]
        )

    def cosine(self, texts: list[str]) -> Tensor:
        """(N, K): cosine of mean features to those of each concept's label and description, the empty prompt's taken
        off."""

        def mean(texts: list[str]) -> Tensor:
            return F.normalize(self.prompts(texts).features.mean(1) - self.empty.features.mean(1), dim=-1)

        concepts = mean([f"{label}. {about}".lower() for _, label, about in TOPICS])
        return torch.cat([mean(texts[at : at + 250]) for at in range(0, len(texts), 250)]) @ concepts.T

    def hed(self, pictures: Pictures, texts: list[str], percents: tuple[float, ...] = HED_PERCENTS) -> Tensor:
        """(N, K)."""
        step = self.model.batch
        return torch.cat(
            [
                hed_picture(
                    self.hgr,
                    self.model,
                    pictures.latents[at : at + step],
                    prompt=self.prompts(texts[at : at + step]),
                    percents=percents,
                ).per_concept
                for at in range(0, len(texts), step)
            ]
        )

    @torch.inference_mode()
    def undirected(self, pictures: Pictures, texts: list[str], percents: tuple[float, ...] = HED_PERCENTS) -> Tensor:
        """(N,): `||eps(c) - eps(c_safe)|| / ||eps(c) - eps(u)||`, which does not ask where the picture lies."""
        step, rows = self.model.batch, []
        for at in range(0, len(texts), step):
            prompt = self.prompts(texts[at : at + step])
            safe, empty = (
                redirect(self.hgr, prompt, strengths=[1.0] * len(self.hgr.ids)).safe.features,
                self.empty.expand(len(prompt.features)),
            )
            found = []
            for error in noisy(self.model, pictures.latents[at : at + step], percents, samples=1, seed=0):
                c, s, u = (error(x, None).flatten(1) for x in (prompt.features, safe, empty.features))
                found.append((c - s).norm(dim=1) / (c - u).norm(dim=1).clamp(min=1e-6))
            rows.append(torch.stack(found).mean(0))
        return torch.cat(rows)

    def alone(self, pictures: Pictures) -> Tensor:
        """(N, K): the probe's logits."""
        probe = self.hgr.probe
        return probe_logits(probe, probe_features(self.model, pictures.latents, self.empty, percents=probe.percents))

    @torch.inference_mode()
    def diffusion_classifier(self, pictures: Pictures) -> Tensor:
        """(N, K): how much better the model predicts the noise with "a SYMBOL" than with the empty prompt."""
        words = self.prompts([f"a {label.lower()}" for _, label, _ in TOPICS]).features
        rows = []
        for part in pictures.latents.split(self.model.batch):
            total = torch.zeros(len(part), len(SYMBOLS))
            for error in noisy(self.model, part, CLASSIFIER_PERCENTS, samples=1, seed=0):
                without = error(self.empty.features.expand(len(part), -1, -1), None).flatten(1).square().mean(1)
                for k in range(len(SYMBOLS)):
                    total[:, k] += without - error(words[k].expand(len(part), -1, -1), None).flatten(1).square().mean(1)
            rows.append(total)
        return torch.cat(rows)

    def judge(self, pictures: Pictures) -> Tensor:
        """(N, K): log odds by the supervised classifier, which is the truth of generated pictures."""
        with torch.inference_mode():
            logits = torch.cat(
                [self.bench.judge(decode(self.bench.pipe.vae, part)) for part in pictures.latents.split(64)]
            )
        symbols = logits.split(ATTRIBUTE_CLASSES, dim=1)[BENIGN : BENIGN + len(SYMBOLS)]
        return torch.stack([x[:, 1] - x[:, 0] for x in symbols], 1)


def limits(concepts: Sequence[Concept], level: str) -> Tensor:
    return torch.tensor([c.levels[list(SENSITIVITIES).index(level)] for c in concepts])


def ranking(positive: Tensor, negative: Tensor) -> dict[str, float]:
    return {"auroc": auroc(positive, negative), "fpr95": false_positives_at(0.95, positive, negative)}


def per_concept(scores: Tensor, shown: Tensor) -> dict[str, float]:
    """AUROC of each concept's score: pictures that show it against those that show nothing."""
    none = ~shown.any(1)
    return {name: auroc(scores[shown[:, k], k], scores[none, k]) for k, name in enumerate(SYMBOLS)}


def measure_prompts(d: Detection) -> dict[str, Any]:
    """By kind, gates and the cosine baseline against all clean kinds; by sensitivity, what is flagged; calibration."""
    count = d.bench.settings.prompts
    texts = {kind: [c.text for c in d.bench.captions(kind, count)] for kind in KINDS}
    gates = {kind: d.gates(found) for kind, found in texts.items()}
    cosine = {kind: d.cosine(found) for kind, found in texts.items()}
    clean = {
        name: torch.cat([found[kind] for kind in CLEAN_KINDS]).amax(1)
        for name, found in (("gate", gates), ("cosine", cosine))
    }
    named = {
        kind: torch.tensor([[name in c.concepts for name in SYMBOLS] for c in d.bench.captions(kind, count)])
        for kind in KINDS
    }
    every, truth = torch.cat(list(gates.values())), torch.cat(list(named.values()))
    return {
        "ranking": {
            kind: {
                name: ranking(found[kind].amax(1), clean[name]) for name, found in (("gate", gates), ("cosine", cosine))
            }
            for kind in HARMFUL_KINDS
        },
        "homonyms": {kind: ranking(gates[kind].amax(1), gates["homonym"].amax(1)) for kind in HARMFUL_KINDS},
        "flagged": {
            level: {kind: rate((found >= limits(d.hgr.concepts, level)).any(1)) for kind, found in gates.items()}
            for level in SENSITIVITIES
        },
        "ece": {name: expected_calibration_error(every[:, k], truth[:, k].float()) for k, name in enumerate(SYMBOLS)},
        "reliability": reliability(every.flatten(), truth.flatten()),
    }


def reliability(scores: Tensor, truth: Tensor, bins: int = 15) -> list[dict[str, float]]:
    """Of every bin of stated probability that is not empty: the mean of what was stated, the share that was true, the
    count."""
    index = (scores * bins).long().clamp(max=bins - 1)
    return [
        {
            "stated": scores[index == b].mean().item(),
            "true": truth[index == b].float().mean().item(),
            "n": int((index == b).sum()),
        }
        for b in range(bins)
        if (index == b).any()
    ]


def measure_pictures(d: Detection, count: int) -> dict[str, Any]:
    """Generated and rendered pictures, with their prompts, with others' and alone; calibration, sensitivity and
    cost."""
    harmful = {kind: d.generated("plain", kind) for kind in HARMFUL_KINDS}
    clean = {kind: d.generated("plain", kind) for kind in CLEAN_KINDS}
    safe, rendered = d.generated("redirect", "seen"), d.rendered(count)
    hgr = d.hgr

    # with prompts. Both sides are what the classifier sees: a harmful prompt's picture without a symbol is none of the
    # harmful ones
    own = {kind: x[x.shown.any(1)] for kind, x in harmful.items()}
    calm = {kind: x[~x.shown.any(1)] for kind, x in clean.items()}
    shown_safe = safe[~safe.shown.any(1)]
    negative = torch.cat([d.hed(x, x.texts).amax(1) for x in calm.values()])
    with_prompt = {kind: ranking(d.hed(x, x.texts).amax(1), negative) for kind, x in own.items()}
    seen = own["seen"]
    other = calm["clean"]
    pairs = min(len(seen.texts), len(other.texts))
    found, found_undirected = d.hed(seen, seen.texts).amax(1), d.undirected(seen, seen.texts)
    crossed = Pictures(other.latents[:pairs], other.shown[:pairs])
    mismatched = {
        "harmful prompt, SafeCFG's picture of it": [
            ranking(a, score(shown_safe, shown_safe.texts))
            for a, score in ((found, lambda x, t: d.hed(x, t).amax(1)), (found_undirected, d.undirected))
        ],
        "harmful prompt, another clean picture": [
            ranking(a, score(crossed, seen.texts[:pairs]))
            for a, score in ((found, lambda x, t: d.hed(x, t).amax(1)), (found_undirected, d.undirected))
        ],
    }
    hed_limits, heads = torch.tensor([c.threshold for c in hgr.probe.hed]), hgr.probe.heads

    def verdict(x: Pictures, texts: Sequence[str] = ()) -> dict[str, Any]:
        """Shares flagged by HED, where there are prompts, by the probe, and by either."""
        by_probe = (calibrated(d.alone(x), heads) >= torch.tensor([c.threshold for c in heads])).any(1)
        if not texts:
            return {"probe": rate(by_probe)}
        by_hed = (calibrated(d.hed(x, list(texts)), hgr.probe.hed) >= hed_limits).any(1)
        return {"hed": rate(by_hed), "probe": rate(by_probe), "either": rate(by_hed | by_probe)}

    caption = [c.clean for c in d.bench.captions("seen", len(harmful["seen"].texts))]
    swapped = [text for text, shows in zip(caption, harmful["seen"].shown.any(1), strict=True) if shows]
    verdicts = {
        "harmful picture, its prompt (seen)": verdict(own["seen"], own["seen"].texts),
        "harmful picture, its prompt (held_out)": verdict(own["held_out"], own["held_out"].texts),
        "harmful picture, the clean caption": verdict(own["seen"], swapped),
        "SafeCFG's picture, the harmful prompt": verdict(shown_safe, shown_safe.texts),
        **{f"clean picture, its prompt ({kind})": verdict(x, x.texts) for kind, x in calm.items()},
        "harmful picture, rendered": verdict(rendered[rendered.shown.any(1)]),
        "clean picture, rendered": verdict(rendered[~rendered.shown.any(1)]),
    }

    # alone
    generated = Pictures(
        torch.cat([x.latents for x in (*harmful.values(), *clean.values())]),
        torch.cat([x.shown for x in (*harmful.values(), *clean.values())]),
    )
    ways: dict[str, Callable[[Pictures], Tensor]] = {"probe": d.alone, "diffusion classifier": d.diffusion_classifier}
    alone, scores = {}, {}
    for name, pictures in (("generated", generated), ("rendered", rendered)):
        none = ~pictures.shown.any(1)
        for way, score in ways.items() if name == "generated" else {**ways, "supervised CNN": d.judge}.items():
            x = scores[name, way] = score(pictures)
            alone.setdefault(name, {})[way] = {
                "any": ranking(x[~none].amax(1), x[none].amax(1)),
                "concepts": per_concept(x, pictures.shown),
            }
    probabilities = calibrated(scores["generated", "probe"], heads)
    return {
        "with prompt": with_prompt,
        "mismatched": mismatched,
        "verdicts": verdicts,
        "alone": alone,
        "cost": {
            "probe": len(hgr.probe.percents),
            "picture with prompt": 3 * len(HED_PERCENTS),
            "a clean prompt": 0,
            "diffusion classifier": (1 + len(SYMBOLS)) * len(CLASSIFIER_PERCENTS),
        },
        "ece": {
            name: expected_calibration_error(probabilities[:, k], generated.shown[:, k].float())
            for k, name in enumerate(SYMBOLS)
        },
        "reliability": reliability(probabilities.flatten(), generated.shown.flatten()),
        "flagged": {
            level: {
                side: rate((probabilities[rows] >= limits(heads, level)).any(1))
                for side, rows in (("harmful", generated.shown.any(1)), ("clean", ~generated.shown.any(1)))
            }
            for level in SENSITIVITIES
        },
    }


def measure_curve(d: Detection) -> dict[str, list[dict[str, Any]]]:
    """Which part of sampling carries the signal, for `CURVE` pictures of each side, of the validation prompts, as the
    defaults are chosen from it: AUROC of each way at one noise level, and of directed HED at several together.

    The probe here is one that is trained for the noise level alone, on the first half, and measured on the second.
    """
    harmful, clean, safe = (
        d.generated(row, kind) for row, kind in (("plain", "seen"), ("plain", "clean"), ("redirect", "seen"))
    )
    first = torch.arange(len(harmful.latents)) < CURVE
    a, s = harmful[first & harmful.shown.any(1)], safe[first & ~safe.shown.any(1)]
    pictures = Pictures(torch.cat([harmful.latents, clean.latents]), torch.cat([harmful.shown, clean.shown]))
    train = torch.arange(len(pictures.latents)) % 2 == 0
    rows = []
    for percent in PERCENTS:
        x = probe_features(d.model, pictures.latents, d.empty, percents=(percent,)).flatten(1)
        standard = (x - x[train].mean(0)) / x[train].std(0).clamp(min=1e-4)
        weight, bias = fit_heads(standard[train], pictures.shown[train])
        held = standard[~train] @ weight + bias
        directed = [d.hed(p, p.texts, (percent,)).amax(1) for p in (a, s)]
        plain = [d.undirected(p, p.texts, (percent,)) for p in (a, s)]
        rows.append(
            {
                "percent": percent,
                "probe": float(np.mean(list(per_concept(held, pictures.shown[~train]).values()))),
                "directed": auroc(*directed),
                "undirected": auroc(*plain),
            }
        )
        log.info("%s", rows[-1])
    count = min(len(a.texts), len(clean.texts))
    other = Pictures(clean.latents[:count], clean.shown[:count])
    together = []
    for percents in TOGETHER:
        found = d.hed(a, a.texts, percents).amax(1)
        negatives = {"safe": d.hed(s, s.texts, percents), "other": d.hed(other, a.texts[:count], percents)}
        together.append({"percents": percents} | {key: auroc(found, x.amax(1)) for key, x in negatives.items()})
    return {"levels": rows, "together": together}


def draw(results: dict[str, Any], folder: Path) -> None:
    """The reliability diagram and the curve over noise levels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    titles = {"prompts": "prompts: gates", "pictures": "pictures alone: probe"}
    for axis, (part, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        bins = results[part]["reliability"]
        axis.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--", label="perfect")
        sizes = [12 + 18 * np.log10(b["n"]) for b in bins]
        axis.plot([b["stated"] for b in bins], [b["true"] for b in bins], color="#2a62b8", linewidth=1.5)
        axis.scatter([b["stated"] for b in bins], [b["true"] for b in bins], s=sizes, color="#2a62b8", zorder=3)
        for b in bins:
            if b["n"] < 100:
                axis.annotate(
                    str(b["n"]), (b["stated"], b["true"]), xytext=(6, -10), textcoords="offset points", fontsize=7
                )
        ece = np.mean(list(results[part]["ece"].values()))
        axis.set(
            title=f"{title} (ECE {ece:.3f})",
            xlabel="stated probability",
            ylabel="share that is true",
            xlim=(-0.03, 1.03),
            ylim=(-0.03, 1.03),
            aspect="equal",
        )
        axis.grid(color="#eeeeee")
    figure.savefig(folder / "calibration.png", dpi=110)

    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axis, rows = figure.subplots(), results["curve"]["levels"]
    for key, label, colour in (
        ("directed", "with prompt: directed HED", "#2a62b8"),
        ("undirected", "with prompt: HED", "#9bb8e0"),
        ("probe", "alone: probe for this level", "#c2703b"),
    ):
        axis.plot(
            [r["percent"] for r in rows], [r[key] for r in rows], marker="o", markersize=4, color=colour, label=label
        )
    for percent in (*HED_PERCENTS, *PROBE_PERCENTS):
        axis.axvline(percent, color="#cccccc", linewidth=1, zorder=0)
    axis.set(
        xlabel="where in sampling the picture is evaluated (0: pure noise, 1: no noise)",
        ylabel="AUROC",
        ylim=(0.45, 1.02),
    )
    axis.legend(loc="lower center", frameon=False)
    axis.grid(color="#eeeeee")
    figure.savefig(folder / "detection_curve.png", dpi=110)


def tables(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    e, prompts, pictures = results["environment"], results["prompts"], results["pictures"]
    text = [
        f"{e['prompts']} prompts and {e['pictures']} pictures of each kind; the bundled HGR, whose probe was trained "
        f"on {e['probe pictures']} pictures that the demo model made; torch {e['torch']}, {e['threads']} threads on "
        f"{e['cpus']} CPUs; world {e['world']}, HGR {e['HGR']}. In brackets: 95 % intervals."
    ]

    def section(title: str, note: str, head: list[str], *, rows: list[list[str]]) -> None:
        text.append(f"### {title}\n\n{note}\n\n{markdown(head, rows)}")

    def both(cell: dict[str, float]) -> list[str]:
        return [f"{cell['auroc']:.4f}", f"{cell['fpr95']:.3f}"]

    section(
        "Prompts",
        'The highest gate, against all clean kinds together and against only the harmless homonyms ("a skull cap"). '
        "Baseline: the highest cosine between mean text features and a concept's description (after Latent Guard).",
        ["prompts", "AUROC", "FPR at 95 %", "AUROC, homonyms", "FPR, homonyms", "cosine: AUROC", "cosine: FPR"],
        rows=[
            [kind, *both(cells["gate"]), *both(prompts["homonyms"][kind]), *both(cells["cosine"])]
            for kind, cells in prompts["ranking"].items()
        ],
    )
    section(
        "Sensitivity: prompts",
        "Share of prompts that are flagged.",
        ["sensitivity", *KINDS],
        rows=[[level, *(with_interval(cells[kind]) for kind in KINDS)] for level, cells in prompts["flagged"].items()],
    )
    section(
        "Pictures with their prompts",
        "Directed HED of harmful pictures against clean pictures of all clean kinds, each with its own prompt.",
        ["pictures", "AUROC", "FPR at 95 %"],
        rows=[[kind, *both(cell)] for kind, cell in pictures["with prompt"].items()],
    )
    section(
        "Pictures whose prompt does not match",
        "Harmful pictures with their prompts (seen) against clean pictures with a harmful "
        "prompt. HED without a direction only says what the prompt asks for.",
        ["clean pictures", "directed HED: AUROC", "FPR at 95 %", "HED: AUROC", "FPR at 95 %"],
        rows=[[name, *both(directed), *both(plain)] for name, (directed, plain) in pictures["mismatched"].items()],
    )
    section(
        "Pictures alone",
        "AUROC of a concept's score: pictures that show the concept against pictures that show none; any: the highest "
        f"score. The probe takes {pictures['cost']['probe']} denoiser evaluations per picture, the diffusion "
        f"classifier {pictures['cost']['diffusion classifier']}. The supervised CNN is the classifier that "
        "says what generated pictures show, so it has no row there.",
        ["pictures, by", *SYMBOLS, "any", "FPR at 95 %, any"],
        rows=[
            [f"{name}, {way}", *(f"{cell['concepts'][k]:.4f}" for k in SYMBOLS), *both(cell["any"])]
            for name, ways in pictures["alone"].items()
            for way, cell in ways.items()
        ],
    )
    section(
        "Verdicts on pictures",
        "Share flagged at sensitivity `normal`: by HED, by the probe, and by either, which is the node's verdict.",
        ["pictures", "HED", "probe", "either"],
        rows=[
            [name, *(with_interval(cell[key]) if key in cell else "" for key in ("hed", "probe", "either"))]
            for name, cell in pictures["verdicts"].items()
        ],
    )
    section(
        "Sensitivity: pictures alone",
        "Share of generated pictures flagged by the probe.",
        ["sensitivity", "harmful", "clean"],
        rows=[
            [level, with_interval(cells["harmful"]), with_interval(cells["clean"])]
            for level, cells in pictures["flagged"].items()
        ],
    )
    eces = [
        [name, *(f"{part['ece'][k]:.4f}" for k in SYMBOLS), f"{np.mean(list(part['ece'].values())):.4f}"]
        for name, part in (("prompts, gates", prompts), ("pictures alone, probe", pictures))
    ]
    note = "Expected calibration error in 15 bins over all kinds."
    section("Calibration", note, ["scores", *SYMBOLS, "mean"], rows=eces)
    text.append("![Stated probability against the share that is true](images/calibration.png)")
    text.append(
        "### Which noise levels carry the signal\n\nMeasured on validation prompts, which are in no other table: the "
        "defaults, which vertical lines mark, are chosen from it. The scores with prompts compare harmful pictures "
        "with SafeCFG's pictures of the same prompts.\n\n"
        "![AUROC by noise level](images/detection_curve.png)\n\n"
        "Directed HED at several levels together, against SafeCFG's pictures of the same prompts and against other "
        "clean pictures:\n\n"
        + markdown(
            ["levels", "AUROC, SafeCFG's pictures", "AUROC, other clean pictures"],
            [
                [
                    ", ".join(map(str, row["percents"])) + " (the default)" * (tuple(row["percents"]) == HED_PERCENTS),
                    f"{row['safe']:.4f}",
                    f"{row['other']:.4f}",
                ]
                for row in results["curve"]["together"]
            ],
        )
    )
    return "\n\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in ("pictures", "prompts"):
        default = getattr(World(), field)
        parser.add_argument(f"--{field}", type=int, default=default, help="of each kind; default: %(default)s")
    parser.add_argument("--steps", type=int, default=World().steps, help="of sampling; default: %(default)s")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="its folders demo_world and detection")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/benchmarks.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/detection.json")
    given = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    log.setLevel(logging.INFO)

    settings = World(pictures=given.pictures, prompts=given.prompts, steps=given.steps)
    bench = Bench(settings, given.runs / "demo_world")
    found = Detection(bench)
    validation = dataclasses.replace(settings, split="validation")
    names = ("detection/hed.py", "detection/probe.py", "core/denoiser.py", "hosts/diffusers/denoiser.py")
    code = fingerprint(*(ROOT / "hgr" / name for name in names), Path(__file__))
    e = bench.environment | {"probe pictures": found.hgr.probe.training["pictures"], "detection code": code}
    folder = given.runs / "detection" / fingerprint(json.dumps(e, sort_keys=True))
    folder.mkdir(parents=True, exist_ok=True)
    results = {"environment": e}
    for part, make in (
        ("prompts", lambda: measure_prompts(found)),
        ("pictures", lambda: measure_pictures(found, given.pictures)),
        ("curve", lambda: measure_curve(Detection(Bench(validation, bench.runs)))),
    ):
        path = folder / f"{part}.json"
        if not path.exists():
            path.write_text(json.dumps(make()))
            log.info("%s: done", part)
        results[part] = json.loads(path.read_text())
    text = tables(results)
    print(text)
    if settings == World():
        write_between(given.page, "detection", text)
        draw(results, CHARTS)
        given.results.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
