"""Detecting concepts in prompts and pictures, with the parts of a diffusers pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ...detect import hed_picture, spread
from ...guidance import concept_strengths
from ...probe import calibrated, empty_prompt, features, logits
from ...redirector import HGR, HGRError, Probe
from ...report import BOTH, PICTURE, PROMPT, Evidence, build
from ...safecfg import Prompt
from ...views import views
from . import encode
from .training import denoiser

_LARGEST = 1024  # side of a latent
_FORMATS = ("PNG", "JPEG", "WEBP")
_COLOURS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # of others, Pillow makes white
_OVERLAP = 8  # tokens that parts of a long prompt share: a word that is cut by one is whole in the other


class PictureError(ValueError):
    """A picture that cannot be read, in one sentence that says why."""


class Detector:
    """Judges prompts and pictures, one at a time: so a score does not depend on what else is looked at.

    pipe: the model that the HGR was trained for; without denoiser and autoencoder, for prompts alone. Its autoencoder is set to float32, as
    SDXL's gives NaN in less. concepts: strength by concept id, as JSON; those at 0 do not count. sensitivity: of
    `hgr.redirector.SENSITIVITIES`. timesteps: noise levels at which a picture is looked at with its prompt. samples: draws of noise at
    each level. seed: of the noise.

    Raises ValueError for concepts that are no JSON object of strengths; HGRError for an HGR of another text encoder, and for one without
    thresholds for this sensitivity.
    """

    def __init__(self, pipe: DiffusionPipeline, hgr: HGR, concepts: str = "", sensitivity: str = "normal", timesteps: int = 2,
                 samples: int = 1, seed: int = 0):
        self.pipe, self.hgr, self.sensitivity = pipe, hgr, sensitivity
        self.percents, self.samples, self.seed = spread(timesteps), samples, seed
        self.on = [strength > 0 for strength in concept_strengths(concepts, hgr.ids)]
        if pipe.unet is not None:
            self.denoiser = denoiser(pipe)
            pipe.vae.float()
        self("")  # what is wrong with the HGR is said now, and not of every item

    @torch.no_grad()
    def __call__(self, text: str | None = None, pixels: Tensor | None = None) -> dict[str, Any]:
        """The report (`hgr.report`) of a prompt, of a picture (1, 3, H, W) in [0, 1], or of a picture with its prompt.

        Raises HGRError where the HGR cannot say, ValueError for neither.
        """
        prompts = [] if text is None else [encode(self.pipe, [part]) for part in _parts(self.pipe, text)]
        if pixels is not None:
            evidence = self._picture(self._views(pixels), prompts)
        else:
            evidence = [Evidence(PROMPT, _highest([self.hgr.read(*prompt).prompt_gates for prompt in prompts]), self.hgr.concepts)] \
                if prompts else []
        return build(self.hgr, evidence, self.on, self.sensitivity)

    def _picture(self, seen: Tensor, prompts: list[Prompt]) -> list[Evidence]:
        hgr, probe, evidence = self.hgr, probe_of(self.hgr), []
        if prompts:
            found = [hed_picture(hgr, self.denoiser, seen[:1], prompt, self.percents, self.samples, self.seed).per_concept
                     for prompt in prompts]
            evidence.append(Evidence(BOTH, calibrated(_highest(found), probe.hed), probe.hed))
        x = features(self.denoiser, seen, empty_prompt(hgr), probe.percents, self.samples, self.seed)
        return [*evidence, Evidence(PICTURE, _highest([calibrated(logits(probe, x, hgr.name), probe.heads)]), probe.heads)]

    def _views(self, pixels: Tensor) -> Tensor:
        """(N, C, h, w) latents on the CPU, at the size that the probe was trained at: the picture as a whole and, of one in another shape,
        its parts (`hgr.views`)."""
        vae, cell = self.pipe.vae, self.pipe.vae_scale_factor
        height, width = (side * cell for side in probe_of(self.hgr).training["latent"][1:])
        return torch.cat([(vae.encode(2 * view.to(vae.device) - 1).latent_dist.mode() * vae.config.scaling_factor).cpu()
                          for view in views(pixels, height, width)])


def probe_of(hgr: HGR) -> Probe:
    """The HGR's picture probe. Raises HGRError where it has none, and for one of something else than this model's pictures."""
    if hgr.probe is None:
        raise HGRError(f"{hgr.name} has no picture probe, so it can judge prompts alone: python -m hgr probe adds one.")
    size = hgr.probe.training.get("latent")
    if not isinstance(size, list) or len(size) != 3 or not all(type(n) is int and 1 <= n <= _LARGEST for n in size):
        raise HGRError(f"{hgr.name}'s picture probe was made for latents of size {size!r}, which are not those of pictures.")
    return hgr.probe


def read_picture(path: Path) -> Tensor:
    """(1, 3, H, W) in [0, 1], from a PNG, JPEG or WebP file; without alpha, which is no part of what a picture shows.

    Raises PictureError for a file that cannot be read, and for one that holds more than can be looked at.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # which is a photo with a small copy of itself
                raise PictureError(f"an animation of {frames} pictures: give these one by one.")
            if image.mode not in _COLOURS:
                raise PictureError(f"its colours (\"{image.mode}\") cannot be read: save it with 8 bits a channel.")
            pixels = torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB")))
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError("damaged, or no PNG, JPEG or WebP file.") from None
    except Exception as error:  # a damaged file makes the decoders raise whatever they like
        raise PictureError(f"cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    return pixels.movedim(-1, 0)[None].float() / 255


def _parts(pipe: DiffusionPipeline, text: str) -> list[str]:
    """A prompt in parts that the text encoders read whole: what they cut off may be what is harmful."""
    tokens, room = pipe.tokenizer(text, add_special_tokens=False, verbose=False).input_ids, pipe.tokenizer.model_max_length - 2
    if len(tokens) <= room:
        return [text]
    return [pipe.tokenizer.decode(tokens[at:at + room]) for at in range(0, len(tokens) - _OVERLAP, room - _OVERLAP)]


def _highest(parts: list[Tensor]) -> Tensor:
    """(1, K): of a prompt's or a picture's parts, (N, K) each, the highest score."""
    return torch.cat(parts).amax(0, keepdim=True).cpu()
