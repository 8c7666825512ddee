"""Image files as arrays, of any kind that Pillow reads."""

import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mbnp.errors import MbnpError


def read_image(path: str | Path, size: int) -> np.ndarray:
    """Return an image file as (size, size, 3) uint8: upright, RGB, the shorter side resized, the middle cropped.

    Transparent pixels become white. Raise MbnpError for a file that is no image or is damaged.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise MbnpError(f"{path} is no file")
    try:
        with warnings.catch_warnings(), Image.open(path) as file:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = _rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError:
        raise FileNotFoundError(f"no image at {path}") from None
    # Decoders of damaged files raise what they like.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, Warning) as error:
        raise MbnpError(f"{path} is no image that can be read: {error}") from None
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which convert() would cut off at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
