"""Fine-tunes the user's own model into a safe LoRA."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...training.settings import LORA_STAGE, LoRASettings
from .. import config
from ..inputs import Item, items_from_file
from ..outputs import check_name, save_result, try_to_write
from ..shared_options import MODEL, add_hgr, add_model, add_settings, defaults, hgr_file, settings_from
from ..tables import aligned

if TYPE_CHECKING:
    from ...core.hgr import HGR
    from ...training.train_lora import Lessons

log = logging.getLogger("safecfg")

_DEFAULTS = {
    **MODEL,
    "hgr": None,
    "prompts": None,
    "latents": None,
    "output": None,
    "work": Path("runs/finetune"),
    "concepts": "",
    "strength": 1.0,
    **defaults(LoRASettings),
}
_USE = """ComfyUI: put it into models/loras and load it with Load LoRA.
diffusers: pipe.load_lora_weights("{}"), with peft installed."""
_SHOWN = 50  # steps that the report's losses are averaged over


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "finetune",
        help="make the model itself safe, without labels: train a LoRA",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        description="Fine-tune a model of Stable Diffusion 1.x, 2.x or XL in diffusers' layout into a LoRA, with an "
        "HGR as its teacher. The prompts are harmful and clean ones mixed, without labels. Ctrl-C keeps the work so "
        "far: run the same command again to resume. Several GPUs: accelerate launch --num_processes N -m hgr finetune "
        "...; several processes on a CPU: accelerate launch --multi_gpu --num_processes N -m hgr finetune --device cpu "
        "...",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.json",
        help='options by name, e.g. {"steps": 300, "concepts": {"violence": 0}}; the command line overrides them',
    )
    _options(parser)
    parser.set_defaults(run=_finetune)


def _options(parser: argparse.ArgumentParser) -> None:
    """All options except --config, without defaults, so that options given can be told from those not given."""
    add_model(parser)
    add_hgr(parser, "the teacher")
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='required: a .txt, one prompt per line; or a .csv with a column "prompt" and, to learn from your own '
        'pictures, "image"',
    )
    parser.add_argument(
        "--latents",
        type=Path,
        metavar="FILE.safetensors",
        help='your own pictures of the prompts, in their order: "latents" (N, C, H, W), scaled as the denoiser '
        "takes them",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE.safetensors", help="the LoRA; required; an existing file is not replaced"
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help=f"checkpoint and TensorBoard logs, default: {_DEFAULTS['work']}"
    )
    parser.add_argument(
        "--concepts",
        metavar="JSON",
        help="strength by concept id, e.g. '{\"skull\": 0}' to leave skulls as they are; default: all at 1",
    )
    parser.add_argument(
        "--strength", type=float, help=f"strength of all concepts, up to about 2, default: {_DEFAULTS['strength']}"
    )
    add_settings(parser, LoRASettings)


def _finetune(given: argparse.Namespace) -> None:
    given = config.merged(given, _options, _DEFAULTS, objects=("concepts",))
    source = _check(given)
    examples = _examples(given)
    texts = [item.prompt or "" for item in examples]

    import torch

    from ...core import file
    from ...core.fingerprint import fingerprint
    from ...core.options import concept_strengths
    from ...core.tensor_file import save_tensors
    from ...training.finite import check_finite
    from ...training.train_lora import check_lessons, train_lora
    from ..inputs import check_latents, read_latents
    from ..processes import launched, meet
    from ..work_folder import WorkFolder

    count = launched()
    settings = settings_from(given, LoRASettings, processes=count)
    hgr = file.load(source)
    strengths = [given.strength * each for each in concept_strengths(given.concepts, hgr.ids)]
    if not any(strengths):
        raise ValueError("--concepts: all are at 0, so there is nothing to learn.")
    latents = read_latents(given.latents) if given.latents else None
    check_lessons(settings, texts, hgr, latents=latents)
    group = meet(given.device, count)
    if not group.main:
        log.setLevel(logging.WARNING)
    sources = {
        "model": str(given.model.resolve()) if given.model else None,
        "hgr": f"{source.name} ({fingerprint(source)})",
        "prompts": f"{given.prompts.name} ({fingerprint([item.key for item in examples])})",
        "latents": f"{given.latents.name} ({fingerprint(given.latents)})" if given.latents else None,
    }
    depends = sources | {"strengths": dict(zip(hgr.ids, strengths, strict=True)), **dataclasses.asdict(settings)}
    work = WorkFolder(given.work, LORA_STAGE, depends)

    from ...hosts.diffusers.finetune import adapt, encode_pictures, lora_state_dict
    from ...hosts.diffusers.loading import load_pipeline, quiet
    from ...hosts.diffusers.prompts import encode, encoder_of

    quiet()
    advice = "try a smaller --batch-size, then a smaller --rank, or smaller pictures of your own."
    with work.run(group, steps=settings.steps, learning_rate=settings.learning_rate, advice=advice) as watch:
        if group.main:
            try_to_write(given.output)
        pipe = load_pipeline(given.model, group.device)
        hgr.network.to(group.device)
        with torch.no_grad():
            hgr.check(*encode(pipe, [""])[:2])  # now, not after all prompts are encoded
        if latents is not None:
            check_latents(latents, given.latents, pipe.unet.config.in_channels)
        if examples[0].image:
            latents = encode_pictures(pipe, [item.image for item in examples if item.image], watch)
        adapted, lessons = train_lora(
            hgr,
            texts,
            settings,
            encode=encoder_of(pipe),
            adapt=lambda: adapt(pipe, settings.rank, settings.seed),
            strengths=strengths,
            work=given.work,
            made_for=fingerprint(sources),
            latents=latents,
            device=group.device,
            processes=group.processes,
            progress=watch,
        )
        if group.main:
            tensors = lora_state_dict(adapted.adapters)
            check_finite("the LoRA's weights in half precision", tensors.values())
            report = _report(lessons, watch.losses, settings)
            watch.logs.done(report, {})
            about = {
                "format": "pt",
                "safecfg": json.dumps(_about(given, hgr, strengths, lessons=lessons, settings=settings)),
            }
            save_result(lambda path: save_tensors(tensors, path, about), given.output, work=given.work, what="LoRA")
            print(f"{report}\n\n{_USE.format(given.output)}\n\n{given.output}")
        group.wait()


def _check(given: argparse.Namespace) -> Path:
    """The HGR to load. Raises ValueError for options that do not fit together."""
    check_name(given.output, "LoRA")
    source = hgr_file(given)
    if given.prompts is None:
        raise ValueError("say what to learn from: --prompts FILE, harmful and clean prompts mixed.")
    if not 0 < given.strength < math.inf:
        raise ValueError(f"--strength is {given.strength}; it must be above 0.")
    return source


def _examples(given: argparse.Namespace) -> list[Item]:
    """The prompts: all with a picture, or none."""
    found = items_from_file(given.prompts)
    pictures = sum(item.image is not None for item in found)
    if pictures and given.latents:
        raise ValueError(f"{given.prompts.name} names pictures, and --latents has some: give only one of them.")
    for item in found if pictures else ():
        if not (item.prompt and item.image):
            lacking = "picture" if item.prompt else "prompt"
            raise ValueError(
                f'{given.prompts.name}: "{item.name}" has no {lacking}: give every row both, or no row a picture.'
            )
    return found


def _report(lessons: Lessons, losses: list[float], settings: LoRASettings) -> str:
    """What the LoRA learned from, and how well, for people."""
    harmful = lessons.harm > 0
    part = max(1, min(_SHOWN, len(losses) // 2))
    mean = lessons.harm[harmful].mean()
    rows = [("examples", f"{len(harmful)}, harmful by the HGR: {harmful.sum()}, with a mean h of {mean:.2f}")]
    if losses:
        start = settings.steps - len(losses)
        first = f"from step {start} on" if start else "at first"
        rows.append(("loss", f"{_mean(losses[:part]):.3f} {first}, {_mean(losses[-part:]):.3f} at the end"))
    return aligned(rows)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _about(
    given: argparse.Namespace, hgr: HGR, strengths: list[float], *, lessons: Lessons, settings: LoRASettings
) -> dict[str, Any]:
    """The file's record of how the LoRA was made; without paths, as the file may be shared."""
    import diffusers
    import peft
    import torch

    from ... import __version__

    return {
        "model": given.model.resolve().name if given.model else "the bundled model",
        "hgr": hgr.name,
        "concepts": dict(zip(hgr.ids, strengths, strict=True)),
        **dataclasses.asdict(settings),
        "examples": len(lessons.harm),
        "harmful": int((lessons.harm > 0).sum()),
        "versions": {
            "safecfg": __version__,
            **{module.__name__: module.__version__ for module in (torch, diffusers, peft)},
        },
    }
