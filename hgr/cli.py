"""The command line: the demo, HGR files, single pictures. Everything heavy is imported inside the commands."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from . import __version__
from .demo import assets

MODES = ("redirect", "dynamic", "balanced")  # hgr.guidance.MODES, which would import torch
_EXTRAS = {"diffusers", "transformers", "tokenizers", "PIL"}


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, or 2 for bad input, with one sentence on stderr."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("safecfg").setLevel(logging.INFO)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its notes on optional packages are not for our users
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        given.run(given)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRAS:
            raise
        return _fail(f"{error.name} is not installed; this command needs it: pip install -e \".[diffusers]\"")
    except (ValueError, OSError) as error:  # the package's own errors for bad input, and files that cannot be read or written
        return _fail(str(error))
    return 0


def _fail(why: str) -> int:
    print(f"hgr: {why}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m hgr", description="SafeCFG: classifier-free guidance without the harmful part.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="sample the bundled tiny model with and without SafeCFG, judge and tabulate it")
    demo.add_argument("--output", type=Path, default=Path("safecfg_demo"), metavar="DIR", help="default: %(default)s")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--steps", type=int, default=16, help="DDIM steps, default: %(default)s")
    demo.set_defaults(run=_demo)

    info = commands.add_parser("info", help="what an HGR file holds; checks all of it")
    info.add_argument("file", type=Path)
    info.set_defaults(run=_info)

    sample = commands.add_parser("sample", help="sample one picture", description="Sample one picture with SafeCFG.")
    sample.add_argument("--prompt", required=True)
    sample.add_argument("--negative", default="", metavar="PROMPT")
    sample.add_argument("--model", type=Path, metavar="DIR", help="a model in diffusers' layout; default: the bundled one")
    sample.add_argument("--hgr", type=Path, metavar="FILE", help="default, for the bundled model: the bundled one")
    sample.add_argument("--mode", choices=MODES, default="redirect")
    sample.add_argument("--strength", type=float, default=1.0, help="of all concepts, 0 (off) to about 2, default: %(default)s")
    sample.add_argument("--concepts", default="", metavar="JSON", help="strength by concept id, e.g. '{\"skull\": 0}'")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--cfg", type=float, default=7.5, help="default: %(default)s")
    sample.add_argument("--steps", type=int, default=20, help="default: %(default)s")
    sample.add_argument("--output", type=Path, default=Path("safecfg.png"), metavar="FILE", help="default: %(default)s")
    sample.add_argument("--plain", action="store_true", help="the model's own guidance, without SafeCFG")
    sample.set_defaults(run=_sample)

    train = commands.add_parser("demo-train", help="make the bundled model, its classifier and its HGR anew (hours on a CPU)")
    train.add_argument("--work", type=Path, default=Path("runs/demo"), metavar="DIR", help="checkpoints, default: %(default)s")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--output", type=Path, default=Path("runs/demo/output"), metavar="DIR",
                       help="the finished files, default: %(default)s; hgr/demo to replace the bundled ones")
    train.set_defaults(run=_demo_train)
    return parser


def _demo(given: argparse.Namespace) -> None:
    from .demo import show

    report = show.run(given.output, given.seed, given.steps)
    print(aligned(show.table(report)))
    print(f"\nin {given.output}: {show.PICTURE}, {show.REPORT}")


def _info(given: argparse.Namespace) -> None:
    from . import file

    hgr = file.load(given.file)
    net, encoder = hgr.network, hgr.encoder
    pooled = f", pooled {net.pooled_dim}" if net.pooled_dim else ""
    print(f"{hgr.name}: HGR, format version {file.VERSION}")
    print(f"encoder   {encoder.family}; features {net.text_dim}{pooled}; chunks of {encoder.chunk or 'any number of'} tokens")
    print(f"network   width {net.width}, depth {net.depth}, {sum(p.numel() for p in net.parameters()):,} parameters")
    head = ("concept", "label", "threshold", "scale", "bias", "description")
    rows = [(c.id, c.label, f"{c.threshold:.3f}", f"{c.scale:.2f}", f"{c.bias:+.2f}", c.description) for c in hgr.concepts]
    print("\n" + aligned([head, *rows]))
    if hgr.training:
        print("\n" + aligned(list(_flat("training", hgr.training))))


def _sample(given: argparse.Namespace) -> None:
    if given.model and not given.hgr and not given.plain:
        raise ValueError("--model needs the HGR that was made for it: give --hgr FILE, or --plain to sample without.")
    if given.model and not given.model.is_dir():
        raise ValueError(f"--model {given.model}: no such folder.")
    import torch

    from .hosts.diffusers import SafeCFG, load_demo_pipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if given.model:
        from diffusers import AutoPipelineForText2Image

        dtype = torch.float16 if device == "cuda" else torch.float32
        pipe = AutoPipelineForText2Image.from_pretrained(given.model, torch_dtype=dtype, use_safetensors=True)
    else:
        pipe = load_demo_pipeline()
    pipe = pipe.to(device)
    options = dict(negative_prompt=given.negative, guidance_scale=given.cfg, num_inference_steps=given.steps,
                   generator=torch.Generator().manual_seed(given.seed))
    if given.plain:
        images = pipe(given.prompt, **options).images
    else:
        safe = SafeCFG(pipe, given.hgr or assets.HGR_FILE)
        gates = safe.gates([given.prompt])[0].tolist()
        print(aligned([(concept.id, f"{gate:.3f}", "present" if gate >= concept.threshold else "")
                       for concept, gate in zip(safe.hgr.concepts, gates, strict=True)]))
        images = safe(given.prompt, mode=given.mode, strength=given.strength, concepts=given.concepts, **options).images
    given.output.parent.mkdir(parents=True, exist_ok=True)
    images[0].save(given.output)
    print(given.output)


def _demo_train(given: argparse.Namespace) -> None:
    from .demo import train

    train.main(given.work, given.seed, given.output)


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Rows of cells as text in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _flat(name: str, value: object):
    """A nested mapping as (path, value) rows."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        yield name, f"{value:.4g}" if isinstance(value, float) else str(value)
