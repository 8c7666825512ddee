"""Max pooling: the largest of each window of an activated feature map, and its gradient back to the pixel that it was.

Which pixel that was is found again on the way back, which is cheaper than to have stored it. A vector of channels at a
time goes through an image; each channel has its own winner, whose number is counted in the type of z.

Windows of one pixel take every stride-th pixel, which with zeros for new channels is a ResNet's shortcut of option A.
"""

from typing import NamedTuple

import numba
import numpy as np

from mbnp.backend import in_parallel, inlined, piece, prepared
from mbnp.backend.vectors import BYTES, flat, fma, line, load, store, where_inside, where_larger
from mbnp.fused.kernels.batchnorm import RUN, activation, affine, mask_run, total


class Pool(NamedTuple):
    """The rows and columns of a window, its stride, the padding above and to the left, and channels of zeros before."""

    rows: int
    columns: int
    stride: int
    top: int
    left: int
    before: int


@inlined
def inside(pool, i, j, H, W):
    """Return the rows and columns of window i, j that are in the image, as four bounds."""
    p, q = i * pool.stride - pool.top, j * pool.stride - pool.left
    return max(p, 0), min(p + pool.rows, H), max(q, 0), min(q + pool.columns, W)


@inlined
def _find(source, z, k, channels, bounds):
    """Return the largest of a window's pixels and its number, of equal ones the first; z from k on is the image."""
    (mean, scale, shift), (p0, p1, q0, q1), t = channels, bounds, z.dtype.type
    _, _, W, C = source.z.shape
    zero = mean - mean
    largest, winner, number = line(zero, t(0), t(-np.inf)), zero, t(0)
    for p in range(p0, p1):
        for q in range(q0, q1):
            a = activation(fma(load(z, k + (p * W + q) * C) - mean, scale, shift), source)
            winner = where_larger(a, largest, line(zero, t(0), number), winner)
            largest = where_larger(a, largest, a, largest)
            number += t(1)
    return largest, winner


@piece
def _forward(n, source, pool, out):
    (_, H, W, C), (_, OH, OW, D) = source.z.shape, out.shape
    z, y = flat(source.z), flat(out)
    for c in range(0, C, BYTES // y.itemsize):
        channels = affine(source, c)
        for i in range(OH):
            for j in range(OW):
                largest, _ = _find(source, z, n * H * W * C + c, channels, inside(pool, i, j, H, W))
                store(largest, y, ((n * OH + i) * OW + j) * D + pool.before + c)


@prepared
def largest_forward(source, pool, out):
    """Source (N, H, W, C) -> out (N, OH, OW, D), of which the channels from pool.before on are written.

    Reference equation: pool.max_forward(relu.forward(batchnorm.forward(source.z)), size, stride, padding).
    """
    in_parallel(out.shape[0], _forward, source, pool, out)


@piece
def _backward(n, dy, source, pool, scratch, target):
    (_, H, W, C), (_, OH, OW, D) = source.z.shape, dy.shape
    dy, z, g = flat(dy), flat(source.z), flat(target.g)
    V, t, image = BYTES // z.itemsize, z.dtype.type, n * H * W * C
    da, sums = scratch[numba.get_thread_id()], target.parts[n]
    sums[:] = 0
    for c in range(0, C, V):
        channels = affine(source, c)
        for k in range(H * W * V):
            da[k] = 0
        for i in range(OH):
            for j in range(OW):
                bounds = inside(pool, i, j, H, W)
                _, winner = _find(source, z, image + c, channels, bounds)
                d, number = load(dy, ((n * OH + i) * OW + j) * D + pool.before + c), t(0)
                p0, p1, q0, q1 = bounds
                for p in range(p0, p1):
                    for q in range(q0, q1):
                        k = (p * W + q) * V
                        store(load(da, k) + where_inside(winner, number - t(0.5), number + t(0.5), d), da, k)
                        number += t(1)
        for first in range(0, H * W, RUN):
            run = min(RUN, H * W - first)
            mask_run(da, first * V, V, source, z, image + first * C + c, run, c, g, target.add, sums)


@prepared
def largest_backward(dy, source, pool, scratch, target):
    """Make target.g (N, H, W, C) and its sums, from dy (N, OH, OW, D). scratch (threads, H*W*V) is worked in.

    Reference equation: relu.backward(pool.max_backward(dy, a, size, stride, padding)).
    """
    N = source.z.shape[0]
    in_parallel(N, _backward, dy, source, pool, scratch, target)
    total(target.parts[:N], target.sums)
