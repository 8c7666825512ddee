"""Exercises of lesson 9. Replace each `raise NotImplementedError`, then: mbnp grade tutorials/exercises/09.py"""

import numpy as np


def depthwise_intensity(n, h, w, c, k, itemsize):
    """Return the FLOPs per byte that a depthwise convolution must at least move, a float.

    n images of h x w pixels and c channels; a kernel of k x k, stride 1, padding that keeps the size; a number
    takes `itemsize` bytes. Input, weights and output are moved once each; a multiply-accumulate is two FLOPs, and
    taps that fall on the padding count.
    """
    raise NotImplementedError


def attainable(intensity, gflops, bandwidth):
    """Return the most GFLOP/s that layers can reach, an array like `intensity`.

    intensity (L,): FLOPs per byte of L layers; gflops: the machine's peak in GFLOP/s; bandwidth in GB/s.
    """
    raise NotImplementedError


def offset_last(n, c, i, j, shape):
    """Return the position of the number at [n, c, i, j] of a channels-first array when it is stored channels last.

    shape (N, C, H, W) of the channels-first array; n image, c channel, i row, j column. The result is an int,
    counted in numbers, not bytes, from the beginning of memory.
    """
    raise NotImplementedError
