"""The training loop: schedule, weight average, checkpoints, resume, several processes."""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..core.progress import SILENT, Progress
from ..core.tensor_file import save_tensors
from .finite import check_finite
from .work_files import checkpoint_file

log = logging.getLogger("safecfg")

CHECKPOINT_SECONDS = 120.0


@dataclass(frozen=True)
class Processes:
    """One of several processes that train together. reduce: replaces tensors by their mean over all processes."""

    rank: int = 0
    count: int = 1
    reduce: Callable[[list[Tensor]], None] | None = None

    @property
    def main(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0


def step_random(seed: int, stage: str, step: int) -> random.Random:
    """The random numbers of one step, the same with and without an interruption."""
    return random.Random(f"{seed}/{stage}/{step}")


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """The learning rate of a step, counted from 0: linear warm-up over 2 % of the steps, then a cosine to zero."""
    warmup = max(1, steps // 50)
    return peak * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


class Loop:
    """Trains `module` for `steps` steps of `loss(rng, generator) -> scalar`.

    AdamW, linear warm-up over 2 % of the steps, cosine decay to zero, gradient norm clipped at 1, an exponential
    moving average of the weights that is copied into `module` at the end. The state is checkpointed to
    `work/STAGE.checkpoint.safetensors`, also when the run is interrupted, and resumed from there. A checkpoint that
    cannot be written is a warning. The last one stays until the caller has written the result.

    average: the decay of the weights' moving average.
    made_for: the fingerprint of what the training depends on; a checkpoint with a different one is not resumed.
    progress: its `step` is called after each step with the number of steps done and the loss, averaged over processes.

    Raises FloatingPointError if the loss or the weights stop being finite, keeping the last checkpoint; ValueError for
    a checkpoint that is damaged, belongs to another training, or is not visible to every process.
    """

    def __init__(
        self,
        stage: str,
        module: nn.Module,
        work: Path,
        *,
        steps: int,
        learning_rate: float,
        seed: int,
        average: float = 0.999,
        weight_decay: float = 0.01,
        made_for: str = "",
        processes: Processes = Processes(),
        progress: Progress = SILENT,
    ):
        self.stage, self.module, self.steps, self.seed = stage, module, steps, seed
        self.path = checkpoint_file(work, stage)
        self.learning_rate, self.decay, self.made_for = learning_rate, average, made_for
        self.processes, self.progress = processes, progress
        self.names = [n for n, p in module.named_parameters() if p.requires_grad]
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay
        )
        self.average = [p.detach().clone() for p in self.parameters]
        self.step = self.resume()
        self._agree()

    def resume(self) -> int:
        if not self.path.exists():
            return 0
        try:
            with safe_open(self.path, "pt") as file:
                found = json.loads(file.metadata()["progress"])
                if found.get("fingerprint", "") != self.made_for:
                    raise ValueError(
                        f"{self.path} is the checkpoint of a training with other settings, prompts or encoder: "
                        "remove it, or train in another folder."
                    )
                step = int(found["step"])
                for name, p, average in zip(self.names, self.parameters, self.average, strict=True):
                    p.data.copy_(file.get_tensor(f"weight/{name}"))
                    average.copy_(file.get_tensor(f"average/{name}"))
                    self.optimizer.state[p] = {  # copies: what the file gives is a view of it, and it is replaced
                        "step": torch.tensor(float(step)),
                        "exp_avg": file.get_tensor(f"first/{name}").to(p.device, copy=True),
                        "exp_avg_sq": file.get_tensor(f"second/{name}").to(p.device, copy=True),
                    }
        except (
            SafetensorError,
            AttributeError,
            KeyError,
            OSError,
            RuntimeError,
            TypeError,
            json.JSONDecodeError,
        ) as error:
            raise ValueError(
                f"{self.path} is damaged or not a checkpoint of this training ({error}): remove it."
            ) from None
        log.info("%s: resumed at step %d of %d", self.stage, step, self.steps)
        return step

    def _agree(self) -> None:
        """Raise ValueError unless every process is at the same step. All wait until all have read the checkpoint, which
        the main process may soon replace or remove."""
        if not self.processes.reduce:
            return
        step = torch.tensor([self.step, self.step**2], dtype=torch.double)
        self.processes.reduce([step])
        if step[0] ** 2 != step[1]:  # the variance over the processes
            raise ValueError(f"{self.path} is not there for every process: give them a folder that all can read.")

    def checkpoint(self) -> None:
        if not self.processes.main or not self.step:
            return
        self._check_weights()
        tensors = {}
        for name, p, average in zip(self.names, self.parameters, self.average, strict=True):
            # a layer that the loss does not depend on has no state
            state = self.optimizer.state[p] or {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            tensors |= {
                f"weight/{name}": p,
                f"average/{name}": average.clone(),
                f"first/{name}": state["exp_avg"],
                f"second/{name}": state["exp_avg_sq"],
            }
        progress = {"progress": json.dumps({"step": self.step, "fingerprint": self.made_for})}
        try:
            save_tensors(tensors, self.path, progress)
        except OSError as error:  # the weights are in memory, so nothing is lost yet
            log.warning(
                "%s: there is no checkpoint at step %d, so an interruption loses what came after the last one: %s",
                self.stage,
                self.step,
                error,
            )

    def _check_weights(self) -> None:
        check_finite(f"{self.stage}: the weights after step {self.step}", (*self.parameters, *self.average))

    def run(self, loss: Callable[[random.Random, torch.Generator], Tensor]) -> None:
        if self.step < self.steps:
            done = f"; {self.step:,} are done already" if self.step else ""
            self.progress.phase(f"training {self.steps - self.step:,} steps{done}")
        self.module.train()
        self.saved = time.monotonic()
        try:
            while self.step < self.steps:
                self._step(loss)
        except FloatingPointError:
            raise  # the weights may be why the loss overflowed: an older checkpoint is safer
        except BaseException:
            try:
                self.checkpoint()
            except FloatingPointError as error:  # what stopped the training counts
                log.warning("%s There is no new checkpoint.", error)
            raise
        self._check_weights()
        self.checkpoint()  # the work after the last step may be interrupted too
        for p, average in zip(self.parameters, self.average, strict=True):
            p.data.copy_(average)
        self.module.eval()

    def _step(self, loss: Callable[[random.Random, torch.Generator], Tensor]) -> None:
        rng = step_random(self.seed, self.stage, self.step)
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, self.steps, self.learning_rate)
        value = loss(rng, generator)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        mean = value.detach().reshape(1).clone()
        if self.processes.reduce:  # the loss too: if it is not finite in one process, all of them stop
            self.processes.reduce([mean, *(p.grad for p in self.parameters if p.grad is not None)])
        shown = mean.item()
        if not math.isfinite(shown):  # before the step, so no NaN gets into the weights or the next checkpoint
            raise FloatingPointError(
                f"{self.stage}: the loss is {shown} at step {self.step}; the last checkpoint is {self.path}. "
                "Try a lower learning rate."
            )
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for average, p in zip(self.average, self.parameters, strict=True):
            average.lerp_(p.detach(), 1 - decay)
        self.step += 1
        if self.step % 50 == 0:
            log.info("%s: step %d of %d, loss %.4f", self.stage, self.step, self.steps, shown)
        if time.monotonic() - self.saved > CHECKPOINT_SECONDS:
            self.checkpoint()
            self.saved = time.monotonic()
        self.progress.step(self.step, shown)
