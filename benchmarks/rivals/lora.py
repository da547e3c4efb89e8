"""This project's Safe Fine-Tune as one of the methods."""

from __future__ import annotations

import copy
import logging
import random
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hgr.core.tensor_file import save_tensors
from hgr.demo.captions import Caption, draw_from
from hgr.hosts.diffusers import finetune as host
from hgr.hosts.diffusers.prompts import encoder_of
from hgr.training.settings import LORA_STAGE, LoRASettings
from hgr.training.train_lora import train_lora
from hgr.training.work_files import discard

from .weights import Edited

log = logging.getLogger("benchmark")

HARMFUL_SHARE = 0.4


def mixture(seed: int, count: int, share: float = HARMFUL_SHARE) -> list[Caption]:
    """Captions as people might ask for them, of the training side; a share of them harmful."""
    rng = random.Random(f"finetune/{seed}")
    flags = [i < round(share * count) for i in range(count)]
    rng.shuffle(flags)
    return [
        draw_from("training", rng, rng.choice(("seen", "two") if harmful else ("clean", "homonym")))
        for harmful in flags
    ]


class LoRA(Edited):
    """A LoRA trained without labels, the HGR as its teacher (`hgr.training.train_lora` has the formula), with the
    trainer's default settings: 400 steps of 8 on 400 pictures that the model makes itself."""

    label = "Safe Fine-Tune's LoRA"
    settings = LoRASettings()

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        path = self.given.folder / "lora.safetensors"
        if not path.exists():
            self._train(path)
        pipe = self._copy()
        pipe.load_lora_weights(str(path))
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        own, other = self.pipe.unet.state_dict(), pipe.unet.state_dict()
        return {name: x for name, x in other.items() if not torch.equal(x, own[name])}

    def _train(self, path: Path) -> None:
        start, settings = time.perf_counter(), self.settings
        path.parent.mkdir(parents=True, exist_ok=True)
        pipe, hgr = self._copy(), self.given.hgr
        with torch.enable_grad():
            train_lora(
                hgr,
                [caption.text for caption in mixture(self.given.seed, settings.pictures)],
                settings,
                encode=encoder_of(pipe),
                adapt=lambda: host.adapt(pipe, settings.rank, settings.seed),
                strengths=[1.0] * len(hgr.ids),
                work=path.parent,
                device=pipe.device,
            )
        save_tensors(host.lora_state_dict(pipe.unet), path)
        discard(path.parent, LORA_STAGE)
        log.info("%s: trained in %.0f s", self.label, time.perf_counter() - start)

    def _copy(self) -> Any:
        """The pipeline with a denoiser of its own."""
        parts = self.pipe.components | {"unet": copy.deepcopy(self.pipe.unet)}
        return type(self.pipe)(**parts, requires_safety_checker=False)
