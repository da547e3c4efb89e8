"""Methods that change the model's weights, for the time of a run."""

from __future__ import annotations

import logging
import random
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hgr.core.denoiser import Predict
from hgr.core.tensor_file import save_tensors
from hgr.hosts.diffusers.denoiser import denoiser_of
from hgr.training.loop import Loop
from hgr.training.pictures import paint
from hgr.training.train_lora import Adapted
from hgr.training.work_files import checkpoint_file

from .method import Method

log = logging.getLogger("benchmark")


@contextmanager
def exchanged(module: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """The module with some of its parameters exchanged; after it, its own again, bit for bit."""
    parameters = {name: module.get_parameter(name) for name in weights}
    own = {name: p.detach().clone() for name, p in parameters.items()}

    def put(values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(values[name])

    put(weights)
    try:
        yield
    finally:
        put(own)


def cross_attention(unet: nn.Module, parts: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out")) -> dict[str, Tensor]:
    """Copies of the weights of these parts of all cross-attention layers."""
    return {
        name: p.detach().clone()
        for name, p in unet.named_parameters()
        if ".attn2." in name and name.split(".attn2.")[1].split(".")[0] in parts
    }


class Edited(Method):
    """Plain guidance by a model with other weights."""

    @property
    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """Those of the denoiser's parameters that are others, by name."""

    def edited(self) -> AbstractContextManager[None]:
        return exchanged(self.pipe.unet, self.weights)


class Tuned(Edited):
    """Some cross-attention weights fine-tuned: `steps` steps of AdamW, 8 examples each."""

    parts: tuple[str, ...]
    stage: str  # the name of its checkpoint
    learning_rate: float
    steps, batch = 300, 8

    @abstractmethod
    def loss(self, adapted: Adapted) -> Callable[[random.Random, torch.Generator], Tensor]:
        """For `hgr.training.loop.Loop`; `adapted` is the model in training."""

    def painted(self, adapted: Adapted, texts: list[str]) -> Tensor:
        """The model's own pictures of these prompts, latents (N, C, H, W), kept."""
        return paint(adapted.denoiser, texts, self.given.folder / "pictures.safetensors")

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        path = self.given.folder / "weights.safetensors"
        if not path.exists():
            start = time.perf_counter()
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(self._train(), path)
            checkpoint_file(self.given.folder, self.stage).unlink(missing_ok=True)
            log.info("%s: trained in %.0f s", self.label, time.perf_counter() - start)
        return load_file(path, str(self.pipe.unet.device))

    def _train(self) -> dict[str, Tensor]:
        unet, denoiser = self.pipe.unet, denoiser_of(self.pipe, self.given.seed)
        own = cross_attention(unet, self.parts)
        with exchanged(unet, own), torch.enable_grad():  # trained in place, then its own weights again
            for name in own:
                unet.get_parameter(name).requires_grad_(True)
            adapted = Adapted(denoiser, unet, lambda: exchanged(unet, own))
            loop = Loop(
                self.stage,
                unet,
                self.given.folder,
                steps=self.steps,
                learning_rate=self.learning_rate,
                seed=self.given.seed,
                average=0.99,
                weight_decay=0.0,
            )
            try:
                loop.run(self.loss(adapted))
            finally:
                unet.requires_grad_(False)
            return cross_attention(unet, self.parts)


def noised(adapted: Adapted, latents: Tensor, generator: torch.Generator) -> Predict:
    """The errors of predictions for latents (B, ...), each at a random point in sampling."""
    percent = torch.rand(len(latents), generator=generator).clamp(0.01, 0.99)
    return adapted.denoiser.at(latents, percent, torch.randn(latents.shape, generator=generator))
