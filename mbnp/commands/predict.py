"""`mbnp predict`: what is on a picture."""

import os
import warnings
from argparse import Namespace

import numpy as np
from PIL import Image, ImageOps

from mbnp import backend, datasets, weights
from mbnp.commands import common
from mbnp.errors import MbnpError
from mbnp.network import Network
from mbnp.ops.softmax_cross_entropy import softmax


def run(options: Namespace) -> None:
    common.set_up(options)
    if options.top < 1:
        raise MbnpError(f"--top must be at least 1, got {options.top}")
    net = weights.load(options.checkpoint)
    common.require_preprocessing(net, options.checkpoint)
    if net.channels != 3 or len(net.output_shape((net.resolution, net.resolution, 3))) != 1:
        raise MbnpError(
            f"{options.checkpoint} does not take colour pictures and give one score for each class"
        )
    images = np.stack([read_picture(path, net.resolution) for path in options.images])
    with common.announced(print):
        prob = probabilities(common.engine(net, options.readable), images)
    for path, p in zip(options.images, prob, strict=True):
        print(path)
        for k in np.argsort(-p, kind="stable")[: options.top]:
            name = net.classes[k] if net.classes else f"class {k}"
            print(f"  {100 * p[k]:6.2f} %  {name}")


def probabilities(net: Network, images: np.ndarray) -> np.ndarray:
    """(N, classes) for pictures (N, H, W, 3) uint8, normalised as the network was trained."""
    if net.preprocessing is None:
        raise MbnpError("the checkpoint does not say how its pictures were normalised")
    x = datasets.normalise(images, **net.preprocessing, dtype=net.dtype)
    if net.num_classes == 1:
        raise MbnpError(
            "the network has one output, and probabilities of classes need two: call it in Python"
        )
    with backend.one_blas_thread():
        return softmax(net.forward(x))


def read_picture(path: str, size: int) -> np.ndarray:
    """A picture file as (size, size, 3) uint8: upright, RGB, its shorter side resized, its middle cropped.

    Transparent parts become white. MbnpError for a file that is no picture or is damaged.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise MbnpError(f"{path} is no file")
    try:
        with warnings.catch_warnings(), Image.open(path) as file:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = _rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError:
        raise FileNotFoundError(f"no picture at {path}") from None
    # Decoders of damaged files raise what they like.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, Warning) as error:
        raise MbnpError(f"{path} is no picture that can be read: {error}") from None
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which convert() would cut off at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
