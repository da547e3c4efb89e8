"""What SafeCFG costs inside a denoiser step in ComfyUI, at the size of SD 1.5 with random weights.

.venv-comfy/bin/python benchmarks/attention_couple.py              the table in docs/compatibility.md
.venv-comfy/bin/python benchmarks/attention_couple.py --rounds 1   a quick look; writes no page

ComfyUI is found by COMFYUI_PATH, or in ~/comfy/ComfyUI. One evaluation of the denoiser on the CPU, prompt and negative
in one batch. Timed is what SafeCFG does within it; the ratio is of the whole evaluation to the rest of it, so that a
busy machine slows both. Not timed: the HGR's one reading of the prompt before a run.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import markdown, write_between
from torch import Tensor

ROUNDS, SEED = 5, 7
WIDTH, TOKENS = 768, 77
CONCEPTS = 7  # as many as the shipped library has
PAGE = Path(__file__).resolve().parents[1] / "docs/compatibility.md"
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "num_heads": 8, "use_spatial_transformer": True, "context_dim": WIDTH,
    "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1, "legacy": False,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    parser.add_argument("--latent", type=int, default=64, help="side of the latents; default: %(default)s")
    given = parser.parse_args()
    sys.path.insert(0, os.environ.get("COMFYUI_PATH", str(Path.home() / "comfy/ComfyUI")))
    from comfy.cli_args import args

    args.cpu = True
    torch.manual_seed(SEED)
    with torch.inference_mode():
        rows = measure(*build(given.latent), rounds=given.rounds)
    text = (
        f"{given.rounds} rounds, seed {SEED}, {given.latent} x {given.latent} latents, {CONCEPTS} concepts, torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}.\n\n"
        + markdown(["one evaluation of the denoiser", "whole / without SafeCFG's part: median", "range"], rows)
    )
    print(text)
    if given.rounds >= ROUNDS and given.latent == 64:
        write_between(PAGE, "attention_couple", text)


def build(side: int) -> tuple[Callable, Callable]:
    """`run(patches, inside)`, one evaluation, and `make()`, SafeCFG's wrapper for one run."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    from hgr.core.hgr import HGR, Concept, Encoder
    from hgr.core.network import HGRNetwork
    from hgr.hosts.comfy.inside import Inside

    unet = UNetModel(**UNET, operations=comfy.ops.disable_weight_init).eval()
    for weight in unet.parameters():
        weight.normal_(std=0.02)
    prompt, negative = torch.randn(1, TOKENS, WIDTH), torch.randn(1, TOKENS, WIDTH)
    concepts = [Concept(f"concept {k}", f"Concept {k}") for k in range(CONCEPTS)]
    hgr = HGR(HGRNetwork(WIDTH, 0, CONCEPTS).eval(), concepts, Encoder("CLIP", TOKENS, True, prompt[0].clone()))
    latents, context = torch.randn(2, 4, side, side), torch.cat([prompt, negative])

    class Sampling:
        """Stands in for the patched model: the window is all of sampling."""

        def get_model_object(self, name: str) -> Sampling:
            return self

        def percent_to_sigma(self, percent: float) -> float:
            return 1e9 if percent == 0 else 0.0

    def make() -> Inside:
        return Inside(hgr, [1.0] * CONCEPTS, model=Sampling(), percents=(0.0, 1.0), away=[negative], sides_known=True)  # type: ignore

    def run(patches: dict[str, list], inside: Any) -> Tensor:
        options = {
            "patches": {name: list(each) for name, each in patches.items()},
            "cond_or_uncond": [0, 1],
            "sigmas": torch.ones(1),
            "wrappers": {"diffusion_model": {"safecfg": [inside]}},
        }
        return unet(latents, torch.ones(2) * 500, context, None, None, options)

    return run, make


def measure(run: Callable, make: Callable, *, rounds: int) -> list[list[str]]:
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests/host"))
    from combinations import couple

    enter, leave = couple([[torch.randn(1, TOKENS, WIDTH)]])
    kinds = {
        "no pack in cross-attention": {},
        "a pack that keeps the prompt there": {"attn2_patch": [lambda n, key, value, extra: (n, key, value)]},
        "an attention couple with one more region": {"attn2_patch": [enter], "attn2_output_patch": [leave]},
    }
    rows = []
    for kind, patches in kinds.items():
        ratios, inside = [], make()
        clock = Clock(inside)
        run(patches, clock)  # warm: the HGR is copied here
        for _ in range(rounds):
            clock.spent, start = 0.0, time.perf_counter()
            run(patches, clock)
            whole = time.perf_counter() - start
            ratios.append(whole / (whole - clock.spent))
        rows.append([kind, f"{statistics.median(ratios):.4f}", f"{min(ratios):.4f} to {max(ratios):.4f}"])
    return rows


class Clock:
    """SafeCFG's wrapper, with the seconds that it and its patch take."""

    def __init__(self, inside: Any):
        self.inside, self.spent = inside, 0.0
        make = inside._patch

        def timed_patch(*args: Any) -> Callable:
            patch = make(*args)
            return lambda *given: self._timed(patch, *given)

        inside._patch = timed_patch

    def __call__(self, executor: Callable, *args: Any, **kwargs: Any) -> Tensor:
        rest = 0.0

        class Rest:
            class_obj = executor.class_obj

            def __call__(self, *given: Any, **named: Any) -> Tensor:
                nonlocal rest
                start = time.perf_counter()
                result = executor(*given, **named)
                rest = time.perf_counter() - start
                return result

        start = time.perf_counter()
        result = self.inside(Rest(), *args, **kwargs)
        self.spent += time.perf_counter() - start - rest
        return result

    def _timed(self, patch: Callable, *given: Any) -> Any:
        start = time.perf_counter()
        result = patch(*given)
        self.spent += time.perf_counter() - start
        return result


if __name__ == "__main__":
    main()
