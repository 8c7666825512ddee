"""Anchors: the boxes that a detector begins from, the same for every image.

A head, a convolution over a feature map of H x W cells, says for each cell and for each size (w, h) of its list how a
box of that size around the centre of the cell must move and grow to become an object's:

    anchor[i, j, s] = (x - w/2, y - h/2, x + w/2, y + h/2)    x = (j + 1/2) / W,  y = (i + 1/2) / H,  (w, h) = sizes[s]

in shares of the image's width and height. They run over heads, then rows i, columns j and sizes s, which is the order
in which a head's numbers come out of a convolution whose channels are last. An anchor at the border reaches beyond the
image, and is not cut.

The sizes are the detector's choice. SSD gives the k-th of m feature maps a scale of its own, which grows evenly, and
several aspect ratios a (equation 4 and below):

    s[k] = s_min + (s_max - s_min) (k - 1) / (m - 1)      w = s[k] sqrt(a)      h = s[k] / sqrt(a)

Source: Liu et al., "SSD: Single Shot MultiBox Detector", 2016, arXiv:1512.02325, section 2.2; the idea is the anchors
of Ren et al., "Faster R-CNN", 2015, arXiv:1506.01497, section 3.1.
"""

import functools
import json
from collections.abc import Sequence

import numpy as np

from mbnp import backend
from mbnp.errors import MbnpError
from mbnp.network import Network

Sizes = Sequence[tuple[float, float]] | Sequence[Sequence[float]]  # (width, height) of each anchor of one head

# --- loops: the definition ---


def make_loops(sizes, H, W):
    anchors = np.empty((H, W, len(sizes), 4))
    for i in range(H):
        for j in range(W):
            for s in range(len(sizes)):
                x, y = (j + 0.5) / W, (i + 0.5) / H
                w, h = sizes[s]
                anchors[i, j, s, 0] = x - w / 2
                anchors[i, j, s, 1] = y - h / 2
                anchors[i, j, s, 2] = x + w / 2
                anchors[i, j, s, 3] = y + h / 2
    return anchors


# --- NumPy: all cells at once ---


def make_numpy(sizes, H, W):
    y, x = np.meshgrid((np.arange(H) + 0.5) / H, (np.arange(W) + 0.5) / W, indexing="ij")
    centre = np.stack([x, y, x, y], axis=-1)  # (H, W, 4)
    half = np.concatenate([-sizes / 2, sizes / 2], axis=1)  # (S, 4)
    return centre[:, :, None] + half


# --- the public functions ---

_make = backend.pick(loops=make_loops, numpy=make_numpy)


def make(sizes: Sequence[Sizes], grids: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the anchors of all heads, (A, 4) float64: left, top, right, bottom in shares of the image.

    sizes: for each head the (width, height) of its anchors, in shares; grids: for each head the (H, W) of its feature
    map. MbnpError where the two do not fit, or a size is not a positive number.
    """
    if len(sizes) != len(grids):
        raise MbnpError(f"there are anchors for {len(sizes)} heads and {len(grids)} feature maps: give one list a head")
    return np.concatenate([_make(_valid(s), H, W).reshape(-1, 4) for s, (H, W) in zip(sizes, grids, strict=True)])


def of(net: Network) -> np.ndarray:
    """Return the anchors (A, 4) of a detector, for images of its own resolution, in its dtype."""
    return _known(json.dumps(settings(net)["anchors"]), tuple(net.grids())).astype(net.dtype)


@functools.lru_cache(16)
def _known(sizes: str, grids: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Return `make` of sizes as JSON, once, and not for every frame of a video."""
    return make(json.loads(sizes), grids)


def settings(net: Network) -> dict:
    """Return `net.detection`, how a detector's outputs are read; MbnpError for a network that is no detector."""
    if net.detection is None:
        raise MbnpError("this network finds no boxes, it classifies whole images: load or create a detector")
    return net.detection


def _valid(sizes: Sizes) -> np.ndarray:
    array = np.asarray(sizes, np.float64)
    if array.ndim != 2 or array.shape[1] != 2 or not (np.isfinite(array) & (array > 0)).all():
        raise MbnpError(f"the anchors of a head must be a list of (width, height), positive shares, got {sizes!r}")
    return array
