"""Loads models from a folder in diffusers' layout."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline
from diffusers.utils import logging

from .demo import load_demo_pipeline
from .prompts import SERVED, returned

# Parts that neither training nor evaluation needs: no picture is decoded there.
_UNUSED = {"safety_checker", "feature_extractor", "image_encoder"}
_PICTURES = {"unet", "transformer", "transformer_2", "vae"}


def load_pipeline(
    model: Path | None, device: torch.device, *, text_only: bool = False, for_people: bool = False
) -> Any:
    """The pipeline in the folder `model`, or the bundled demo model. On a GPU in float16; one with a transformer in
    bfloat16, because T5 exceeds the range of float16.

    text_only: without denoiser and autoencoder, to save memory.
    for_people: with every part of the folder, its safety checker included. Otherwise pictures stay latents, and the
    parts in `_UNUSED` are left out.

    Raises ValueError if the folder has no model in diffusers' layout that SafeCFG serves, or one without a UNet where
    its denoiser is needed (neither text_only nor for_people), OSError if it cannot be read.
    """
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    if model is None:
        return load_demo_pipeline(dtype).to(device)
    parts = _index(model)
    unet, kind = "unet" in parts, str(parts.get("_class_name", "model without a name"))
    if returned(kind, unet=unet) is None:
        raise ValueError(f"{model}: a {kind}; SafeCFG serves {SERVED}. For other models, use ComfyUI.")
    if missing := {"unet" if unet else "transformer", "vae", "text_encoder"} - parts.keys():
        raise ValueError(f"{model}: a {kind} without {' and '.join(sorted(missing))}; get the whole model.")
    if not (unet or text_only or for_people):
        raise ValueError(
            f"{model}: a {kind}, whose denoiser is no UNet, so only its text encoders can be used here: train with "
            "--losses text, detect in prompts, evaluate without --pictures. ComfyUI can do the rest."
        )
    if not unet and device.type != "cpu":
        dtype = torch.bfloat16
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
        # a UNet's folder may name the pipeline of another task, e.g. inpainting
        loader = AutoPipelineForText2Image if unet else DiffusionPipeline
        pipe = loader.from_pretrained(model, torch_dtype=dtype, use_safetensors=True, local_files_only=True, **options)
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
