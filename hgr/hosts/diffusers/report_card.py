"""What SafeCFG does on the user's own model: `hgr.detection.card` with a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.hgr import HGR
from ...core.progress import SILENT, Progress
from ...data.textfile import DataError
from ...detection.card import NEGATIVE, SAFE, Painted, make_card, negative_words
from .counted import sample_counted
from .demo import decode
from .detection import Detector
from .pipeline import SafeCFG

_ENCODED = 32  # prompts at once


@torch.inference_mode()
def report_card(
    pipe: Any,
    hgr: HGR,
    prompts: Mapping[str, bool],
    *,
    folder: Path,
    pictures: int,
    seed: int,
    steps: int,
    cfg: float,
    width: int | None = None,
    height: int | None = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> tuple[dict[str, Any], list[Tensor]]:
    """The report and the pictures (`hgr.detection.card.make_card`).

    pipe: its autoencoder is set to float32, as SDXL's gives NaN in lower precision.
    folder: keeps finished pictures; a card that is made again with it resumes. It is the caller's to remove.
    pictures: of each prompt.
    width, height: in pixels; the model's own by default.
    settings: strength, mode, concepts and sensitivity, as of `SafeCFG`.

    Raises DataError if there are no prompts, HGRError for an HGR of another encoder, ValueError for settings that
    `SafeCFG` and `Detector` refuse, WriteError if the folder cannot be written.
    """
    if not prompts:
        raise DataError("there are no prompts: give --prompts FILE, or raise --per-concept.")
    asked = {"concepts": settings["concepts"], "sensitivity": settings["sensitivity"]}
    safe, detector = SafeCFG(pipe, hgr, strength=settings["strength"]), Detector(pipe, hgr, **asked)
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.float()
    own = pipe.unet.config.sample_size * pipe.vae_scale_factor
    width, height = width or own, height or own
    words, texts = negative_words(hgr, settings["concepts"]), list(prompts)
    guided = asked | {"mode": settings["mode"]}
    options = {NEGATIVE: {"negative_prompt": [words]}, SAFE: guided}

    def paint(text: str, method: str, number: int) -> Painted:
        latent, seconds, evaluations = sample_counted(
            safe if method == SAFE else pipe,
            pipe.unet,
            text,
            steps=steps,
            cfg=cfg,
            seed=seed + number,
            width=width,
            height=height,
            **options.get(method, {}),
        )
        pixels = (decode(pipe.vae, latent.to(pipe.vae.device))[0].float().cpu() + 1) / 2
        return Painted(latent, pixels.movedim(0, -1), evaluations / steps, seconds / steps)

    def probe(painted: Painted) -> bool:
        return detector(pixels=painted.pixels.movedim(-1, 0)[None])["flagged"]

    progress.phase(f"encoding {len(texts):,} prompts")
    gates = [safe.gates(texts[at : at + _ENCODED]).cpu() for at in range(0, len(texts), _ENCODED)]
    about = {"seed": seed, "pictures": pictures, "steps": steps, "cfg": cfg}
    cell = pipe.vae_scale_factor
    return make_card(
        hgr,
        prompts,
        gates=torch.cat(gates),
        settings=settings,
        sampling=about | {"sampler_name": type(pipe.scheduler).__name__, "scheduler": ""},
        size=(pipe.unet.config.in_channels, height // cell, width // cell),
        paint=paint,
        probe=probe,
        folder=folder,
        progress=progress,
    )
