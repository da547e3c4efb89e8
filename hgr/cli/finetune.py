"""Safe fine-tuning of the user's own model, into a LoRA."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..demo import assets
from . import config, items
from .outputs import check_name, save, try_to_write
from .tables import aligned

if TYPE_CHECKING:
    from ..finetune import Lessons, Settings
    from ..redirector import HGR

log = logging.getLogger("safecfg")

# of hgr.finetune, which would import torch
SETTINGS = {"steps": 400, "batch": 8, "lr": 1e-3, "rank": 16, "seed": 0, "evidence": "both", "pictures": 400}
EVIDENCE = ("prompt", "picture", "both")

_DEFAULTS = {"model": None, "hgr": None, "prompts": None, "latents": None, "output": None, "work": Path("runs/finetune"), "concepts": "",
             "strength": 1.0, "device": None, **SETTINGS}
_STAGE = "lora"  # the core's name for the checkpoint
_USE = """ComfyUI: put it into models/loras and load it with Load LoRA.
diffusers: pipe.load_lora_weights("{}"), with peft installed."""
_SHOWN = 50  # steps that a loss in the report is the mean of


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "finetune", help="make a model itself safe, without labels: a LoRA", argument_default=argparse.SUPPRESS, allow_abbrev=False,
        description="Fine-tune a model of Stable Diffusion 1.x, 2.x or XL in diffusers' layout into a LoRA, with an HGR as its teacher. "
                    "The prompts are harmful and clean ones as they come; nobody says which are. Ctrl-C keeps what is done: the same "
                    "command goes on from there. Several GPUs: accelerate launch --num_processes N -m hgr finetune ...; several "
                    "processes on a CPU: accelerate launch --multi_gpu --num_processes N -m hgr finetune --device cpu ...")
    parser.add_argument("--config", type=Path, metavar="FILE.json",
                        help="options by name, e.g. {\"steps\": 300, \"concepts\": {\"violence\": 0}}; those of the command line win")
    _options(parser)
    parser.set_defaults(run=_finetune)


def _options(parser: argparse.ArgumentParser) -> None:
    """All options but --config; without defaults of their own, so that those given can be told from those not given."""
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="a model in diffusers' layout; default: the bundled one")
    add("--hgr", type=Path, metavar="FILE", help="the teacher; default, for the bundled model: the bundled one")
    add("--prompts", type=Path, metavar="FILE",
        help="needed: a .txt, one prompt a line; or a .csv with a column \"prompt\" and, to learn from your own pictures, \"image\"")
    add("--latents", type=Path, metavar="FILE.safetensors",
        help="your own pictures of the prompts, in their order: \"latents\" (N, C, H, W), scaled as the denoiser takes them")
    add("--output", type=Path, metavar="FILE.safetensors", help="the LoRA; needed; a file that is there already is not replaced")
    add("--work", type=Path, metavar="DIR", help=f"checkpoint and TensorBoard logs, default: {_DEFAULTS['work']}")
    add("--concepts", metavar="JSON", help="strength by concept id, e.g. '{\"skull\": 0}' to leave skulls as they are; default: all at 1")
    add("--strength", type=float, help=f"of all concepts, to about 2, default: {_DEFAULTS['strength']}")
    add("--evidence", choices=EVIDENCE,
        help=f"what says how harmful an example is; \"picture\" and \"both\" need an HGR with a picture probe, "
             f"default: {SETTINGS['evidence']}")
    add("--rank", type=int, help=f"of the LoRA, default: {SETTINGS['rank']}")
    add("--steps", type=int, help=f"default: {SETTINGS['steps']}")
    add("--batch", type=int, help=f"examples a step in each process, half of them harmful, default: {SETTINGS['batch']}")
    add("--lr", type=float, help=f"learning rate, default: {SETTINGS['lr']}")
    add("--seed", type=int, help=f"default: {SETTINGS['seed']}")
    add("--pictures", type=int, metavar="N",
        help=f"that the model makes of the prompts where you give none, default: {SETTINGS['pictures']}")
    add("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")


def _finetune(given: argparse.Namespace) -> None:
    given = _merged(given)
    examples = _examples(given)
    texts = [item.prompt for item in examples]

    import torch

    from .. import file, finetune
    from ..guidance import concept_strengths
    from .inputs import check_latents, read_latents
    from .processes import join, launched
    from .work import Work

    count = launched()
    settings = finetune.Settings(**{name: getattr(given, name) for name in SETTINGS})
    settings = dataclasses.replace(settings, batch=settings.batch * count)
    source = given.hgr or assets.HGR_FILE
    hgr = file.load(source)
    strengths = [given.strength * each for each in concept_strengths(given.concepts, hgr.ids)]
    if not any(strengths):
        raise ValueError("--concepts: all are at 0, so there is nothing to learn.")
    latents = read_latents(given.latents) if given.latents else None
    finetune.check(settings, texts, hgr, latents)
    group = join(given.device, count)
    if not group.main:
        log.setLevel(logging.WARNING)
    sources = {"model": str(given.model.resolve()) if given.model else None, "hgr": _named(source, source.read_bytes()),
               "prompts": _named(given.prompts, "\n".join(item.key for item in examples).encode()),
               "latents": _named(given.latents, given.latents.read_bytes()) if given.latents else None}
    work = Work(given.work, _STAGE, sources | {"strengths": dict(zip(hgr.ids, strengths, strict=True)), **dataclasses.asdict(settings)})
    work.claim(group)
    if group.main:
        try_to_write(given.output)

    from ..hosts.diffusers import encode, loading
    from ..hosts.diffusers import finetune as host
    from ..hosts.diffusers.training import encoder

    loading.quiet()
    pipe = loading.load_pipeline(given.model, group.device)
    hgr.network.to(group.device)
    with torch.no_grad():
        hgr.check(*encode(pipe, [""])[:2])  # not only when all prompts are encoded
    if latents is not None:
        check_latents(latents, given.latents, pipe.unet.config.in_channels)
    losses = []

    def on_step(step: int, loss: float) -> None:
        losses.append(loss)
        watch.step(step, loss)

    advice = "try a smaller --batch, then a smaller --rank, or smaller pictures of your own."
    with work.run(group, settings.steps, settings.lr, advice) as watch:
        if examples[0].image:
            latents = host.read_latents(pipe, [item.image for item in examples], watch.count("pictures"))
        adapted, lessons = finetune.finetune(
            hgr, texts, encoder(pipe), lambda: host.adapt(pipe, settings.rank, settings.seed), settings, strengths, given.work,
            json.dumps(sources), latents, group.device, group.processes, watch.count("prompts"), watch.count("pictures"), on_step)
        if group.main:
            report = _report(lessons, losses, settings)
            watch.logs.done(report, {})
            about = {"format": "pt", "safecfg": json.dumps(_about(given, hgr, strengths, lessons, settings))}
            save(lambda path: file.save_safely(host.state_dict(adapted.adapters), path, about), given.output, given.work, "LoRA")
            print(f"{report}\n\n{_USE.format(given.output)}\n\n{given.output}")
        group.wait()


def _merged(given: argparse.Namespace) -> argparse.Namespace:
    """The defaults, replaced by the configuration file's values, replaced by the command line's; checked."""
    options = vars(given)
    if "config" in options:
        options = config.read(given.config, _options, list(_DEFAULTS), objects=["concepts"]) | options
    given = argparse.Namespace(**(_DEFAULTS | options))
    check_name(given.output, "LoRA")
    if given.model and not given.hgr:
        raise ValueError("--model needs the HGR that was made for it: give --hgr FILE.")
    if given.prompts is None:
        raise ValueError("say what to learn from: --prompts FILE, harmful and clean prompts as they come.")
    if not 0 < given.strength < math.inf:
        raise ValueError(f"--strength is {given.strength}; it must be above 0.")
    return given


def _examples(given: argparse.Namespace) -> list[items.Item]:
    """The prompts; with a picture each, or none with one."""
    found = items.from_file(given.prompts)
    pictures = sum(item.image is not None for item in found)
    if pictures and given.latents:
        raise ValueError(f"{given.prompts.name} names pictures, and --latents holds some: give either.")
    for item in found if pictures else ():
        if not (item.prompt and item.image):
            raise ValueError(f"{given.prompts.name}: \"{item.name}\" has no {'picture' if item.prompt else 'prompt'}: give every row both, "
                             "or no row a picture.")
    return found


def _named(path: Path, content: bytes) -> str:
    """A file by its name and by what is in it."""
    return f"{path.name}, SHA-256 {hashlib.sha256(content).hexdigest()[:16]}"


def _report(lessons: Lessons, losses: list[float], settings: Settings) -> str:
    """What the LoRA learned from, and how well, for people."""
    harmful = lessons.harm > 0
    part = max(1, min(_SHOWN, len(losses) // 2))
    rows = [("examples", f"{len(harmful)}, harmful by the HGR: {harmful.sum()}, h {lessons.harm[harmful].mean():.2f} on average")]
    if losses:
        start = settings.steps - len(losses)
        rows.append(("loss", f"{_mean(losses[:part]):.3f} {f'from step {start} on' if start else 'at first'}, "
                             f"{_mean(losses[-part:]):.3f} at the end"))
    return aligned(rows)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _about(given: argparse.Namespace, hgr: HGR, strengths: list[float], lessons: Lessons, settings: Settings) -> dict[str, Any]:
    """What the file says about how the LoRA was made; without paths, as the file may be given away."""
    import diffusers
    import peft
    import torch

    from .. import __version__

    return {"model": given.model.resolve().name if given.model else "the bundled model", "hgr": hgr.name,
            "concepts": dict(zip(hgr.ids, strengths, strict=True)), **dataclasses.asdict(settings),
            "examples": len(lessons.harm), "harmful": int((lessons.harm > 0).sum()),
            "versions": {"safecfg": __version__, **{module.__name__: module.__version__ for module in (torch, diffusers, peft)}}}
