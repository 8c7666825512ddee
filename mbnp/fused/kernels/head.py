"""Where a network ends: the average over the map, and the linear layer."""

import numpy as np
from numba import prange

from mbnp.backend import jit, piece
from mbnp.fused.kernels.batchnorm import RUN, mask_run
from mbnp.fused.kernels.vectors import BYTES, clip, load, store


@piece
def _average(z, affine, limits, features):
    """features (C,) = the mean over the pixels of the activated z (pixels * C,)."""
    C, low, high = features.size, limits[0], limits[1]
    for c in range(0, C, BYTES // z.itemsize):
        mean, scale, shift = load(affine[0], c), load(affine[1], c), load(affine[2], c)
        total = mean - mean
        for k in range(c, z.size, C):
            total = total + clip((load(z, k) - mean) * scale + shift, low, high)
        store(total, features, c)
    share = C / z.size  # in float64: rounded to float32, it would put all channels out alike
    for c in range(C):
        features[c] = share * features[c]


@piece
def _linear(x, w, b, out):
    """out (N, D) = x @ w + b."""
    np.dot(x, w, out)
    for n in range(out.shape[0]):
        for d in range(b.size):
            out[n, d] += b[d]


@piece
def _head_forward_group(z, affine, limits, w, b, first, last, features, logits):
    for n in range(first, last):
        _average(z[n].ravel(), affine, limits, features[n])
    _linear(features[first:last], w, b, logits[first:last])


@jit(parallel=True)
def head_forward(z, affine, limits, w, b, group, features, logits):
    """z (N, pixels, C) -> features (N, C) and logits (N, D), `group` pictures at a time.

    Law: a = relu.forward(batchnorm.forward(z)); logits = linear.forward(pool.global_average_forward(a), w, b).
    """
    N = z.shape[0]
    for t in prange(-(-N // group)):
        _head_forward_group(z, affine, limits, w, b, t * group, min(N, (t + 1) * group), features, logits)


@piece
def _head_backward_group(dy, w, z, affine, limits, first, last, da, g, sums):
    P, C = z.shape[1:]
    np.dot(dy[first:last], w.T, da[first:last])
    share, means = 1 / P, da[first:last].ravel()
    for i in range(means.size):
        means[i] = share * means[i]
    sums[:] = 0
    grads, x, out = da.ravel(), z.ravel(), g.ravel()
    for n in range(first, last):
        for p in range(0, P, RUN):
            at, pixels = (n * P + p) * C, min(RUN, P - p)
            for c in range(0, C, BYTES // z.itemsize):  # all pixels have one gradient, so that its step is 0
                mask_run(grads, n * C + c, 0, x, at + c, pixels, affine, limits, c, out, sums)


@jit(parallel=True)
def head_backward(dy, features, w, z, affine, limits, group, da, g, sums, part, dw, db):
    """From dy (N, D) to g (N, pixels, C), sums (groups, 2, C), and dw (C, D) and db (1, D), which are added to.

    Law: df, dW, db = linear.backward(dy, features, w); da = pool.global_average_backward(df); g = relu.backward(da).
    da (N, C) is of any one pixel, and part (C, D) dW. Without rows nothing is added.
    """
    N = z.shape[0]
    for t in prange(sums.shape[0]):
        _head_backward_group(dy, w, z, affine, limits, t * group, min(N, (t + 1) * group), da, g, sums[t])
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
def head_inference(x, w, b, features, logits):
    """x (N, pixels, C) -> logits (N, D). Law: linear.forward(pool.global_average_forward(x), w, b)."""
    N, C = features.shape
    P = x.shape[1]
    scale = x.dtype.type(1 / P)
    for n in range(N):
        row = features[n]
        row[:] = 0
        for p in range(P):
            pixel = x[n, p]
            for c in range(C):
                row[c] += pixel[c]
        for c in range(C):
            row[c] *= scale
    _linear(features, w, b, logits)
