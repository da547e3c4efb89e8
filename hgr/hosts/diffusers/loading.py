"""Loads models from a folder in diffusers' layout."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoPipelineForText2Image
from diffusers.utils import logging

from .demo import load_demo_pipeline

# Parts that neither training nor evaluation needs: no picture is decoded there.
_UNUSED = {"safety_checker", "feature_extractor", "image_encoder"}
_PICTURES = {"unet", "vae"}


def load_pipeline(
    model: Path | None, device: torch.device, *, text_only: bool = False, for_people: bool = False
) -> Any:
    """The pipeline in the folder `model`, or the bundled demo model, in float16 on a GPU.

    text_only: without denoiser and autoencoder, to save memory.
    for_people: with every part of the folder, its safety checker included. Otherwise pictures stay latents, and the
    parts in `_UNUSED` are left out.

    Raises ValueError if the folder has no Stable Diffusion 1.x, 2.x or XL in diffusers' layout, OSError if it cannot be
    read.
    """
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    if model is None:
        return load_demo_pipeline(dtype).to(device)
    parts = _index(model)
    if not parts.keys() >= _PICTURES | {"text_encoder"}:
        raise ValueError(
            f"{model}: a {parts.get('_class_name', 'model without a name')}; only Stable Diffusion 1.x, 2.x and XL can "
            "be used here. For other models, train in ComfyUI."
        )
    unused = (set() if for_people else _UNUSED) | (_PICTURES if text_only else set())
    options: dict[str, Any] = dict.fromkeys(unused & parts.keys())
    if "requires_safety_checker" in parts and not for_people:
        options["requires_safety_checker"] = False
    # a download of only the half-precision files has no others
    files = [path.name for path in (model / "text_encoder").glob("*.safetensors")]
    if files and all(".fp16." in name for name in files):
        options["variant"] = "fp16"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # new releases call it dtype; old ones only know torch_dtype
        pipe = AutoPipelineForText2Image.from_pretrained(
            model, torch_dtype=dtype, use_safetensors=True, local_files_only=True, **options
        )
    return pipe.to(device)


def quiet() -> None:
    """For the command line: no progress bar of diffusers for every load, and no warning about the long prompt that
    shows how an encoder splits prompts."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _index(model: Path) -> dict[str, object]:
    """The folder's index of its parts."""
    if not model.is_dir():
        raise ValueError(f"{model}: no such folder.")
    try:
        parts = json.loads((model / "model_index.json").read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{model}: has no model_index.json, so it is not a model in diffusers' layout.") from None
    except ValueError as error:
        raise ValueError(f"{model}: its model_index.json is damaged ({error}).") from None
    if not isinstance(parts, dict):
        raise ValueError(f"{model}: its model_index.json is damaged.")
    return parts
