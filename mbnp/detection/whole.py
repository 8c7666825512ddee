"""Objects in whole images of any size: brought to the detector's size and shape, and the boxes back to their pixels.

    "stretch"    the image is resized to a square, whatever its shape:          pixels = shares * (width, height)
    "pad"        black at the right or the bottom makes it a square of L first:  pixels = shares * L

The same pixels as in training matter: scores change where an image is resized with other positions of its pixels'
centres (`datasets.images.resize`).
"""

from collections.abc import Sequence

import numpy as np

from mbnp.datasets.images import resize
from mbnp.detection import anchors, detect
from mbnp.detection.detect import Found
from mbnp.network import Network


def find(
    net: Network, images: Sequence[np.ndarray], least: float = 0.5, overlap: float = 0.5, most: int = 100
) -> list[Found]:
    """Return what a detector finds in images, each (H, W, C) uint8: one `Found` an image, with its boxes in pixels.

    The options are those of `detect.read`. Boxes end at the border of their image.
    """
    how = anchors.settings(net)["resize"]
    if not len(images):
        return []
    seen = np.stack([resize(image, net.resolution, how) for image in images])
    found = detect.detect(net, seen, least, overlap, most)
    return [_in_pixels(each, image.shape[:2], how) for each, image in zip(found, images, strict=True)]


def _in_pixels(found: Found, size: tuple[int, ...], how: str) -> Found:
    height, width = size
    side = np.array([max(size)] * 4 if how == "pad" else [width, height] * 2)
    boxes = np.clip(found.boxes * side, 0, [width, height] * 2).astype(found.boxes.dtype)
    # What lies in the black beside an image is no object. NaN shows that the outputs are wrong, and stays.
    inside = ~((boxes[:, 0] >= boxes[:, 2]) | (boxes[:, 1] >= boxes[:, 3]))
    return Found(boxes[inside], found.labels[inside], found.scores[inside])
