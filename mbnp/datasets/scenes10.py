"""scenes10: images with one to five of shapes10's objects, and a box around each, to train a detector on.

A scene is a background of shapes10's, on which objects are laid from back to front; each has its own size, place,
turn, colours, shadow and bar across it. Light and noise come last, as in shapes10. All of it follows from one seed.

`Split.masks` marks what is seen of each object, and its box is the extent of that: float32 pixels, left, top, right,
bottom, where right and bottom are the edges behind its last column and row. An object of which less than a fifth is
seen, since another lies on it or the image ends, has neither.

Symbols: a scene is S x S pixels, 96 by default, and has up to M = 5 objects. An object is drawn in a window of its
own, P x P pixels, which is as large as the object needs.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from mbnp.datasets import shapes10
from mbnp.datasets.dataset import Dataset, Split
from mbnp.errors import MbnpError

SIZE = 96
SIZES = (32, 512)  # the smallest and the largest scenes
EPOCHS = 16
MOST = 5  # objects of a scene
SEEN = 0.2  # the least share of an object's pixels that must be seen
MEAN = (0.3957, 0.3962, 0.3964)  # of the training images of seed 0; a test measures them again
STD = (0.2073, 0.2063, 0.2054)

# Of an object, in shares of the scene's width: 7 to 20 pixels of 96. A shape is about two radii wide.
RADIUS = (7 / 96, 20 / 96)
REACH = 1.3  # no shape, and no bar, goes further than this many radii from the object's middle
SHADOW = 4  # pixels that its shadow goes further

# Scenes are drawn this many at a time, each block from a seed of its own, so that scene i is the same however many
# are asked for. A fifth of them has one object, a fifth two, and so on.
BLOCK = 50
WINDOWS = 4  # sizes of windows; more of them have fewer pixels, and cost more calls

Array = np.ndarray


def _places(rng: np.random.Generator, scene: Array, radius: Array, size: int) -> Array:
    """Return the middle (n, 2), x and y in pixels, of each object: the roomier of two random places.

    A place is as roomy as it is far from the edges of the objects before, in its scene. Most of an object lies inside.
    """
    n, least = len(scene), 0.9 * radius[:, None, None]
    tries = least + (size - 2 * least) * rng.random((n, 2, 2))
    middles = np.empty((n, 2))
    for k in range(n):
        before = np.flatnonzero(scene[:k] == scene[k])
        gaps = np.linalg.norm(tries[k, :, None] - middles[before], axis=-1) - radius[before]
        middles[k] = tries[k, gaps.min(axis=1, initial=size).argmax()]
    return middles


class _Window(NamedTuple):
    """One of some objects that were drawn together, and where on its scene it goes."""

    objects: shapes10.Objects
    k: int  # which of them
    corner: Array  # the column and the row of the scene where its window begins, which may be negative


def _draw(rng: np.random.Generator, classes: Array, hue: Array, middles: Array, radius: Array) -> list[_Window]:
    """Draw n objects in windows of a few sizes; hue: of the background of each."""
    drawn: dict[int, _Window] = {}
    limits = np.geomspace(radius.min(), radius.max(), WINDOWS + 1)
    group = np.searchsorted(limits[1:-1], radius)
    for g in range(WINDOWS):
        chosen = np.flatnonzero(group == g)
        window = 2 * math.ceil(REACH * limits[g + 1] + SHADOW)
        corners = np.round(middles[chosen]).astype(int) - window // 2
        shift = corners + window / 2 - middles[chosen]  # from the object's middle to its window's
        right, down, size = (a[:, None, None].astype(np.float32) for a in (*shift.T, radius[chosen]))
        x, y = shapes10.places(window)
        objects = shapes10.objects(rng, classes[chosen], hue[chosen], x + right, y + down, size, REACH)
        drawn |= {int(chosen[i]): _Window(objects, i, corners[i]) for i in range(len(chosen))}
    return [drawn[k] for k in range(len(classes))]


def _lay(canvas: Array, seen: Array, drawn: _Window, number: int) -> None:
    """Lay an object on its scene (S, S, 3), and mark its pixels in `seen` (S, S) by its number."""
    shadow, coat, coverage, colour, bar = (array[drawn.k] for array in drawn.objects)
    first = np.maximum(drawn.corner, 0)
    last = np.minimum(drawn.corner + len(bar), len(canvas))
    columns, rows = map(slice, first, last)
    inside = tuple(map(slice, (first - drawn.corner)[::-1], (last - drawn.corner)[::-1]))
    over = shapes10.Objects(shadow[inside], coat[inside], coverage[inside], colour, bar[inside])
    shapes10.lay(canvas[rows, columns], over)
    seen[rows, columns][over.coverage > 0.5] = number
    seen[rows, columns][over.bar >= 0.5] = 0


def _block(rng: np.random.Generator, size: int) -> tuple[Array, Array, Array, Array]:
    """Draw a block of scenes; return images, labels (n, M), masks and boxes (n, M, 4), as a `Split` has them."""
    counts = rng.permutation(np.repeat(np.arange(1, MOST + 1), BLOCK // MOST))
    scene, place = np.nonzero(np.arange(MOST) < counts[:, None])  # of each object; in a scene from back to front
    tens = np.tile(np.arange(len(shapes10.SHAPES)), (len(scene) // len(shapes10.SHAPES), 1))
    classes = rng.permuted(tens, axis=1).ravel()  # every ten objects in a row show every class once
    radius = size * np.exp(rng.uniform(math.log(RADIUS[0]), math.log(RADIUS[1]), len(scene)))
    middles = _places(rng, scene, radius, size)
    hue = shapes10.uniform(rng, BLOCK, 0, 1)
    canvas = shapes10.paint(rng, hue, 0.35, 0.9, size)

    labels, whole = np.full((BLOCK, MOST), -1), np.zeros((BLOCK, MOST))
    seen = np.zeros((BLOCK, size, size), np.uint8)
    labels[scene, place] = classes
    windows = _draw(rng, classes, hue[scene], middles, radius)
    for i, k, drawn in zip(scene.tolist(), place.tolist(), windows, strict=True):
        _lay(canvas[i], seen[i], drawn, k + 1)
        whole[i, k] = np.count_nonzero(drawn.objects.coverage[drawn.k] > 0.5)
    labels, masks, boxes = _measure(labels, seen, whole)
    return shapes10.expose(rng, canvas), labels, masks, boxes


def _measure(labels: Array, seen: Array, whole: Array) -> tuple[Array, Array, Array]:
    """Drop the objects of which too little is seen, and measure the others; return labels, masks and boxes.

    labels: (n, M), -1 for none. seen: (n, S, S), k + 1 where object k is seen. whole: (n, M), all of its pixels.
    """
    n, size, _ = seen.shape
    boxes = np.zeros((n, MOST, 4), np.float32)
    pixels = np.zeros((n, MOST))
    for k in range(MOST):
        mine = seen == k + 1
        pixels[:, k] = mine.sum((1, 2))
        columns, rows = mine.any(axis=1), mine.any(axis=2)
        first = [line.argmax(axis=1) for line in (columns, rows)]
        behind = [size - line[:, ::-1].argmax(axis=1) for line in (columns, rows)]
        boxes[:, k] = np.stack([*first, *behind], axis=1)
    kept = (labels >= 0) & (pixels >= SEEN * whole)
    order = np.argsort(~kept, axis=1, kind="stable")  # those that are kept come first, and keep their order
    number = np.zeros((n, MOST + 1), np.uint8)
    number[:, 1:] = np.where(kept, kept.cumsum(axis=1), 0)
    labels, boxes = np.where(kept, labels, -1), np.where(kept[..., None], boxes, 0)
    masks = number[np.arange(n)[:, None, None], seen]
    return np.take_along_axis(labels, order, 1), masks, np.take_along_axis(boxes, order[..., None], 1)


def _split(count: int, size: int, *seed: int) -> Split:
    images, labels = np.empty((count, size, size, 3), np.uint8), np.empty((count, MOST), np.int64)
    masks, boxes = np.empty((count, size, size), np.uint8), np.empty((count, MOST, 4), np.float32)
    arrays: tuple[Array, ...] = (images, labels, masks, boxes)

    def draw(block: int) -> None:
        first = block * BLOCK
        drawn = _block(np.random.default_rng([*seed, block]), size)
        for whole, part in zip(arrays, drawn, strict=True):
            whole[first : first + BLOCK] = part[: count - first]

    with ThreadPoolExecutor(4) as pool:  # NumPy computes without Python's lock
        list(pool.map(draw, range(-(-count // BLOCK))))
    return Split(*arrays)


def make(train: int = 4_000, test: int = 1_000, seed: int = 0, size: int = SIZE) -> Dataset:
    """Draw scenes10, that many training and test images of size x size pixels, in a few seconds.

    The same seed draws the same scenes: with the same NumPy and processor to the last bit, elsewhere up to the
    rounding of single levels. Scene i of a split does not depend on how many there are.
    """
    if min(train, test) < 1 or seed < 0:
        raise MbnpError(f"scenes10 needs images and a seed from 0: got {train}, {test} and seed {seed}")
    if not SIZES[0] <= size <= SIZES[1]:
        raise MbnpError(f"scenes10 draws images of {SIZES[0]} to {SIZES[1]} pixels a side, got {size}")
    source = f"drawn by mbnp, seed {seed}"
    splits = _split(train, size, seed, 0), _split(test, size, seed, 1)
    return Dataset("scenes10", source, *splits, list(shapes10.SHAPES), MEAN, STD, EPOCHS)
