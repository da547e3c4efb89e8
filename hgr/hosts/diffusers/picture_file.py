"""Reading the user's picture files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

_FORMATS = ("PNG", "JPEG", "WEBP")
_COLOURS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # of others, Pillow makes white


class PictureError(ValueError):
    """A picture that cannot be read, in one sentence that says why."""


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
                raise PictureError(f'its colours ("{image.mode}") cannot be read: save it with 8 bits a channel.')
            pixels = torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB")))
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError("damaged, or no PNG, JPEG or WebP file.") from None
    except Exception as error:  # a damaged file makes the decoders raise whatever they like
        raise PictureError(f"cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    return pixels.movedim(-1, 0)[None].float() / 255
