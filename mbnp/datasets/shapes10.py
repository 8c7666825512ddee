"""shapes10: ten classes of 32x32 images that mbnp draws itself, for where no CIFAR-10 is at hand.

An image is painted from back to front: a background, the object with a shadow around it, often a thin bar
across it, then light and noise. Colours, textures, place, size, turn, bar, light and noise are random, and
follow from one seed. `Split.masks` marks the pixels on which the object is seen.

The object's outline is a signed distance function: the distance from (u, v) to the edge, negative inside. In
pixels, `0.5 - distance` clipped to 0..1 is how much of a pixel the object covers, which gives smooth edges.
The larger of two distances is the shapes' intersection, the smaller their union.

A linear classifier on these pixels is right for about 23 % of the test images (a test measures it).

Symbols: n images of S x S pixels, S = 32 (scenes10 draws with the same functions at other sizes). A plane is
(n, S, S) float32, one number per image (n, 1, 1), colours have an axis of three more at the end; brightness is 0..1.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mbnp.datasets.dataset import Dataset, Split
from mbnp.errors import MbnpError

SIZE = 32
EPOCHS = 5
MEAN = (0.4005, 0.4019, 0.4043)  # of the training images of seed 0; a test measures them again
STD = (0.2100, 0.2104, 0.2107)

# Images are drawn this many at a time, each block from a seed of its own: the planes stay in the
# processor's cache, and image i is the same however many are asked for.
BLOCK = 200

Array = np.ndarray

# -- shapes: distance to the edge at (u, v), for an object about two units across; v points down -------------


def _lines(u: Array, v: Array, count: int, inner: float) -> list[Array]:
    """Return distances to the sides of a regular polygon, `inner` from its middle; the first side lies below it."""
    angles = [2 * math.pi * k / count for k in range(count)]
    return [u * math.sin(a) + v * math.cos(a) - inner for a in angles]


def arrow(u: Array, v: Array) -> Array:
    shaft = np.maximum(abs(u) - 0.24, abs(v - 0.35) - 0.6)
    head = np.maximum((abs(u) - v - 1) * math.sqrt(0.5), v + 0.05)
    return np.minimum(shaft, head)


def circle(u: Array, v: Array) -> Array:
    return np.hypot(u, v) - 0.85


def crescent(u: Array, v: Array) -> Array:
    """A disc without what a second disc covers."""
    moon = np.maximum(np.hypot(u, v) - 0.95, 0.9 - np.hypot(u - 0.55, v))
    return np.maximum(moon, u - 0.36)  # all of it lies left of its tips; beyond them `moon` alone is too near


def cross(u: Array, v: Array) -> Array:
    longer, shorter = np.maximum(abs(u), abs(v)), np.minimum(abs(u), abs(v))
    return np.maximum(longer - 0.95, shorter - 0.32)


def heart(u: Array, v: Array) -> Array:
    """A square on its corner, and a disc in the middle of each upper side."""
    corner_square = (abs(u) + abs(v) - 0.8) * math.sqrt(0.5)
    discs = np.hypot(abs(u) - 0.4, v + 0.4) - 0.4 * math.sqrt(2)
    return np.minimum(corner_square, discs)


def hourglass(u: Array, v: Array) -> Array:
    return np.maximum((abs(u) - abs(v) - 0.08) * math.sqrt(0.5), abs(v) - 0.8)


def ring(u: Array, v: Array) -> Array:
    return abs(np.hypot(u, v) - 0.72) - 0.23


def square(u: Array, v: Array) -> Array:
    return np.maximum(abs(u), abs(v)) - 0.74


def star(u: Array, v: Array) -> Array:
    """The second largest distance to five lines: a point may lie outside one of them, in a tip."""
    return np.sort(_lines(u, v, 5, 0.4), axis=0)[-2]


def triangle(u: Array, v: Array) -> Array:
    return np.maximum.reduce(_lines(u, v, 3, 0.52))


# The classes, in the order of their labels.
SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    shape.__name__: shape for shape in (arrow, circle, crescent, cross, heart, hourglass, ring, square, star, triangle)
}

# -- textures: a plane in 0..1 for each of n images, turned at random ----------------------------------------


@functools.cache
def places(size: int) -> tuple[Array, Array]:
    """Return x and y (size, size) of every pixel, from the middle of the image."""
    y, x = np.mgrid[:size, :size].astype(np.float32) - (size - 1) / 2
    return x, y


def uniform(rng: np.random.Generator, n: int, low: float, high: float) -> Array:
    return low + (high - low) * rng.random((n, 1, 1), np.float32)


def turn(x: Array, y: Array, angle: Array) -> tuple[Array, Array]:
    """Return the same places, measured along axes that are turned by `angle` (radians)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def random_axes(rng: np.random.Generator, n: int, size: int) -> tuple[Array, Array]:
    return turn(*places(size), uniform(rng, n, 0, 2 * math.pi))


def _wave(t: Array) -> Array:
    """Return a triangle wave between 0 and 1, of period 1."""
    return abs(2 * (t - np.floor(t)) - 1)


def _steeper(t: Array) -> Array:
    return np.clip(4 * t - 1.5, 0, 1)


def _gradient(rng: np.random.Generator, n: int, size: int) -> Array:
    along, _ = random_axes(rng, n, size)
    return np.clip(0.5 + along * (SIZE / size) * uniform(rng, n, 0.01, 0.035), 0, 1)


def _stripes(rng: np.random.Generator, n: int, size: int) -> Array:
    along, _ = random_axes(rng, n, size)
    return _steeper(_wave(along / uniform(rng, n, 4, 9) + uniform(rng, n, 0, 1)))


def _checks(rng: np.random.Generator, n: int, size: int) -> Array:
    along, across = random_axes(rng, n, size)
    period = uniform(rng, n, 6, 12)
    columns = _steeper(_wave(along / period + uniform(rng, n, 0, 1)))
    rows = _steeper(_wave(across / period))
    return columns + rows - 2 * columns * rows  # one or the other, not both


def _dots(rng: np.random.Generator, n: int, size: int) -> Array:
    along, across = random_axes(rng, n, size)
    period = uniform(rng, n, 5, 8)
    return _steeper(_wave(along / period + uniform(rng, n, 0, 1)) * _wave(across / period) + 0.25)


_GRID = 6


@functools.cache
def _smooth(size: int) -> Array:
    """Return (size, 6): how much each row of a coarse grid weighs in a row of pixels."""
    closeness = 1 - abs(np.linspace(0, _GRID - 1, size, dtype=np.float32)[:, None] - np.arange(_GRID))
    closeness = np.clip(closeness, 0, 1)
    return (closeness**2 * (3 - 2 * closeness)).astype(np.float32)


def _clouds(rng: np.random.Generator, n: int, size: int) -> Array:
    """Return random heights on a coarse grid, with smooth transitions between."""
    heights = rng.random((n, _GRID, _GRID), np.float32)
    return np.clip(1.4 * (_smooth(size) @ heights @ _smooth(size).T) - 0.2, 0, 1)


TEXTURES = (_gradient, _stripes, _checks, _dots, _clouds)

# -- images --------------------------------------------------------------------------------------------------


def colour(hue: Array, saturation: Array, value: Array) -> Array:
    """Return the colour (n, 1, 1, 3) of a hue (a full turn is 1, red is 0), saturation and value (n, 1, 1).

    A channel is full over the third of a turn around its own hue, and a sixth further on either side empty.
    """
    sixths = (6 * hue[..., None] + np.array([5, 3, 1], np.float32)) % 6
    missing = np.clip(np.minimum(sixths, 4 - sixths), 0, 1)
    return value[..., None] * (1 - saturation[..., None] * missing)


def paint(rng: np.random.Generator, hue: Array, darkest: float, brightest: float, size: int = SIZE) -> Array:
    """Return (n, size, size, 3): two related colours for each image, mixed by a texture."""
    n = len(hue)
    saturation, value = uniform(rng, n, 0.35, 0.9), uniform(rng, n, darkest, brightest)
    first = colour(hue, saturation, value)
    hue = hue + uniform(rng, n, -0.08, 0.08)
    second = colour(hue, saturation * uniform(rng, n, 0.6, 1), value * uniform(rng, n, 0.55, 1))
    texture = np.empty((n, size, size), np.float32)
    kinds = rng.integers(len(TEXTURES), size=n)
    for kind, draw in enumerate(TEXTURES):
        texture[kinds == kind] = draw(rng, int(np.sum(kinds == kind)), size)
    canvas = np.empty((*texture.shape, 3), np.float32)
    canvas[:] = first
    mix(canvas, second, texture)
    return canvas


def mix(canvas: Array, paint: Array, share: Array) -> None:
    """Replace a share (n, S, S) of each pixel of a canvas (n, S, S, 3) by paint, in place.

    Channel by channel: NumPy's inner loop is then a row of pixels long, and not 3.
    """
    for c in range(3):
        canvas[..., c] += (paint[..., c] - canvas[..., c]) * share


class Objects(NamedTuple):
    """What n objects paint over what is behind them, as `lay` does it."""

    shadow: Array  # (n, S, S): how much darker it is around the object
    coat: Array  # (n, S, S, 3): the object's colours
    coverage: Array  # (n, S, S): how much of a pixel the object covers
    bar_colour: Array  # (n, 1, 1, 3)
    bar: Array  # (n, S, S): how much of a pixel the bar covers

    def seen(self) -> Array:
        """Return the pixels (n, S, S) of the object that its bar leaves."""
        return (self.coverage > 0.5) & (self.bar < 0.5)


def objects(
    rng: np.random.Generator, labels: Array, hue: Array, x: Array, y: Array, radius: Array, reach: float = math.inf
) -> Objects:
    """Draw an object for each label, on a background of that hue.

    x and y: (n, S, S), of every pixel from the object's middle. reach: the bar's half length, in radii.
    """
    u, v = (a / radius for a in turn(x, y, uniform(rng, len(labels), -0.4, 0.4)))
    n, size = len(labels), x.shape[-1]
    distance = np.empty_like(u)
    for label, shape in enumerate(SHAPES.values()):
        distance[labels == label] = shape(u[labels == label], v[labels == label])
    distance *= radius  # in pixels from here on
    shadow = np.clip(1 - distance / 4, 0, 1) * uniform(rng, n, -0.1, 0.45)
    coat = paint(rng, hue + uniform(rng, n, 0.25, 0.75), 0.6, 1, size)

    # A bar through a random point of the object. Where its half width is negative enough, none is seen.
    along, across = turn(x, y, uniform(rng, n, 0, 2 * math.pi))
    off = abs(across - radius * uniform(rng, n, -0.8, 0.8))
    bar = np.minimum(0.5 + uniform(rng, n, -1.5, 2) - off, 0.5 + reach * radius - abs(along))
    bar_colour = colour(uniform(rng, n, 0, 1), uniform(rng, n, 0, 0.9), uniform(rng, n, 0.1, 1))
    return Objects(shadow, coat, np.clip(0.5 - distance, 0, 1), bar_colour, np.clip(bar, 0, 1))


def lay(canvas: Array, over: Objects) -> None:
    """Paint objects over a canvas (..., S, S, 3), in place."""
    canvas *= 1 - over.shadow[..., None]
    mix(canvas, over.coat, over.coverage)
    mix(canvas, over.bar_colour, over.bar)


def expose(rng: np.random.Generator, canvas: Array) -> Array:
    """Return images (n, S, S, 3) uint8 of a canvas, on which light falls from one side, and with noise."""
    n, size = canvas.shape[:2]
    along, _ = random_axes(rng, n, size)
    light = (1 + along * (SIZE / size) * uniform(rng, n, 0, 0.025)) * uniform(rng, n, 0.8, 1.15)
    canvas *= light[..., None]
    canvas += rng.standard_normal(canvas.shape, np.float32) * uniform(rng, n, 0, 0.06)[..., None]
    return np.clip(canvas * 255 + 0.5, 0, 255).astype(np.uint8)


def draw(labels: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw an image for each label; return images (n, S, S, 3) uint8 and masks (n, S, S), true on the object."""
    n = len(labels)
    hue = uniform(rng, n, 0, 1)
    canvas = paint(rng, hue, 0.35, 0.9)
    radius = uniform(rng, n, 9, 13.5)
    room = SIZE / 2 - 0.9 * radius  # so that most of the object lies inside the image
    x, y = (place - room * uniform(rng, n, -1, 1) for place in places(SIZE))
    drawn = objects(rng, labels, hue, x, y, radius)
    lay(canvas, drawn)
    return expose(rng, canvas), drawn.seen()


def _split(count: int, *seed: int) -> Split:
    tens = np.tile(np.arange(len(SHAPES)), (BLOCK // len(SHAPES), 1))
    blocks = []
    for block in range(-(-count // BLOCK)):
        rng = np.random.default_rng([*seed, block])
        labels = rng.permuted(tens, axis=1).ravel()  # every ten images in a row show every class once
        images, masks = draw(labels, rng)
        blocks.append((images, labels, masks))
    return Split(*(np.concatenate(arrays)[:count] for arrays in zip(*blocks, strict=True)))


def make(train: int = 10_000, test: int = 2_000, seed: int = 0) -> Dataset:
    """Draw shapes10, that many training and test images, balanced over the ten classes, in about two seconds.

    The same seed draws the same images: with the same NumPy and processor to the last bit, elsewhere up to
    the rounding of single levels. Image i of a split does not depend on how many there are.
    """
    if min(train, test) < 1 or seed < 0:
        raise MbnpError(f"shapes10 needs images and a seed from 0: got {train}, {test} and seed {seed}")
    source = f"drawn by mbnp, seed {seed}"
    splits = _split(train, seed, 0), _split(test, seed, 1)
    return Dataset("shapes10", source, *splits, list(SHAPES), MEAN, STD, EPOCHS)
