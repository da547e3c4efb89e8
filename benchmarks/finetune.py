"""Safe fine-tuning on the demo world: what a LoRA that was trained without labels loses against one with labels, where
its h may come from, and its strength as a dial.

    python benchmarks/finetune.py                       the tables and the chart of docs/benchmarks.md
    python benchmarks/finetune.py --rows both labels    some rows
    python benchmarks/finetune.py --parts dial          some parts
    python benchmarks/finetune.py --pictures 60         a quick look; writes no page

How the LoRA does on every kind of prompt, beside all other methods, is in demo_world.py. All rows here learn from one
unlabelled mixture of prompts and from the same pictures, which the model made. LoRAs and finished cells are kept under
--runs. Prompts to report on, noise and the classifier are those of demo_world.py.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from demo_world import ROOT, WORDS, Bench
from demo_world import Settings as World
from measure import markdown, mean, rate, with_interval, write_between
from rivals.esd import PICTURES as ESD_PICTURES
from rivals.esd import erasing
from rivals.lora import HARMFUL_SHARE, mixture
from safetensors.torch import load_file
from torch import Tensor

from hgr.core.fingerprint import fingerprint
from hgr.core.progress import Progress
from hgr.core.prompt import Prompt
from hgr.core.tensor_file import save_tensors
from hgr.demo.captions import Caption
from hgr.hosts.diffusers import finetune as host
from hgr.hosts.diffusers.demo import load_demo_pipeline
from hgr.hosts.diffusers.prompts import encoder_of
from hgr.training.encoded_prompts import EncodedPrompts
from hgr.training.loop import Loop
from hgr.training.pictures import paint
from hgr.training.settings import LoRASettings
from hgr.training.train_lora import Adapted, Lessons, Teacher, fit_lora, harm_of
from hgr.training.work_files import features_file

log = logging.getLogger("benchmark")

ROWS = {
    "both": "h from prompt and picture (the default)",
    "prompt": "h from the prompt",
    "picture": "h from the picture",
    "harmful_only": "only harmful examples, nothing preserved",
    "preserved": "with the same number of clean examples added",
    **{f"wrong_{share}": f"h shuffled in {share} % of the examples" for share in (10, 20)},
    "labels": "true labels, true clean captions (the upper bound)",
    "esd": "ESD-style: away from the concepts' names",
}
KINDS = ("seen", "held_out", "clean")
PICTURES = 200
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25)
DIAL_KINDS = ("seen", "clean")
PARTS = ("rows", "dial")
CHART = ROOT / "docs/images/finetune_strength.png"


class Labelled(Teacher):
    """Knows the true clean caption of every caption: what a teacher with labels would say."""

    def __init__(self, *given: Any, captions: list[Caption]):
        super().__init__(*given)
        self.clean = {caption.text: caption.clean for caption in captions} | {"": ""}

    def prompts(self, texts: list[str]) -> tuple[Prompt, Prompt]:
        return self.encoded(texts, self.device), self.encoded([self.clean[text] for text in texts], self.device)


class Tuning:
    """The lessons that all rows share, and the LoRA of each row, in a folder for these settings. As many prompts as the
    settings have pictures."""

    def __init__(self, bench: Bench, settings: LoRASettings):
        self.bench, self.settings = bench, settings
        self.folder = folder = bench.folder / f"loras-{bench.environment['HGR']}-{fingerprint(settings)}"
        self.captions = mixture(settings.seed, settings.pictures)
        self.extra = mixture(settings.seed + 1, settings.pictures, 0.0)
        every = [*self.captions, *self.extra]
        texts = list(dict.fromkeys([""] + [t for c in every for t in (c.text, c.clean)] + WORDS.split(", ")))
        folder.mkdir(parents=True, exist_ok=True)
        self.scratch = tempfile.TemporaryDirectory(dir=folder)  # gone with this object
        self.encoded = EncodedPrompts(texts, encoder_of(bench.pipe), features_file(Path(self.scratch.name), 0))

    def adapted(self) -> tuple[Any, Adapted]:
        torch.manual_seed(self.settings.seed)
        pipe = load_demo_pipeline()
        return pipe, host.adapt(pipe, self.settings.rank, self.settings.seed)

    def lessons(self, adapted: Adapted, captions: list[Caption], evidence: str) -> Lessons:
        """Pictures and harm, made once. The model is still as it was: a new LoRA does nothing."""
        texts = [caption.text for caption in captions]
        name = "mixture" if captions is self.captions else "extra"
        start, kept = time.perf_counter(), self.folder / f"{name}.safetensors"
        latents = paint(adapted.denoiser, texts, kept)
        path = self.folder / f"{name}-{evidence}.safetensors"
        if not path.exists():
            seed = self.settings.seed
            harm = harm_of(self.teacher, adapted.denoiser, latents, texts=texts, evidence=evidence, seed=seed)
            save_tensors({"harm": harm}, path)
            log.info("%s, %s: painted and judged in %.0f s", name, evidence, time.perf_counter() - start)
        return Lessons(latents, texts, load_file(path)["harm"])

    @property
    def teacher(self) -> Teacher:
        return Teacher(self.bench.hgr, self.encoded, [1.0] * len(self.bench.hgr.ids))

    def lora(self, row: str) -> Path:
        """The LoRA file of a row, trained unless it is done."""
        path = self.folder / f"{row}.safetensors"
        if path.exists():
            return path
        pipe, adapted = self.adapted()
        start = time.perf_counter()
        work = self.folder / f"work-{row}"
        if row == "esd":
            self._esd(adapted, work)
        else:
            teacher = self.teacher
            lessons = self.lessons(adapted, self.captions, row if row in ("prompt", "picture") else "both")
            harm, truth = lessons.harm, torch.tensor([float(bool(c.concepts)) for c in self.captions])
            start = time.perf_counter()
            if row == "labels":
                strengths = [1.0] * len(self.bench.hgr.ids)
                teacher = Labelled(self.bench.hgr, self.encoded, strengths, captions=self.captions)
                harm = truth
            elif row.startswith("wrong_"):
                harm = shuffled(harm, int(row.removeprefix("wrong_")) / 100, self.settings.seed)
            if row == "harmful_only":
                keep = (harm > 0).nonzero().flatten().tolist()
                lessons = Lessons(lessons.latents[keep], [lessons.texts[i] for i in keep], harm[keep])
            elif row == "preserved":
                more = self.lessons(adapted, self.extra, "both")
                lessons = Lessons(
                    torch.cat([lessons.latents, more.latents]),
                    lessons.texts + more.texts,
                    torch.cat([harm, torch.zeros(len(more.texts))]),
                )
            else:
                lessons = dataclasses.replace(lessons, harm=harm)
            fit_lora(teacher, adapted, lessons, settings=self.settings, work=work, progress=StepLog(row))
        spent = time.perf_counter() - start
        save_tensors(host.lora_state_dict(pipe.unet), path, {"seconds": f"{spent:.0f}"})
        log.info("%s: trained in %.0f s", row, spent)
        return path

    def _esd(self, adapted: Adapted, work: Path) -> None:
        """ESD's loss on the concepts' names alone (`rivals.esd`), on the same layers as the other rows."""
        settings, words = self.settings, WORDS.split(", ")
        texts = [words[i % len(words)] for i in range(min(ESD_PICTURES, settings.pictures))]
        latents = paint(adapted.denoiser, texts, self.folder / "esd-pictures.safetensors")
        named, empty = (self.encoded(part).features for part in (texts, [""]))
        Loop(
            "esd",
            adapted.adapters,
            work,
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            seed=settings.seed,
            average=0.99,
            progress=StepLog("esd"),
        ).run(erasing(adapted, latents, named, empty=empty, batch=settings.batch_size))


def shuffled(harm: Tensor, share: float, seed: int) -> Tensor:
    """harm (N,) with its values shuffled among a share of the examples."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(harm), generator=generator)[: round(share * len(harm))]
    result = harm.clone()
    result[rows] = harm[rows[torch.randperm(len(rows), generator=generator)]]
    return result


class StepLog(Progress):
    """Logs the mean loss of every 50 steps."""

    def __init__(self, row: str):
        self.row, self.losses = row, []

    def step(self, done: int, loss: float) -> None:
        self.losses.append(loss)
        if done % 50 == 0:
            log.info("%s: step %d, loss %.3f", self.row, done, sum(self.losses[-50:]) / 50)


def measured(tuning: Tuning, row: str, *, kinds: tuple[str, ...], strength: float = 1.0) -> dict[str, Any]:
    """What the model with a row's LoRA draws, by kind, beside plain CFG's pictures of the model without it."""
    bench, path = tuning.bench, tuning.lora(row)
    plain = {kind: bench.cell("plain", kind) for kind in kinds}
    tuned = copy.copy(bench)
    tuned.folder = tuning.folder / f"{row}-{strength}"
    tuned.folder.mkdir(parents=True, exist_ok=True)
    tuned.pipe = load_demo_pipeline()
    tuned.pipe.load_lora_weights(str(path))
    tuned.pipe.fuse_lora(lora_scale=strength)
    found = {}
    for kind in kinds:
        cell = tuned.cell("plain", kind)
        found[kind] = {
            "harmful": rate(cell["symbols"].any(1)),
            "kept": mean(cell["kept"]),
            "kept_before": mean(plain[kind]["kept"]),
            "harmful_before": rate(plain[kind]["symbols"].any(1)),
            "difference": mean((cell["latents"] - plain[kind]["latents"]).abs().flatten(1).mean(1)),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    for field in ("pictures", "steps"):
        option, default = f"--training-{field}", getattr(LoRASettings(), field)
        parser.add_argument(option, type=int, default=default, help="of the LoRA's training; default: %(default)s")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="per cell; default: %(default)s")
    parser.add_argument("--steps", type=int, default=World().steps, help="of sampling; default: %(default)s")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/finetune")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/benchmarks.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/finetune.json")
    given = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    log.setLevel(logging.INFO)

    settings = LoRASettings(steps=given.training_steps, pictures=given.training_pictures)
    world = World(pictures=given.pictures, steps=given.steps)
    bench = Bench(world, given.runs)
    tuning = Tuning(bench, settings)
    results: dict[str, Any] = {"environment": bench.environment, "settings": dataclasses.asdict(settings)}
    try:
        if "dial" in given.parts:
            results["dial"] = {str(s): measured(tuning, "both", kinds=DIAL_KINDS, strength=s) for s in STRENGTHS}
        if "rows" in given.parts:
            results["rows"] = {row: measured(tuning, row, kinds=KINDS) for row in given.rows}
    finally:
        tuning.encoded.close()
    path = tuning.folder / "results.json"
    if path.exists():  # what earlier runs measured, or others meanwhile
        before = json.loads(path.read_text())
        rows = before.get("rows", {}) | results.get("rows", {})
        results = before | results | {"rows": {row: rows[row] for row in ROWS if row in rows}}
    path.write_text(json.dumps(results, indent=1) + "\n")
    text = tables(results)
    print(text)
    if world == World(pictures=PICTURES) and settings == LoRASettings():
        write_between(given.page, "finetune", text)
        given.results.write_text(path.read_text())
        if "dial" in results:
            draw(results["dial"], CHART)


def tables(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    e = results["environment"]
    text = [
        f"One unlabelled mixture of {results['settings']['pictures']} prompts, {HARMFUL_SHARE:.0%} of them harmful; "
        f"training settings {results['settings']}. "
        f"{e['pictures']} pictures a cell, {e['steps']} DDIM steps, CFG {e['cfg']}; torch {e['torch']}, diffusers "
        f"{e['diffusers']}, {e['threads']} threads on {e['cpus']} CPUs; world {e['world']}, HGR {e['HGR']}. In "
        "brackets: 95 % intervals."
    ]
    if results.get("rows"):
        before = next(iter(results["rows"].values()))
        line = [before["seen"]["harmful_before"], before["held_out"]["harmful_before"], before["seen"]["kept_before"]]
        text.append(
            "### Where h comes from, wrong h, and alternatives\n\n"
            + markdown(
                [
                    "",
                    "harmful, seen",
                    "harmful, held_out",
                    "benign kept, seen",
                    "attributes, clean",
                    "difference, clean",
                ],
                [
                    ["no LoRA", *map(with_interval, [*line, before["clean"]["kept_before"]]), ""],
                    *(
                        [
                            ROWS[row],
                            with_interval(found["seen"]["harmful"]),
                            with_interval(found["held_out"]["harmful"]),
                            with_interval(found["seen"]["kept"]),
                            with_interval(found["clean"]["kept"]),
                            with_interval(found["clean"]["difference"]),
                        ]
                        for row, found in results["rows"].items()
                    ),
                ],
            )
        )
    if "dial" in results:
        text.append(
            "### The LoRA's strength\n\n"
            "![Harmful rate and what stays against the LoRA's strength](images/finetune_strength.png)\n\n"
            + markdown(
                ["strength", "harmful, seen", "benign kept, seen", "attributes, clean", "difference, clean"],
                [
                    [
                        s,
                        with_interval(found["seen"]["harmful"]),
                        with_interval(found["seen"]["kept"]),
                        with_interval(found["clean"]["kept"]),
                        with_interval(found["clean"]["difference"]),
                    ]
                    for s, found in results["dial"].items()
                ],
            )
        )
    return "\n\n".join(text)


def draw(dial: dict[str, Any], path: Path) -> None:
    """The strength as a dial, as a chart."""
    from matplotlib.figure import Figure

    before = next(iter(dial.values()))
    strengths = [0.0, *map(float, dial)]
    figure = Figure(figsize=(6.4, 3.6), dpi=120, layout="tight")
    axes = figure.subplots()
    for label, kind, key in (
        ("harmful prompts: a symbol is seen", "seen", "harmful"),
        ("harmful prompts: benign attributes", "seen", "kept"),
        ("clean prompts: attributes", "clean", "kept"),
    ):
        cells = [before[kind][f"{key}_before"], *(found[kind][key] for found in dial.values())]
        line = axes.plot(strengths, [cell["value"] for cell in cells], marker="o", label=label)[0]
        axes.fill_between(
            strengths,
            [cell["low"] for cell in cells],
            [cell["high"] for cell in cells],
            color=line.get_color(),
            alpha=0.15,
        )
    axes.set(xlabel="strength of the LoRA", ylabel="share of pictures, of attributes", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.08), frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
