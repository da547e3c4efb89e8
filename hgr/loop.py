"""The training loop: schedule, weight average, checkpoints, resume."""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .file import save_safely

log = logging.getLogger("safecfg")

CHECKPOINT_SECONDS = 120.0


def step_random(seed: int, stage: str, step: int) -> random.Random:
    """The random numbers of one step: the same after a resume as without the interruption."""
    return random.Random(f"{seed}/{stage}/{step}")


class Loop:
    """Trains `module` for `steps` steps of `loss(rng, generator) -> scalar`.

    AdamW, linear warm-up over 2 % of the steps, cosine decay to zero, gradient norm clipped at 1, an exponential
    moving average of the weights that is copied into `module` at the end. The state is checkpointed to
    `work/STAGE.checkpoint.safetensors` and resumed from there.

    Raises FloatingPointError if the loss stops being finite; the last checkpoint stays.
    """

    def __init__(self, stage: str, module: nn.Module, steps: int, lr: float, work: Path, seed: int,
                 average: float = 0.999, weight_decay: float = 0.01):
        self.stage, self.module, self.steps, self.lr, self.seed = stage, module, steps, lr, seed
        self.path = work / f"{stage}.checkpoint.safetensors"
        self.decay = average
        self.names = [n for n, p in module.named_parameters() if p.requires_grad]
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)
        self.average = [p.detach().clone() for p in self.parameters]
        self.step = self.resume()

    def resume(self) -> int:
        if not self.path.exists():
            return 0
        with safe_open(self.path, "pt") as file:
            step = int(json.loads(file.metadata()["progress"])["step"])
            for name, p, average in zip(self.names, self.parameters, self.average, strict=True):
                p.data.copy_(file.get_tensor(f"weight/{name}"))
                average.copy_(file.get_tensor(f"average/{name}"))
                self.optimizer.state[p] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": file.get_tensor(f"first/{name}").to(p.device),
                    "exp_avg_sq": file.get_tensor(f"second/{name}").to(p.device),
                }
        log.info("%s: resumed at step %d of %d", self.stage, step, self.steps)
        return step

    def checkpoint(self) -> None:
        tensors = {}
        for name, p, average in zip(self.names, self.parameters, self.average, strict=True):
            state = self.optimizer.state[p]
            tensors |= {f"weight/{name}": p, f"average/{name}": average.clone(),
                        f"first/{name}": state["exp_avg"], f"second/{name}": state["exp_avg_sq"]}
        save_safely(tensors, self.path, {"progress": json.dumps({"step": self.step})})

    def rate(self) -> float:
        warmup = max(1, self.steps // 50)
        done = self.step / self.steps
        return self.lr * min(1.0, (self.step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * done))

    def run(self, loss: Callable[[random.Random, torch.Generator], Tensor]) -> None:
        self.module.train()
        started = saved = time.monotonic()
        begun, total = self.step, 0.0
        while self.step < self.steps:
            rng = step_random(self.seed, self.stage, self.step)
            generator = torch.Generator().manual_seed(rng.getrandbits(62))
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate()
            value = loss(rng, generator)
            shown = value.item()
            if not math.isfinite(shown):  # before the step: neither the weights nor the next checkpoint get to hold a NaN
                raise FloatingPointError(f"{self.stage}: the loss is {shown} at step {self.step}; the last checkpoint is "
                                         f"{self.path}. Try a lower learning rate.")
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            decay = min(self.decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
            self.step += 1
            total += shown
            if self.step % 50 == 0:
                log.info("%s: step %d of %d, loss %.4f, %.2f steps/s", self.stage, self.step, self.steps, total / 50,
                         (self.step - begun) / (time.monotonic() - started))
                total = 0.0
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.checkpoint()
                saved = time.monotonic()
        for p, average in zip(self.parameters, self.average, strict=True):
            p.data.copy_(average)
        self.module.eval()
