"""Random boxes, and a detector without a network, for the tests of this folder."""

import types

import numba
import numpy as np
import pytest

from mbnp import backend

fast = pytest.mark.skipif(numba.config.DISABLE_JIT or backend.current() != "numba", reason="only kernels are fast")

SCALES = [10.0, 10.0, 5.0, 5.0]


def boxes(rng, *shape, largest=0.5, dtype=np.float64):
    """Boxes (*shape, 4) around points of the unit square, which may reach beyond it."""
    centre, half = rng.random((*shape, 2)), (0.05 + rng.random((*shape, 2)) * (largest - 0.05)) / 2
    return np.concatenate([centre - half, centre + half], axis=-1).astype(dtype)


def grid_boxes(rng, *shape, cells=8):
    """Boxes with corners on a coarse grid: overlaps of exactly a half, ties and equal boxes are frequent."""
    corners = np.sort(rng.integers(0, cells, (*shape, 2, 2)), axis=-2)
    corners[..., 1, :] += 1
    return corners.reshape(*shape, 4) / cells


def detector(scores="softmax", grids=((2, 3), (1, 1)), dtype=np.float64, classes=2):
    """What `detect.read` needs of a detector: 2 * 6 + 1 = 13 anchors."""
    detection = {
        "anchors": [[[0.3, 0.3], [0.5, 0.2]], [[0.9, 0.9]]], "scales": SCALES, "scores": scores, "resize": "stretch",
    }  # fmt: skip
    return types.SimpleNamespace(
        detection=detection,
        grids=lambda: list(grids),
        dtype=np.dtype(dtype),
        resolution=96,
        preprocessing=None,
        num_classes=classes,
    )
