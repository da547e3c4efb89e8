"""What it costs to make an HGR for a checkpoint of full size, in ComfyUI, with random weights.

    .venv-comfy/bin/python benchmarks/full_size.py                  SD 1.5 and SDXL: the table in docs/training.md
    .venv-comfy/bin/python benchmarks/full_size.py --sizes sd15     one of them; writes no page

ComfyUI is found by COMFYUI_PATH, or in ~/comfy/ComfyUI. The checkpoint is written to a temporary folder and loaded as
the host's loader does it (SD 1.5: 3 GB on the disk and 5 GB of memory, SDXL: 7 and 16). Nothing of it is kept.

Measured on the CPU, in one run: one evaluation of the denoiser for two pictures of the usual size, prompt and negative;
encoding; steps with either loss; SafeCFG's part of a sampling run. Counted: how many prompts, pictures and steps a
training of two concepts takes. What a training takes is the sum of counts times costs, in evaluations; and in minutes
for a stated speed of the denoiser. That holds on a graphics card as far as its encoder and its steps are as much faster
as its denoiser is.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import markdown, prompts_of, write_between

CONCEPTS = ("violence", "sexual")
PAIRS, CLEAN, STEPS = 60, 90, 6  # of each concept; clean prompts; of the short trainings that are timed
SMALL = 16  # side of the latents in them: a step's cost does not depend on it
ROUNDS, SEED = 3, 7
TIMED = ("draft", "quick", "full")  # of the qualities
PAGE = Path(__file__).resolve().parents[1] / "docs/training.md"


@dataclass(frozen=True)
class Size:
    """side: of the usual latents. speed: of the denoiser for a picture, prompt and negative, in evaluations a second;
    as people report them for cards with 12 GB."""

    label: str
    side: int
    speed: float


SIZES = {"sd15": Size("SD 1.5, 512 px", 64, 7.0), "sdxl": Size("SDXL, 1024 px", 128, 1.5)}


def make(size: str, folder: Path) -> Path:
    """A checkpoint of random weights in half precision."""
    import comfy.model_patcher
    import comfy.sd
    import comfy.supported_models
    from comfy.ldm.models.autoencoder import AutoencoderKL

    kinds = {"sd15": comfy.supported_models.SD15, "sdxl": comfy.supported_models.SDXL}
    config = kinds[size](UNETS[size])
    config.set_inference_dtype(torch.float16, None)
    cpu = torch.device("cpu")
    model = comfy.model_patcher.ModelPatcher(config.get_model({}, ""), load_device=cpu, offload_device=cpu)
    clip = comfy.sd.CLIP(config.clip_target(), model_options={"dtype": torch.float16})
    vae = AutoencoderKL(ddconfig=VAE, embed_dim=VAE["z_channels"])
    for module in (model.model.diffusion_model, clip.cond_stage_model, vae):
        fill(module)
    path = folder / f"{size}.safetensors"
    comfy.sd.save_checkpoint(str(path), model, clip, comfy.sd.VAE(sd=vae.state_dict()))
    return path


def fill(module: torch.nn.Module) -> None:
    """Weights that keep the size of what passes; norms pass it as it is."""
    for name, weight in module.named_parameters():
        if weight.ndim > 1:
            weight.data.normal_(std=weight[0].numel() ** -0.5)
        else:
            weight.data.fill_(0.0 if name.endswith("bias") else 1.0)


# As ComfyUI reads them from the published checkpoints.
_COMMON: dict[str, Any] = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "use_spatial_transformer": True,
    "legacy": False, "use_temporal_attention": False, "dtype": torch.float16,
}  # fmt: skip
UNETS: dict[str, dict[str, Any]] = {
    "sd15": _COMMON | {
        "adm_in_channels": None, "num_classes": None, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
        "num_heads": 8, "num_head_channels": -1, "use_linear_in_transformer": False, "context_dim": 768,
        "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_output": [1] * 9 + [0] * 3,
        "transformer_depth_middle": 1,
    },
    "sdxl": _COMMON | {
        "adm_in_channels": 2816, "num_classes": "sequential", "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4],
        "num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True, "context_dim": 2048,
        "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
    },
}  # fmt: skip

VAE: dict[str, Any] = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


def counts(quality: str) -> dict[str, int]:
    """What a training of `CONCEPTS` does."""
    from hgr.data.sources import gather
    from hgr.hosts.comfy import denoiser
    from hgr.training import train_hgr
    from hgr.training.settings import QUALITIES

    given = QUALITIES[quality]
    pairs = gather(CONCEPTS, (), (), limit=given.pairs).with_clean(given.clean)
    return {
        "prompts": prompts_of(pairs, given.settings),
        "steps": given.settings.steps,
        # prompt and negative are one evaluation; a pass has four samples without negatives
        "evaluations": (given.settings.pictures * denoiser._STEPS + 2 * train_hgr._PASSES) * given.needs_denoiser,
    }


class Clock:
    """Stands in for the training's progress: when each count was reached."""

    def __init__(self, *_: Any):
        self.texts: list[tuple[float, int]] = []
        self.steps: list[float] = []

    def phase(self, name: str) -> None: ...
    def picture(self, done: int, total: int) -> None: ...
    def end(self) -> None: ...

    def text(self, done: int, total: int) -> None:
        self.texts.append((time.perf_counter(), done))

    def step(self, done: int, loss: float) -> None:
        self.steps.append(time.perf_counter())

    def chart(self) -> Any:
        from PIL import Image

        return Image.new("RGB", (8, 8))

    @property
    def prompt(self) -> float:
        """Seconds for a prompt, the first batch left out: encoders are compared there."""
        (start, before), *_, (end, after) = [each for each in self.texts if each[1] >= 32]
        return (end - start) / (after - before)

    @property
    def one_step(self) -> float:
        return statistics.median(b - a for a, b in zip(self.steps, self.steps[1:], strict=False))


def rehearse(model: Any, clip: Any, losses: str) -> tuple[Any, Clock]:
    """A short training on a part of the library and on random pictures."""
    from hgr.data.pairs import Pairs
    from hgr.data.sources import gather
    from hgr.hosts.comfy import train
    from hgr.training.settings import HGRSettings

    whole, clock = gather(CONCEPTS, (), ()), Clock()
    some = [[pair for pair in whole.pairs if pair.concept == id][:PAIRS] for id in CONCEPTS]
    pairs = Pairs(whole.topics, tuple(pair for part in some for pair in part), whole.clean[:CLEAN])
    settings = HGRSettings(losses=losses, steps=STEPS, pictures=0, false_positive_rate=10.0, seed=SEED)
    train.TrainingProgress = lambda *_: clock  # type: ignore
    latents = {"samples": torch.randn(4, 4, SMALL, SMALL)} if losses != "text" else None
    hgr, _ = train.train_for_clip(clip, pairs, settings, model=model if latents else None, latents=latents)
    return hgr, clock


def sampled(model: Any, clip: Any, side: int) -> float:
    """Seconds of a sampling run of one step, encoding and loading not included."""
    import comfy.sample

    encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))  # noqa: E731
    positive, negative, latent = encode("a knight with a bloody sword"), encode(""), torch.zeros(1, 4, side, side)
    noise = comfy.sample.prepare_noise(latent, SEED)
    start = time.perf_counter()
    found = comfy.sample.sample(
        model, noise, 1, 7.0, "euler", "normal", positive, negative, latent, disable_pbar=True, seed=SEED
    )
    if not found.isfinite().all():
        raise FloatingPointError("the random model gives NaN: its weights are too large.")
    return time.perf_counter() - start


def overhead(model: Any, clip: Any, hgr: Any) -> float:
    """Seconds that SafeCFG adds to a sampling run before its first step: reading and moving the prompt."""
    from hgr.core.prompt import Prompt
    from hgr.core.redirect import redirect

    (features, extra), *_ = clip.encode_from_tokens_scheduled(clip.tokenize("a knight with a bloody sword"))
    pooled = extra["pooled_output"] if hgr.network.pooled_dim else None
    open_ = hgr.at("normal")
    open_.concepts = [type(c)(**(vars(c) | {"threshold": 0.0})) for c in open_.concepts]
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        redirect(open_, Prompt(features, pooled), strengths=[1.0] * len(open_.ids))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure(name: str, every: dict[str, dict[str, int]]) -> list[list[str]]:
    """The rows of one size. every: the counts of each quality."""
    import comfy.sd
    import folder_paths

    size = SIZES[name]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        folder_paths.set_user_directory(folder)  # where trainings keep their work
        path = make(name, Path(folder))
        model, clip, *_ = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False)
        sampled(model, clip, SMALL)  # warm
        evaluation = min(sampled(model, clip, size.side) for _ in range(ROUNDS - 1))
        _, text = rehearse(model, clip, "text")
        hgr, attention = rehearse(model, clip, "attention")  # with the prompts that the first one encoded
        moved = overhead(model, clip, hgr)
    spent = {}
    for quality, count in every.items():
        step = attention.one_step if count["evaluations"] else text.one_step
        spent[quality] = (count["prompts"] * text.prompt + count["steps"] * step) / evaluation + count["evaluations"]

    def minutes(evaluations: float) -> str:
        return f"{evaluations / size.speed / 60:.1f}"

    rows = [
        ["one evaluation, seconds on this CPU", f"{evaluation:.1f}"],
        ["a prompt encoded, in evaluations", f"{text.prompt / evaluation:.4f}"],
        ["a step with text loss, in evaluations", f"{text.one_step / evaluation:.3f}"],
        ["a step with attention loss, in evaluations", f"{attention.one_step / evaluation:.3f}"],
        ["SafeCFG's part of a run, in evaluations", f"{moved / evaluation:.5f}"],
        *([f'"{quality}", in evaluations', f"{found:.0f}"] for quality, found in spent.items()),
        ["stated speed, evaluations a second", f"{size.speed:g}"],
        *([f'"{quality}", minutes at that speed', minutes(found)] for quality, found in spent.items()),
        *(
            [f'"{quality}", minutes on this CPU', f"{found * evaluation / 60:.0f}"]
            for quality, found in spent.items()
            if not every[quality]["evaluations"]
        ),
    ]
    print(size.label, *("\n  " + " | ".join(row) for row in rows), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="default: all")
    given = parser.parse_args()
    sys.path.insert(0, os.environ.get("COMFYUI_PATH", str(Path.home() / "comfy/ComfyUI")))
    from comfy.cli_args import args

    args.cpu = True
    torch.manual_seed(SEED)
    every = {quality: counts(quality) for quality in TIMED}
    columns = {name: measure(name, every) for name in given.sizes}
    rows = [[row[0], *(part[i][1] for part in columns.values())] for i, row in enumerate(next(iter(columns.values())))]
    text = (
        "Two concepts. "
        + "; ".join(
            f'"{quality}": {count["prompts"]:,} prompts, {count["steps"]} steps'
            + f", {count['evaluations']} evaluations of the denoiser" * bool(count["evaluations"])
            for quality, count in every.items()
        )
        + f". Random weights, seed {SEED}; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, {platform.machine()}.\n\n"
        + markdown(["", *(SIZES[name].label for name in columns)], rows)
    )
    print(text)
    if len(columns) == len(SIZES):
        write_between(PAGE, "full_size", text)


if __name__ == "__main__":
    main()
