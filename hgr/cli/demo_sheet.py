"""`python -m hgr demo`: the bundled model with and without SafeCFG, as a grid of pictures, a report and a table."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..core.atomic import write_text
from ..core.denoiser import evaluations
from ..core.options import DEFAULT_MODE
from ..demo import assets
from ..demo.captions import draw
from ..demo.classifier import kept, load_classifier
from ..demo.world import SIZE
from ..detection.sheet import GREY, INK, PAPER, RULE, paste
from ..hosts.diffusers.demo import decode, load_demo_pipeline
from ..hosts.diffusers.pipeline import SafeCFG

PICTURE, REPORT = "demo.png", "demo.json"
CFG = 7.5
PROMPTS, SEEDS = 2, 5  # of each kind, of each prompt
KINDS = {
    "clean": "Clean prompts",
    "homonym": "Harmless words that sound harmful",
    "seen": "One harmful concept",
    "two": "Two harmful concepts",
    "held_out": "One harmful concept, in wording kept out of training",
}


def run(
    output: Path, *, seed: int = 0, steps: int = 16, mode: str = DEFAULT_MODE, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Sample every kind of prompt with plain CFG and SafeCFG from the same noise; write the grid and the report.

    Returns the report. Its `rows` have for each kind, under `plain` and `safe`: `harmful`, the share of pictures in
    which the classifier sees a symbol, and `kept`, the mean of `classifier.kept`; and for both together `identical`,
    the share of latents that are equal bit for bit, `evaluations` of the denoiser per picture and step with SafeCFG,
    and `time`, SafeCFG's over plain CFG's.
    """
    pipe, judge = load_demo_pipeline().to(device), load_classifier().to(device)
    safe = SafeCFG(pipe, assets.HGR_FILE)
    rng = random.Random(f"demo/{seed}")
    seeds = [seed + i for i in range(SEEDS)]

    def sample(texts: list[str], **guidance: Any) -> tuple[Tensor, float]:
        generators = [torch.Generator().manual_seed(seeds[i % SEEDS]) for i in range(len(texts))]
        start = time.perf_counter()
        sampled = (safe if guidance else pipe)(
            texts, guidance_scale=CFG, num_inference_steps=steps, generator=generators, output_type="latent", **guidance
        )
        shown = sampled.images.cpu()  # also waits for a GPU
        return shown, time.perf_counter() - start

    sample([""] * PROMPTS * SEEDS)  # the first run with a shape is slower, so it is not timed
    rows, pictures = {}, {}
    for kind in KINDS:
        captions = [draw(rng, kind) for _ in range(PROMPTS)]
        texts = [caption.text for caption in captions for _ in range(SEEDS)]
        plain, plain_time = sample(texts)
        with evaluations(pipe.unet) as count:
            guided, safe_time = sample(texts, mode=mode)
        gates = safe.gates([caption.text for caption in captions]) >= safe.hgr.thresholds
        rows[kind] = {
            "prompts": [caption.text for caption in captions],
            "fired": [[i for i, on in zip(safe.hgr.ids, row, strict=True) if on] for row in gates.tolist()],
            "identical": (plain == guided).flatten(1).all(1).float().mean().item(),
            "evaluations": count[0] / len(texts) / steps,
            "time": safe_time / plain_time,
        }
        scenes = [caption.scene for caption in captions for _ in range(SEEDS)]
        for side, latents in (("plain", plain), ("safe", guided)):
            pixels = decode(pipe.vae, latents.to(device))
            judged = judge.judge(pixels)
            harmful = judged.symbols.any(1)
            pictures[kind, side] = pixels, harmful
            rows[kind][side] = {"harmful": harmful.float().mean().item(), "kept": kept(judged, scenes).mean().item()}

    report = {
        "mode": mode,
        "cfg": CFG,
        "steps": steps,
        "seeds": seeds,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "rows": rows,
    }
    output.mkdir(parents=True, exist_ok=True)
    _grid(report, pictures).save(output / PICTURE)
    write_text(output / REPORT, json.dumps(report, indent=2) + "\n")
    return report


def table(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """The report as rows of text, headings first, with `plain > SafeCFG` where there are both."""
    rows: list[tuple[str, ...]] = [("prompts", "harmful", "benign kept", "identical", "evaluations per step", "time")]
    for kind, row in report["rows"].items():
        pairs = [f"{row['plain'][key]:.2f} > {row['safe'][key]:.2f}" for key in ("harmful", "kept")]
        rows.append((kind, *pairs, f"{row['identical']:.2f}", f"{row['evaluations']:.2f}", f"{row['time']:.2f} x"))
    return rows


_MARGIN, _GAP, _BETWEEN = 36, 6, 44  # around the grid, between pictures, between its two halves


def _grid(report: dict[str, Any], pictures: dict[tuple[str, str], tuple[Tensor, Tensor]]) -> Image.Image:
    """A heading for each kind and, for each prompt, the plain pictures on the left and SafeCFG's on the right."""
    fonts = {size: ImageFont.load_default(size) for size in (17, 20, 25, 36)}
    half = SEEDS * (SIZE + _GAP) - _GAP
    sides = {"plain": _MARGIN, "safe": _MARGIN + half + _BETWEEN}
    block = 76 + PROMPTS * (SIZE + 44) + 14
    sheet = Image.new("RGB", (2 * _MARGIN + 2 * half + _BETWEEN, 150 + len(KINDS) * block + _MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)

    def write(x: int, y: int, text: str, *, size: int, fill: str = INK) -> None:
        pen.text((x, y), text, fill, fonts[size])

    write(_MARGIN, 28, "The same prompts and seeds, without and with SafeCFG", size=36)
    write(
        _MARGIN,
        78,
        f"bundled model, {report['steps']} DDIM steps, CFG {report['cfg']}; "
        "red frame: the classifier sees a symbol that stands for a harmful concept",
        size=17,
        fill=GREY,
    )
    write(
        _MARGIN,
        99,
        "Now and then this model, like any, draws one that nobody asked for. SafeCFG leaves clean prompts as they are.",
        size=17,
        fill=GREY,
    )
    y = 126
    for kind, heading in KINDS.items():
        row = report["rows"][kind]
        pen.line((_MARGIN, y, sheet.width - _MARGIN, y), RULE, 1)
        write(_MARGIN, y + 12, heading, size=25)
        for side, name in (("plain", "Plain CFG"), ("safe", f"SafeCFG, {report['mode']}")):
            score = f"{name}: harmful {row[side]['harmful']:.0%}, benign attributes kept {row[side]['kept']:.0%}"
            same = f", {row['identical']:.0%} identical" if side == "safe" and row["identical"] else ""
            write(sides[side], y + 46, score + same, size=17, fill=GREY)
        y += 76
        for p, prompt in enumerate(row["prompts"]):
            write(_MARGIN, y + 4, f"“{prompt}”", size=20)
            for side, x in sides.items():
                pixels, harmful = pictures[kind, side]
                for i in range(SEEDS):
                    at = p * SEEDS + i
                    corner = (x + i * (SIZE + _GAP), y + 34)
                    paste(sheet, _bytes(pixels[at]), corner, framed=bool(harmful[at]))
            y += SIZE + 44
        y += 14
    return sheet


def _bytes(pixels: Tensor) -> Tensor:
    """A picture (3, H, W) in [-1, 1] as bytes (H, W, 3)."""
    return ((pixels.cpu() + 1) * 127.5).round().byte().permute(1, 2, 0)
