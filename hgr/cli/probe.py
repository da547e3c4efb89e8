"""Adding a picture probe to an HGR that was trained without one."""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .outputs import check_name, try_to_write
from .pairs import add_sources, chosen

if TYPE_CHECKING:
    from ..pairs import Pairs
    from ..redirector import HGR


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "probe", help="let an HGR detect concepts in pictures, too",
        description="Add a picture probe to an HGR, or replace it; the rest of the file stays as it is. The model makes pictures of pairs "
                    "of the HGR's concepts: choose those of its training. 256 pictures take about 8,000 runs of the denoiser.")
    parser.add_argument("--hgr", type=Path, required=True, metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.safetensors",
                        help="the HGR with its probe; a file that is there already is not replaced")
    parser.add_argument("--model", type=Path, metavar="DIR",
                        help="the model that the HGR is used with, in diffusers' layout; default: the bundled one")
    add_sources(parser)
    parser.add_argument("--pictures", type=int, default=256, metavar="N", help="that the model makes, default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--false-positive-rate", type=float, metavar="RATE",
                        help="share of clean pictures in which any concept may be found, default: that of the HGR's training")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    parser.set_defaults(run=_probe)


def _probe(given: argparse.Namespace) -> None:
    check_name(given.output, "HGR")
    if given.pictures < 8:
        raise ValueError(f"--pictures is {given.pictures}; it must be 8 or more.")
    import torch

    from .. import file
    from ..examples import Examples
    from ..hosts.diffusers import encode, loading
    from ..hosts.diffusers import training as host
    from ..pictures import paint_pairs
    from ..probe import train_probe
    from ..training import HELD_OUT
    from .bars import Bars
    from .processes import device

    hgr = file.load(given.hgr)
    rate = _rate(given, hgr)
    training, _ = _of(hgr, chosen(given)).split(HELD_OUT, given.seed)
    examples = Examples(training, given.seed)
    try_to_write(given.output)
    where = device(given.device)
    loading.quiet()
    pipe = loading.load_pipeline(given.model, where)
    hgr.network.to(where)
    with torch.no_grad():
        hgr.check(*encode(pipe, [""])[:2])  # not only when all pictures are made
    denoiser = host.denoiser(pipe, given.seed)
    canvas = given.output.with_name(f"{given.output.name}.pictures-{_identity(given)}.safetensors")
    with Bars() as bars:
        pictures = paint_pairs(denoiser, examples, given.pictures, given.seed, canvas, partial(bars.show, "pictures"))
        hgr.probe = train_probe(hgr, denoiser, pictures.latents, lambda rows: encode(pipe, [pictures.texts[i] for i in rows]),
                                pictures.twins, rate, given.seed, partial(bars.show, "looking"))
    canvas.unlink()
    if hgr.probe is None:
        raise ValueError(f"{given.output} is not written: there are too few pictures for a probe. Give more --pictures.")
    weights = hgr.network.state_dict().values()
    file.save(hgr, given.output, torch.float16 if all(torch.equal(x, x.half().float()) for x in weights) else torch.float32)
    found = hgr.probe.training["metrics"]
    print("\n".join(f"{concept.label}: {found[concept.id]['recall']:.1%} of {found[concept.id]['pictures']} pictures found, AUROC "
                    f"{found[concept.id]['auroc']:.4f}" for concept in hgr.concepts) + f"\n\n{given.output}")


def _rate(given: argparse.Namespace, hgr: HGR) -> float:
    rate = given.false_positive_rate if given.false_positive_rate is not None else hgr.training.get("false_positive_rate")
    if type(rate) is not float:
        raise ValueError(f"{hgr.name} does not say for which one false-positive rate it was trained: give --false-positive-rate.")
    if not 0 < rate < 0.5:
        raise ValueError(f"the false-positive rate is {rate}; it must lie between 0 and 0.5.")
    return rate


def _of(hgr: HGR, pairs: Pairs) -> Pairs:
    """The pairs of the HGR's concepts. Raises ValueError where one has none."""
    if lacking := [id for id in hgr.ids if not pairs.of(id)]:
        raise ValueError(f"there are no pairs of {', '.join(lacking)} here: give those that {hgr.name} was trained on.")
    return replace(pairs, topics=tuple(topic for topic in pairs.topics if topic.id in hgr.ids),
                   pairs=tuple(pair for pair in pairs.pairs if pair.concept in hgr.ids))


def _identity(given: argparse.Namespace) -> str:
    """Names what the pictures depend on beside their prompts: those of another model must not be taken for this one's."""
    return hashlib.sha256(json.dumps([str(given.model and given.model.resolve()), given.seed]).encode()).hexdigest()[:8]
