"""A film of moving shapes: scenes10's objects, each on its way, with the box of what is seen of it in every frame."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mbnp.datasets import scenes10, shapes10


class Shown(NamedTuple):
    image: np.ndarray  # (H, W, 3) uint8
    labels: np.ndarray  # (n,) int64
    boxes: np.ndarray  # (n, 4) pixels


def film(seed: int, frames: int, objects: int = 2, size: tuple[int, int] = (240, 320)) -> Iterator[Shown]:
    """Yield the frames, of this height and width, of a scene whose objects move to and fro between the edges.

    Each frame is drawn anew from the same seed, so that everything but the places stays as it is. Objects do not meet:
    each has a lane for itself, of the width or the height of the frames.
    """
    rng = np.random.default_rng([seed, 0])
    classes = rng.permutation(len(shapes10.SHAPES))[:objects]
    across, along = (0, 1) if rng.random() < 0.5 else (1, 0)  # the axis of the lanes; x is 0
    sides = size[::-1]
    lane = sides[across] / objects
    radius = rng.uniform(0.7, 1, objects) * min(0.42 * lane, scenes10.RADIUS[1] * min(size))
    speed = rng.uniform(0.004, 0.012, objects) * min(size)  # pixels a frame
    begin, drift = rng.uniform(0, 2 * min(size), objects), rng.uniform(-1, 1, objects)
    for k in range(frames):
        middles = np.empty((objects, 2))
        room = sides[along] - 2 * 0.9 * radius
        middles[:, along] = 0.9 * radius + abs((begin + speed * k) % (2 * room) - room)
        slack = (lane - 2 * radius) / 2 * np.sin(drift * (1 + 0.05 * k))
        middles[:, across] = lane * (np.arange(objects) + 0.5) + slack
        yield _draw(np.random.default_rng([seed, 1]), classes, middles, radius, *size)


def _draw(
    rng: np.random.Generator, classes: np.ndarray, middles: np.ndarray, radius: np.ndarray, height: int, width: int
) -> Shown:
    """Draw a frame as the part of a square scene at its upper left."""
    n, side = len(classes), max(height, width)
    hue = shapes10.uniform(rng, 1, 0, 1)
    canvas = shapes10.paint(rng, hue, 0.35, 0.9, side)
    seen = np.zeros((1, side, side), np.uint8)
    whole = np.zeros((1, scenes10.MOST))
    for k, drawn in enumerate(scenes10._draw(rng, classes, hue.repeat(n, axis=0), middles, radius)):
        scenes10._lay(canvas[0], seen[0], drawn, k + 1)
        whole[0, k] = np.count_nonzero(drawn.objects.coverage[drawn.k] > 0.5)
    seen[:, height:], seen[:, :, width:] = 0, 0
    labels = np.full((1, scenes10.MOST), -1)
    labels[0, :n] = classes
    labels, _, boxes = scenes10._measure(labels, seen, whole)
    kept = labels[0] >= 0
    return Shown(shapes10.expose(rng, canvas)[0, :height, :width], labels[0, kept], boxes[0, kept])
