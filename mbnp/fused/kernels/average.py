"""The average of each channel over a feature map, which most networks end with."""

import numpy as np

from mbnp.backend import in_parallel, piece, prepared
from mbnp.backend.vectors import BYTES, accumulate, flat, fma, load
from mbnp.fused.kernels.batchnorm import RUN, activation, affine, mask_run, total


@piece(allocates=True)
def average_image(source, at, pixels, out, o):
    """out (C,) from o on = the mean over the pixels of the activated z; runs of them are added in float64."""
    z, C = flat(source.z), source.z.shape[3]
    sums = np.zeros(C)
    for first in range(0, pixels, RUN):
        for c in range(0, C, BYTES // z.itemsize):
            mean, scale, shift = affine(source, c)
            value = mean - mean
            for p in range(first, min(first + RUN, pixels)):
                value = value + activation(fma(load(z, at + p * C + c) - mean, scale, shift), source)
            accumulate(value, sums, c)
    for c in range(C):
        out[o + c] = sums[c] / pixels


@piece(allocates=True)
def _forward(n, source, features):
    _, H, W, C = source.z.shape
    average_image(source, n * H * W * C, H * W, flat(features), n * C)


@prepared
def average_forward(source, features):
    """Source (N, H, W, C) -> features (N, 1, 1, C).

    Reference equation: pool.global_average_forward(relu.forward(batchnorm.forward(source.z))).
    """
    in_parallel(source.z.shape[0], _forward, source, features)


@piece
def _backward(n, dy, source, means, target):
    _, H, W, C = source.z.shape
    z, g, dy = flat(source.z), flat(target.g), flat(dy)
    scratch, sums = means[n], target.parts[n]
    sums[:] = 0
    part = dy.dtype.type(1 / (H * W))
    for c in range(C):
        scratch[c] = part * dy[n * C + c]
    for p in range(0, H * W, RUN):
        k, pixels = (n * H * W + p) * C, min(RUN, H * W - p)
        for c in range(0, C, BYTES // z.itemsize):  # from one pixel to the next da does not move: a step of 0
            mask_run(scratch, c, 0, source, z, k + c, pixels, c, g, target.add, sums)


@prepared
def average_backward(dy, source, means, target):
    """Make target.g (N, H, W, C) and its sums, from dy (N, 1, 1, C). `means` (N, C) is worked in.

    Reference equation: relu.backward(pool.global_average_backward(dy)).
    """
    N = source.z.shape[0]
    in_parallel(N, _backward, dy, source, means, target)
    total(target.parts[:N], target.sums)
