"""Training an HGR inside ComfyUI: its text encoder and its denoiser, with its memory management in charge."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.utils
import folder_paths
import torch
from PIL import Image
from torch import Tensor

from ...attention import cross_attention
from ...features import Encode
from ...pairs import Pairs
from ...redirector import HGR
from ...safecfg import Prompt
from ...training import LOSSES, Settings, check, identity, train
from .chart import draw_loss, image
from .denoiser import denoiser, weights_of

_PREVIEW_SECONDS = 1.0
_SIZE = torch.Size((1, 4, 64, 64))  # of a latent: 512 x 512


def train_hgr(clip: comfy.sd.CLIP, pairs: Pairs, settings: Settings, model: comfy.model_patcher.ModelPatcher | None,
              latents: dict[str, Any] | None) -> tuple[HGR, Tensor]:
    """Train an HGR for a CLIP and, unless the losses are "text", for a MODEL. Returns it with the loss chart (1, H, W, 3).

    latents: a LATENT of pictures to look at; an empty one gives the size in which the model makes its own.
    What is interrupted goes on from its last step when the same training is run again.

    Raises PairsError and ValueError as `hgr.training.train`, before anything is encoded.
    """
    weights = LOSSES.get(settings.losses)
    if weights and (weights.attention or weights.score) and model is not None:
        cross_attention(model.model.diffusion_model)
    check(pairs, settings)
    name = family(clip)
    pictures = given_pictures(latents)
    size = picture_size(latents)
    made_for = name if model is None else f"{name}, {weights_of(model)}, {tuple(size)}"  # what is kept was made with these
    work = Path(folder_paths.get_system_user_directory("safecfg"), "training", identity(pairs, made_for, settings))
    progress = Progress("HGR training", settings.steps)
    with gradients():
        hgr = train(pairs, encoder(clip), name, settings, work, comfy.model_management.get_torch_device(),
                    None if model is None else lambda: denoiser(model, size, clip, settings.seed, LOSSES[settings.losses].score > 0),
                    pictures, on_text=progress.count, on_picture=progress.count, on_step=progress.step)
    shutil.rmtree(work, ignore_errors=True)
    return hgr, image(progress.chart())


@contextmanager
def gradients() -> Iterator[None]:
    """Nodes run in inference mode, whose tensors no gradient can pass, and the host's fused kernels have none either."""
    before, comfy.model_management.in_training = getattr(comfy.model_management, "in_training", False), True
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        comfy.model_management.in_training = before


def family(clip: comfy.sd.CLIP) -> str:
    """A name of the text encoder, for people."""
    return type(clip.cond_stage_model).__name__.strip("_").removesuffix("_").removesuffix("Model")


def encoder(clip: comfy.sd.CLIP) -> Encode:
    """The host's text encoder, a prompt at a time, as its own Text Encode nodes call it."""
    with_pooled = _uses_pooled(clip)

    def encode(text: str) -> Prompt:
        features, extra = clip.encode_from_tokens_scheduled(clip.tokenize(text))[0]
        mask = extra.get("attention_mask")
        if mask is not None and mask.shape != features.shape[:2]:
            mask = None  # some models keep something else than a mask of tokens under this name
        return Prompt(features, extra.get("pooled_output") if with_pooled else None, mask)

    def rows(texts: list[str]) -> list[Prompt]:
        with torch.inference_mode():
            return [encode(text) for text in texts]

    return rows


def _uses_pooled(clip: comfy.sd.CLIP) -> bool:
    """Whether the model gets the pooled output: encoders of one sequence give one that nothing reads, but for those here."""
    kinds = [comfy.sdxl_clip.SDXLRefinerClipModel, comfy.sdxl_clip.StableCascadeClipModel]
    return isinstance(clip.cond_stage_model, tuple(kinds)) or not isinstance(clip.cond_stage_model, comfy.sd1_clip.SD1ClipModel)


def given_pictures(latents: dict[str, Any] | None) -> Tensor | None:
    """The pictures (N, ...) of a LATENT; None for an empty one, which only gives a size."""
    if latents is None:
        return None
    if latents["samples"].is_nested:
        raise ValueError("latents: pictures with sound cannot be used here; give pictures or an empty latent.")
    return latents["samples"].float().cpu() if latents["samples"].any() else None


def picture_size(latents: dict[str, Any] | None) -> torch.Size:
    """Of one of a LATENT's pictures, (1, C, H, W); 512 x 512 pixels where nobody says another."""
    return _SIZE if latents is None else _picture(latents["samples"].shape)


def _picture(shape: torch.Size) -> torch.Size:
    """Of one picture among latents of this shape; of videos, one frame."""
    return torch.Size((1, shape[1], 1, *shape[3:]) if len(shape) == 5 else (1, *shape[1:]))


class Progress:
    """The node's progress bar, its preview and the interrupt button. title: what is trained."""

    def __init__(self, title: str, steps: int):
        self.title, self.steps, self.losses, self.shown = title, steps, [], 0.0
        self.bar = comfy.utils.ProgressBar(steps)

    def count(self, done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(done, total)

    def step(self, done: int, loss: float) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.losses.append((done, loss))
        preview = None
        if time.monotonic() - self.shown > _PREVIEW_SECONDS:
            self.shown = time.monotonic()
            preview = ("PNG", self.chart(), None)
        self.bar.update_absolute(done, self.steps, preview)

    def chart(self) -> Image.Image:
        """The loss so far."""
        return draw_loss(self.losses, self.steps, self.title)
