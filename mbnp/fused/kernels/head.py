"""Where a network ends: the average over the map, and the linear layer."""

import numpy as np
from numba import prange

from mbnp.backend import jit, piece
from mbnp.fused.kernels.batchnorm import RUN, mask_run
from mbnp.fused.kernels.vectors import BYTES, accumulate, clip, load


@piece
def _average(z, affine, limits, features):
    """features (F,) = the mean over the pixels of the activated z (pixels * C,); runs of them are added in float64."""
    C, low, high = affine.shape[1], limits[0], limits[1]
    sums = np.zeros(C)
    for first in range(0, z.size, RUN * C):
        last = min(first + RUN * C, z.size)
        for c in range(0, C, BYTES // z.itemsize):
            mean, scale, shift = load(affine[0], c), load(affine[1], c), load(affine[2], c)
            total = mean - mean
            for k in range(first + c, last, C):
                total = total + clip((load(z, k) - mean) * scale + shift, low, high)
            accumulate(total, sums, c)
    for c in range(features.size):
        features[c] = sums[c] * C / z.size


@piece
def _head(z, affine, limits, w, b, first, last, features, logits):
    """Of pictures first to last of z (N, pixels, C): features (N, F), and logits (N, D) = features @ w + b."""
    for n in range(first, last):
        _average(z[n].ravel(), affine, limits, features[n])
    np.dot(features[first:last], w, logits[first:last])
    for n in range(first, last):
        for d in range(b.size):
            logits[n, d] += b[d]


@jit(parallel=True)
def head_forward(z, affine, limits, w, b, group, features, logits):
    """z (N, pixels, C) -> features (N, F) and logits (N, D), `group` pictures at a time; w is (F, D) and b (D,).

    F are the channels without those that fill a vector up.

    Law: a = relu.forward(batchnorm.forward(z)); logits = linear.forward(pool.global_average_forward(a), w, b).
    """
    N = z.shape[0]
    for t in prange(-(-N // group)):
        _head(z, affine, limits, w, b, t * group, min(N, (t + 1) * group), features, logits)


@piece
def _head_backward(dy, w, z, affine, limits, first, last, df, da, g, sums):
    """Of pictures first to last: from dy (N, D) da (N, C), which all pixels of a picture share, g like z, and sums."""
    P, C = z.shape[1:]
    share = 1 / P
    np.dot(dy[first:last], w.T, df[first:last])
    for n in range(first, last):
        for c in range(df.shape[1]):
            da[n, c] = share * df[n, c]
    sums[:] = 0
    x, da, g = z.ravel(), da.ravel(), g.ravel()
    for n in range(first, last):
        for p in range(0, P, RUN):
            k, pixels = (n * P + p) * C, min(RUN, P - p)
            for c in range(0, C, BYTES // z.itemsize):  # from one pixel to the next da does not move: a step of 0
                mask_run(da, n * C + c, 0, x, k + c, pixels, affine, limits, c, g, sums)


@jit(parallel=True)
def head_backward(dy, features, w, z, affine, limits, group, df, da, g, sums, part, dw, db):
    """From dy (N, D) to g (N, pixels, C), sums (groups, 2, C), and dw (F, D) and db (1, D), which are added to.

    Law: df, dW, db = linear.backward(dy, features, w); da = pool.global_average_backward(df); g = relu.backward(da).
    features and w as in `head_forward`. df (N, F), da (N, C), with zeros from F on, and part (F, D) are scratch.
    Nothing is added to what has no rows.
    """
    N = z.shape[0]
    for t in prange(sums.shape[0]):
        _head_backward(dy, w, z, affine, limits, t * group, min(N, (t + 1) * group), df, da, g, sums[t])
    if dw.shape[0] > 0:
        np.dot(features.T, dy, part)
    for c in range(dw.shape[0]):
        for d in range(dw.shape[1]):
            dw[c, d] += part[c, d]
    for r in range(db.shape[0]):
        for n in range(N):
            for d in range(db.shape[1]):
                db[r, d] += dy[n, d]


@jit
def head_inference(x, affine, limits, w, b, features, logits):
    """`head_forward`, by one thread: for few pictures, already activated, as an `affine` of the identity says."""
    _head(x, affine, limits, w, b, 0, x.shape[0], features, logits)
