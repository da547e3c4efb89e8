"""Single pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..demo import assets
from .tables import aligned

MODES = ("redirect", "dynamic", "balanced")  # hgr.guidance.MODES, which would import torch


def add(commands: argparse._SubParsersAction) -> None:
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


def _sample(given: argparse.Namespace) -> None:
    if given.model and not given.hgr and not given.plain:
        raise ValueError("--model needs the HGR that was made for it: give --hgr FILE, or --plain to sample without.")
    if given.model and not given.model.is_dir():
        raise ValueError(f"--model {given.model}: no such folder.")
    import torch

    from ..hosts.diffusers import SafeCFG, load_demo_pipeline

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
