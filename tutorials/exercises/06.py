"""Exercises of lesson 6. Replace each `raise NotImplementedError`, then: mbnp grade tutorials/exercises/06.py"""

import numpy as np


def loss_gradient(logits, labels):
    """Return the gradient of the mean cross-entropy with respect to the logits: an array like `logits`.

    logits (N, D) float32; labels (N,), the right class of each image, 0 to D - 1. The last case has logits
    so large that exp of them is infinite. The result has the shape and the dtype of `logits`.
    """
    raise NotImplementedError


def one_cycle(peak, total, warm):
    """Return the learning rates of a whole run: an array (total,) float64, one for each step from 0 to total - 1.

    Up from peak / 25 to peak, which is reached at step warm * total - 1 (that need not be a whole number),
    then down to peak / 25 / 10_000, which is reached at the last step. Both along half a cosine.
    """
    raise NotImplementedError


def mirror_and_crop(images, top, left, mirrored, pad):
    """Return images padded by reflection, cropped to their old size, and some of them mirrored: (N, H, W, C) uint8.

    images (N, H, W, C) uint8; top, left (N,): the window's first row and column in the padded image, 0 to 2 * pad;
    mirrored (N,) bool: whether left and right are exchanged, after the crop; pad: rows and columns on every side.
    """
    raise NotImplementedError
