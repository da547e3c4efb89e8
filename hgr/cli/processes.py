"""This process among those that a launcher started (accelerate, torchrun, MPI), and how it stops when told to."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..core.excerpt import excerpt
from ..training.loop import Processes

log = logging.getLogger("safecfg")
_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # those that accelerate reads
# how long to wait for another process, which may still be at its pictures; if one has died, the launcher ends all
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Group:
    """The processes that work together. device: this process's. wait: returns when all have called it."""

    device: torch.device
    processes: Processes
    wait: Callable[[], None]

    @property
    def main(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.processes.main

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all processes must call this."""
        if not self.processes.reduce:
            return flag
        flags = torch.tensor([float(flag)])
        self.processes.reduce([flags])
        return flags.item() > 0


def launched() -> int:
    """How many processes a launcher started; 1 without a launcher."""
    count = max(int(os.environ.get(name, "1")) for name in _COUNTS)
    # accelerate sets the address only if it was asked for several
    if count == 1 and os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ:
        log.warning(
            "accelerate launch --cpu started one process, as it does without MPI; for several on a CPU: "
            "accelerate launch --multi_gpu --num_processes N -m hgr COMMAND --device cpu ..."
        )
    return count


def device(name: str | None) -> torch.device:
    """PyTorch's device of this name; by default a GPU if there is one. Raises ValueError if it does not exist."""
    found = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(1, device=found).device
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
        raise ValueError(f"--device {excerpt(found)}: {str(error).partition(chr(10))[0]}") from None


def meet(name: str | None, count: int) -> Group:
    """Meet the other processes, if there are any. name: of the device; several processes on GPUs take one each."""
    if count == 1:
        return Group(device(name), Processes(), lambda: None)
    from accelerate import Accelerator, InitProcessGroupKwargs

    accelerator = Accelerator(
        cpu=device(name).type == "cpu", kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)]
    )

    def reduce(tensors: list[Tensor]) -> None:
        # as one tensor: the number of messages costs more than their length
        mean: Any = accelerator.reduce(
            torch.cat([x.detach().flatten() for x in tensors]).to(accelerator.device), "mean"
        )
        for x, part in zip(tensors, mean.split([x.numel() for x in tensors]), strict=True):
            x.copy_(part.view_as(x))

    processes = Processes(accelerator.process_index, accelerator.num_processes, reduce)
    return Group(accelerator.device, processes, accelerator.wait_for_everyone)


class Interruption:
    """A context that delays Ctrl-C and SIGTERM to the end of a step, so that the files kept are whole. `asked`: whether
    one of them has come.

    A second Ctrl-C stops at once, but not with several processes: each gets the first one twice, from the terminal and
    from the launcher.
    """

    def __init__(self, alone: bool):
        self.alone, self.asked = alone, False

    def __enter__(self) -> Interruption:
        self.before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def leave(self, group: Group, kept: str) -> NoReturn:
        """Call while handling an exception. After an interruption, ends this process with `kept`, a sentence for the
        user; otherwise raises the exception again."""
        if not self.asked:
            raise
        if not group.main:
            raise SystemExit(130) from None
        raise KeyboardInterrupt(kept) from None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and self.alone:
            raise KeyboardInterrupt
        if not self.asked and self.alone:
            log.info("stopping soon; press Ctrl-C again to stop at once")
        self.asked = True
