"""Turn stored images into what a network takes: normalise, augment, batches."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

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
    parts, mirrored = _parts(images, rng, 0.08), rng.random(len(images)) < 0.5
    return _resized(images, parts, mirrored)


def _parts(images: np.ndarray, rng: np.random.Generator, least: float) -> np.ndarray:
    """Return the edges (N, 4) of a random part of each image, left, top, right and bottom; least: of its area."""
    n, h, w, _ = images.shape
    area, ratio = rng.uniform(least, 1, n), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), n))
    height, width = np.minimum(h, h * np.sqrt(area / ratio)), np.minimum(w, w * np.sqrt(area * ratio))
    top, left = (h - height) * rng.random(n), (w - width) * rng.random(n)
    return np.stack([left, top, left + width, top + height], axis=1)


def _resized(images: np.ndarray, parts: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    _, h, w, c = images.shape
    crops = np.empty_like(images)
    for i, box in enumerate(map(tuple, parts)):
        whole = Image.fromarray(images[i] if c > 1 else images[i, :, :, 0])
        crops[i] = np.asarray(whole.resize((w, h), Image.Resampling.BILINEAR, box)).reshape(h, w, c)
    crops[mirrored] = crops[mirrored, :, ::-1]
    return crops


# By the names that recipes have.
AUGMENTATIONS: dict[str, Augmentation] = {"shift": augment, "crop": resized_crop}

# -- the same for images with boxes --------------------------------------------------------------------------

GONE = 0.2  # of an object whose box keeps less than this share of its area, what is left is no object


def augment_objects(
    images: np.ndarray, labels: np.ndarray, boxes: np.ndarray, rng: np.random.Generator, pad: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images, labels and boxes, moved and mirrored as `augment` does.

    images (N, H, W, C) uint8, labels (N, M), boxes (N, M, 4) in pixels. What moves in from outside has the image's mean
    colour: its reflection would show objects that no box is around. Boxes are clipped at the border; objects of which
    almost nothing is left get label -1.
    """
    _check_images(images)
    n, h, w, _ = images.shape
    pad = min(h, w) // 8 if pad is None else pad
    if pad >= min(h, w):
        raise MbnpError(f"cannot move images of {h}x{w} by {pad} pixels")
    down, right = rng.integers(-pad, pad + 1, (2, n))
    mirrored = rng.random((n,)) < 0.5
    moved = np.empty_like(images)
    for image, to, y, x in zip(images, moved, down, right, strict=True):
        to[:] = image.mean((0, 1))
        to[max(y, 0) : h + y, max(x, 0) : w + x] = image[max(-y, 0) : h - y, max(-x, 0) : w - x]
    moved[mirrored] = moved[mirrored, :, ::-1]
    corner = np.stack([-right, -down], axis=1)
    return moved, *_framed(labels, boxes, np.concatenate([corner, corner + (w, h)], axis=1), (w, h), mirrored)


def crop_objects(
    images: np.ndarray, labels: np.ndarray, boxes: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images, labels and boxes, cropped as `resized_crop` does; a part has 30 % of the area or more.

    Arguments and results are those of `augment_objects`.
    """
    _check_images(images)
    _, h, w, _ = images.shape
    parts, mirrored = _parts(images, rng, 0.3), rng.random(len(images)) < 0.5
    return _resized(images, parts, mirrored), *_framed(labels, boxes, parts, (w, h), mirrored)


def _framed(
    labels: np.ndarray, boxes: np.ndarray, parts: np.ndarray, size: tuple[int, int], mirrored: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and boxes where each image's part (N, 4) has become the whole, of that width and height."""
    whole = np.array([*size, *size], boxes.dtype)
    corner, extent = np.tile(parts[:, :2], 2)[:, None], np.tile(parts[:, 2:] - parts[:, :2], 2)[:, None]
    moved = ((boxes - corner) / extent * whole).astype(boxes.dtype)
    clipped = np.clip(moved, 0, whole)
    left = np.prod(clipped[..., 2:] - clipped[..., :2], axis=-1)
    kept = (labels >= 0) & (left > 0) & (left >= GONE * np.prod(moved[..., 2:] - moved[..., :2], axis=-1))
    flipped = abs(clipped[..., [2, 1, 0, 3]] - np.array([size[0], 0, size[0], 0], boxes.dtype))
    framed = np.where(mirrored[:, None, None], flipped, clipped)
    return np.where(kept, labels, -1), np.where(kept[..., None], framed, 0)


_OBJECTS: dict[Augmentation, Callable[..., Any]] = {augment: augment_objects, resized_crop: crop_objects}


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
) -> Iterator[tuple[np.ndarray, Any]]:
    """Return an iterator of pairs (x (B, H, W, C) normalised, in `dtype`; y (B,) int64), once through a split.

    Of a split with boxes, y is a pair, too: labels (B, M) and boxes (B, M, 4), as the split has them. The functions in
    `AUGMENTATIONS` then move the boxes along.

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

    if augment is not None and split.boxes is not None and augment not in _OBJECTS:
        raise MbnpError("this augmentation does not move boxes: use one of datasets.AUGMENTATIONS, or none")

    def batch(step: int) -> tuple[np.ndarray, Any]:
        chosen = indices[step * batch_size : (step + 1) * batch_size]
        images, labels = split.images[chosen], split.labels[chosen]
        boxes = None if split.boxes is None else split.boxes[chosen]
        if augment is not None and boxes is not None:
            images, labels, boxes = _OBJECTS[augment](images, labels, boxes, rng)
        elif augment is not None and rng is not None:
            images = augment(images, rng)
        return normalise(images, mean, std, dtype, order), labels if boxes is None else (labels, boxes)

    return map(batch, range(first, count))  # an iterator, so that the checks above run at the call


def _check_images(images: np.ndarray, *dtypes: type) -> None:
    if images.ndim != 4 or images.dtype not in (dtypes or (np.uint8,)):
        raise MbnpError(f"expected images (N, H, W, C) of uint8, got {images.shape} of {images.dtype}")
