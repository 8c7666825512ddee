"""Exercises of lesson 9. Replace each `raise NotImplementedError`, then: mbnp grade tutorials/exercises/09.py"""

import numpy as np


def depthwise_intensity(n, h, w, c, k, itemsize):
    """FLOPs for each byte that a depthwise convolution must at least move, a float.

    n images of h x w pixels and c channels; a kernel of k x k, stride 1, padding that keeps the size; a number
    takes `itemsize` bytes. Input, weights and output are moved once each; a multiply-accumulate is two FLOPs, and
    taps that fall on the padding count.
    """
    raise NotImplementedError


def attainable(intensity, gflops, bandwidth):
    """The most GFLOP/s that layers can reach, an array like `intensity`.

    intensity (L,): FLOPs a byte of L layers; gflops: the machine's peak in GFLOP/s; bandwidth in GB/s.
    """
    raise NotImplementedError


def offset_last(n, c, i, j, shape):
    """Where the number at [n, c, i, j] of a channels-first array is kept when it is stored channels last, an int.

    shape (N, C, H, W) of the channels-first array; n image, c channel, i row, j column. The answer counts
    numbers, not bytes, from the beginning of memory.
    """
    raise NotImplementedError
