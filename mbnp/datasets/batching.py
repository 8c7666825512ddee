"""Turn stored images into what a network takes: normalise, augment, batches."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from mbnp.datasets.dataset import Split
from mbnp.errors import MbnpError, unknown

ORDERS = ("rgb", "bgr")

Augmentation = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def normalise(
    images: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: np.typing.DTypeLike = np.float32,
    order: str = "rgb",
) -> np.ndarray:
    """Return (images / 255 - mean) / std, channel by channel, in the same shape and in `dtype`.

    images (N, H, W, C) uint8, or float32 where they were resized, red first; mean and std: C numbers, of images scaled
    to 0..1. order="bgr" turns the channels round, and mean and std are of blue first. It is computed as one
    multiplication and one addition, with constants worked out in float64.
    """
    _check_images(images, np.uint8, np.float32)
    if order not in ORDERS:
        raise unknown("order of channels", order, ORDERS)
    images = images if order == "rgb" else images[..., ::-1]
    n, h, w, c = images.shape
    deviation = np.asarray(std, np.float64)
    if np.shape(mean) != (c,) or deviation.shape != (c,):
        raise MbnpError(f"mean {mean} and std {std} must have one number for each of {c} channels")
    # Repeated along a row of pixels: NumPy's inner loop is then W * C long instead of C.
    scale = np.tile(1 / (255 * deviation), w).astype(dtype)
    shift = np.tile(-np.asarray(mean, np.float64) / deviation, w).astype(dtype)
    x = images.reshape(n, h, w * c) * scale
    x += shift
    return x.reshape(n, h, w, c)


def augment(images: np.ndarray, rng: np.random.Generator, pad: int | None = None) -> np.ndarray:
    """Return images moved by up to `pad` pixels either way, each mirrored with probability 1/2, in a new array.

    images: (N, H, W, C) uint8. pad: an eighth of the shorter side, where it is not given. What moves in from
    outside is the image's own reflection.
    Source: He et al., "Deep Residual Learning for Image Recognition" (2015), section 4.2.
    """
    _check_images(images)
    n, h, w, c = images.shape
    pad = min(h, w) // 8 if pad is None else pad
    if pad >= min(h, w):
        raise MbnpError(f"cannot reflect {pad} pixels at the border of images of {h}x{w}")
    top, left = rng.integers(0, 2 * pad + 1, (2, n))
    mirrored = rng.random(n) < 0.5
    # One element a pixel, whatever the number of channels: half the time of moving single bytes.
    pixels = np.ascontiguousarray(images).view(f"V{c}")[..., 0]
    padded = np.pad(pixels, ((0, 0), (pad, pad), (pad, pad)), mode="reflect")
    windows = sliding_window_view(padded, (h, w), axis=(1, 2))  # a view: (N, 2 pad + 1, 2 pad + 1, H, W)
    crops = windows[np.arange(n), top, left]
    crops[mirrored] = crops[mirrored, :, ::-1]
    return crops[..., None].view(np.uint8)


def resized_crop(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random part of each image at the size of the whole, each mirrored with probability 1/2, in a new array.

    images: (N, H, W, C) uint8. A part has 8 to 100 % of the area, and is up to a third wider or higher than the image.
    Source: Szegedy et al., "Going deeper with convolutions" (2014), section 6.
    """
    _check_images(images)
    n, h, w, c = images.shape
    area, ratio = rng.uniform(0.08, 1, n), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), n))
    height, width = np.minimum(h, h * np.sqrt(area / ratio)), np.minimum(w, w * np.sqrt(area * ratio))
    top, left = (h - height) * rng.random(n), (w - width) * rng.random(n)
    mirrored = rng.random(n) < 0.5
    crops = np.empty_like(images)
    for i, box in enumerate(zip(left, top, left + width, top + height, strict=True)):
        whole = Image.fromarray(images[i] if c > 1 else images[i, :, :, 0])
        crops[i] = np.asarray(whole.resize((w, h), Image.Resampling.BILINEAR, box)).reshape(h, w, c)
    crops[mirrored] = crops[mirrored, :, ::-1]
    return crops


# By the names that recipes have.
AUGMENTATIONS: dict[str, Augmentation] = {"shift": augment, "crop": resized_crop}


def count_batches(count: int, batch_size: int, train: bool) -> int:
    """Count the batches that `batches` makes of `count` images: full ones, and in evaluation also the rest."""
    return count // batch_size if train else -(-count // batch_size)


def batches(
    split: Split,
    batch_size: int,
    rng: np.random.Generator | None = None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    augment: Augmentation | None = None,
    dtype: np.typing.DTypeLike = np.float32,
    order: str = "rgb",
    first: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Return an iterator of pairs (x (B, H, W, C) normalised, in `dtype`; y (B,) int64), once through a split.

    With an `rng` it is for training: shuffled, each batch through `augment` where given, and the images that do not
    fill a last batch left out (of one image alone BatchNorm could not take a variance over a 1x1 feature map).
    Without an `rng` it is for evaluation: every image, in order. The order is drawn at the call.

    first: how many batches to leave out at the beginning.
    """
    train = rng is not None
    if batch_size < 1:
        raise MbnpError(f"batch size must be at least 1, got {batch_size}")
    if augment is not None and not train:
        raise MbnpError("augmenting is random: pass an rng too, or no augmentation for evaluation")
    count = count_batches(len(split), batch_size, train)
    if count == 0:
        raise MbnpError(f"{len(split)} images do not fill one batch of {batch_size}: lower the batch size")
    indices = np.arange(len(split)) if rng is None else rng.permutation(len(split))

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = indices[step * batch_size : (step + 1) * batch_size]
        images = split.images[chosen]
        if augment is not None and rng is not None:
            images = augment(images, rng)
        return normalise(images, mean, std, dtype, order), split.labels[chosen]

    return map(batch, range(first, count))  # an iterator, so that the checks above run at the call


def _check_images(images: np.ndarray, *dtypes: type) -> None:
    if images.ndim != 4 or images.dtype not in (dtypes or (np.uint8,)):
        raise MbnpError(f"expected images (N, H, W, C) of uint8, got {images.shape} of {images.dtype}")
