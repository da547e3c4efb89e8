"""What a policy adds to a sampling run in ComfyUI: the demo model and a clean prompt, in turns with and without.

    .venv-comfy/bin/python benchmarks/policy_cost.py               the figures in docs/policy.md
    .venv-comfy/bin/python benchmarks/policy_cost.py --pairs 3     a quick look; writes no page

ComfyUI is found by COMFYUI_PATH, or in ~/comfy/ComfyUI. CPU time of one thread; the two pictures must be the same.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import write_between

from hgr.cli.policy_graphs import CLEAN

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/policy.md"
PAIRS, STEPS, CFG, SEED = 30, 20, 7.5, 3


Switch = list[tuple[Any, str, Any]]  # an attribute of the host's, and its value


def start() -> tuple[Any, Switch, Any, Switch]:
    """ComfyUI with this pack: a demo model built without a policy and the host as it is then; one built with the policy
    `{}`, and what the policy puts into the host."""
    sys.path.insert(0, os.environ.get("COMFYUI_PATH", str(Path.home() / "comfy/ComfyUI")))
    from comfy.cli_args import args

    base = Path(tempfile.mkdtemp())
    args.cpu, args.base_directory = True, str(base)
    import comfy.model_base
    import comfy.samplers
    import server
    import torch

    import nodes

    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    asyncio.set_event_loop(loop := asyncio.new_event_loop())
    server.PromptServer(loop)
    if not loop.run_until_complete(nodes.load_custom_node(str(ROOT), set())):
        raise ImportError("the pack cannot be loaded")

    def now() -> tuple[Any, Switch]:
        touched = ((comfy.samplers.CFGGuider, "sample"), (comfy.model_base.BaseModel, "apply_model"))
        model = nodes.NODE_CLASS_MAPPINGS["SafeCFGDemoModel"].execute().args
        return model, [(owner, name, getattr(owner, name)) for owner, name in touched]

    plain = now()
    file = base / "safecfg_policy.json"
    file.write_text("{}")
    os.environ["SAFECFG_POLICY"] = str(file)
    (policy,) = (module for name, module in sys.modules.items() if name.endswith(".hgr.hosts.comfy.policy"))
    policy.in_force.cache_clear()
    policy.install()
    return *plain, *now()


def run(model: Any, clip: Any) -> tuple[float, Any]:
    """Seconds of CPU time of one run, and its latents."""
    import torch

    import nodes

    positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (CLEAN, ""))
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    start = time.thread_time()
    found = nodes.common_ksampler(model, SEED, STEPS, CFG, "euler", "normal", positive, negative, latent)
    return time.thread_time() - start, found[0]["samples"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=PAIRS, help="default: %(default)s")
    given = parser.parse_args()
    bare_model, bare_host, own_model, own_host = start()
    import torch

    cases = {"bare": (bare_model, bare_host), "own": (own_model, own_host)}
    times: dict[str, list[float]] = {case: [] for case in cases}
    with torch.inference_mode():
        for turn in range(given.pairs + 1):  # the first pair is a warm-up
            pictures = []
            for case in sorted(cases, reverse=bool(turn % 2)):
                (model, clip, _), host = cases[case]
                for owner, name, value in host:
                    setattr(owner, name, value)
                seconds, latents = run(model, clip)
                times[case].append(seconds)
                pictures.append(latents)
            if not pictures[0].equal(pictures[1]):
                raise AssertionError("a clean prompt's picture is not the same under the policy")
    own, bare = times["own"][1:], times["bare"][1:]
    ratios = [a / b for a, b in zip(own, bare, strict=True)]
    text = (
        f"{given.pairs} pairs of runs of {STEPS} Euler steps, the demo model, a clean prompt, cfg {CFG}, seed {SEED}; "
        f"torch {torch.__version__}, 1 thread, {platform.machine()}. CPU time: the fastest run takes "
        f"{1e3 * min(bare):.0f} ms without the policy `{{}}` and {1e3 * min(own):.0f} ms with it, "
        f"{min(own) / min(bare):.3f} times as long; the median ratio of the pairs is {statistics.median(ratios):.3f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})."
    )
    print(text)
    if given.pairs == PAIRS:
        write_between(PAGE, "policy_cost", text)


if __name__ == "__main__":
    main()
