"""Reads the user's picture files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

_FORMATS = ("PNG", "JPEG", "WEBP")
_COLOURS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow turns others white


class PictureError(ValueError):
    """A picture that cannot be read, in one sentence that says why."""


def read_picture(path: Path) -> Tensor:
    """(1, 3, H, W) in [0, 1] from a PNG, JPEG or WebP file; without alpha, which is not part of what a picture shows.

    Raises PictureError for a file that cannot be read, and for an animation.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # MPO: a photo with a small copy of itself
                raise PictureError(f"an animation of {frames} pictures: give them one by one.")
            if image.mode not in _COLOURS:
                raise PictureError(f'its colours ("{image.mode}") cannot be read: save it with 8 bits per channel.')
            pixels = torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB")))
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError("damaged, or not a PNG, JPEG or WebP file.") from None
    except Exception as error:  # a damaged file can make the decoders raise anything
        raise PictureError(f"cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    return pixels.movedim(-1, 0)[None].float() / 255
