"""Depthwise convolution: every channel is filtered by a small kernel of its own; channels do not mix.

    y[n, i, j, c] = sum_{u, v} x[n, p, q, c] w[u, v, c] + b[c]        p = i*SH + u - top, q = j*SW + v - left

x (N, H, W, C), w (KH, KW, C), b (C,), y (N, OH, OW, C); where (p, q) lies outside, x counts as 0, beside weights that
are not finite, too (0 times infinity is NaN), and likewise beside dy in dw. (PyTorch's depthwise convolution leaves the
padding out in float32, and multiplies it in float64.)
It costs KH*KW multiplications per output value, where a standard convolution costs KH*KW*C.

Every product x w is added to one output, so that its derivative is that output's dy:

    db[c]          = sum_{n, i, j} dy[n, i, j, c]
    dw[u, v, c]    = sum_{n, i, j} dy[n, i, j, c] x[n, p, q, c]
    dx[n, p, q, c] = sum over all (i, j, u, v) that look at (p, q) of dy[n, i, j, c] w[u, v, c]

Source: Howard et al., "MobileNets", arXiv:1704.04861, equation 3.
"""

import numba
import numpy as np

from mbnp import backend
from mbnp.ops import checks
from mbnp.ops.window import Margin, Size, crop, lay_out, pad, resolve, tap

# --- loops: the definition ---


def forward_loops(x, w, b, stride, padding):
    N, H, W, C = x.shape
    KH, KW, _ = w.shape
    (SH, SW), ((top, bottom), (left, right)) = stride, padding
    OH = (top + H + bottom - KH) // SH + 1
    OW = (left + W + right - KW) // SW + 1
    y = np.zeros((N, OH, OW, C), x.dtype)
    for n in range(N):
        for i in range(OH):
            for j in range(OW):
                for c in range(C):
                    for u in range(KH):
                        for v in range(KW):
                            p, q = i * SH + u - top, j * SW + v - left
                            if 0 <= p < H and 0 <= q < W:
                                y[n, i, j, c] += x[n, p, q, c] * w[u, v, c]
                    if b is not None:
                        y[n, i, j, c] += b[c]
    return y


def backward_loops(dy, x, w, stride, padding):
    N, H, W, C = x.shape
    KH, KW, _ = w.shape
    _, OH, OW, _ = dy.shape
    (SH, SW), ((top, _), (left, _)) = stride, padding
    dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros(C, x.dtype)
    for n in range(N):
        for i in range(OH):
            for j in range(OW):
                for c in range(C):
                    for u in range(KH):
                        for v in range(KW):
                            p, q = i * SH + u - top, j * SW + v - left
                            if 0 <= p < H and 0 <= q < W:
                                dx[n, p, q, c] += dy[n, i, j, c] * w[u, v, c]
                                dw[u, v, c] += dy[n, i, j, c] * x[n, p, q, c]
                    db[c] += dy[n, i, j, c]
    return dx, dw, db


# --- NumPy: one array operation per tap ---


def forward_numpy(x, w, b, stride, padding):
    KH, KW, _ = w.shape
    _, _, out = resolve(x, (KH, KW), stride, padding)
    padded = pad(x, padding)
    y = np.zeros((len(x), *out, x.shape[3]), x.dtype)
    for u, v in np.ndindex(KH, KW):
        y += tap(padded, u, v, stride, out) * w[u, v]  # nijc, c -> nijc
    if b is not None:
        y += b
    return y


def backward_numpy(dy, x, w, stride, padding):
    KH, KW, _ = w.shape
    out = dy.shape[1:3]
    padded = pad(x, padding)
    dpadded, dw = np.zeros_like(padded), np.empty_like(w)
    for u, v in np.ndindex(KH, KW):
        dw[u, v] = (tap(padded, u, v, stride, out) * dy).sum(axis=(0, 1, 2), dtype=np.float64)  # nijc -> c
        dtap = tap(dpadded, u, v, stride, out)
        dtap += dy * w[u, v]  # nijc, c -> nijc, back to where the tap looked
    db = dy.sum(axis=(0, 1, 2), dtype=np.float64).astype(x.dtype)
    return crop(dpadded, padding), dw, db


# --- Numba: rows of the output on all threads, channels in the innermost loop ---


@backend.jit
def _inside(v, left, SW, W, OW):
    """Return the columns j of y whose tap v lies inside x: the first one, and one past the last."""
    return max(0, -((v - left) // SW)), min(OW, (W - 1 - v + left) // SW + 1)


def forward_numba(x, w, b, stride, padding):
    N, _, _, C = x.shape
    _, _, (OH, OW) = resolve(x, w.shape[:2], stride, padding)
    y = np.empty((N, OH, OW, C), x.dtype)
    _forward_kernel(x, w, np.zeros(C, x.dtype) if b is None else b, stride, padding, y)
    return y


@backend.jit(parallel=True)
def _forward_kernel(x, w, b, stride, padding, y):
    N, H, W, C = x.shape
    KH, KW, _ = w.shape
    _, OH, OW, _ = y.shape
    (SH, SW), ((top, _), (left, _)) = stride, padding
    for row in numba.prange(N * OH):  # rows, not images: a batch of one keeps all threads busy, too
        n, i = row // OH, row % OH
        for j in range(OW):
            for c in range(C):
                y[n, i, j, c] = b[c]
        for u in range(KH):
            p = i * SH + u - top
            if 0 <= p < H:
                for v in range(KW):
                    # Which columns lie inside is found once, so that the inner loop has no test in it.
                    first, last = _inside(v, left, SW, W, OW)
                    for j in range(first, last):
                        q = j * SW + v - left
                        for c in range(C):
                            y[n, i, j, c] += x[n, p, q, c] * w[u, v, c]


def backward_numba(dy, x, w, stride, padding):
    dx = np.zeros_like(x)
    _dx_kernel(dy, w, stride, padding, dx)
    dw, db = _dw_kernel(dy, x, w, stride, padding)
    dw, db = (partial.sum(axis=0, dtype=np.float64).astype(x.dtype) for partial in (dw, db))
    return dx, dw, db


@backend.jit(parallel=True)
def _dx_kernel(dy, w, stride, padding, dx):
    N, H, W, C = dx.shape
    KH, KW, _ = w.shape
    _, OH, OW, _ = dy.shape
    (SH, SW), ((top, _), (left, _)) = stride, padding
    # The loops scatter dy into dx, where two threads could meet in one row. Here each row p of dx belongs to
    # one thread, which looks for the rows i of dy whose tap u read it: i*SH + u - top = p.
    for row in numba.prange(N * H):
        n, p = row // H, row % H
        for u in range(KH):
            i, rest = (p + top - u) // SH, (p + top - u) % SH
            if rest == 0 and 0 <= i < OH:
                for v in range(KW):
                    first, last = _inside(v, left, SW, W, OW)
                    for j in range(first, last):
                        q = j * SW + v - left
                        for c in range(C):
                            dx[n, p, q, c] += dy[n, i, j, c] * w[u, v, c]


@backend.jit(parallel=True)
def _dw_kernel(dy, x, w, stride, padding):
    N, H, W, C = x.shape
    KH, KW, _ = w.shape
    _, OH, OW, _ = dy.shape
    (SH, SW), ((top, _), (left, _)) = stride, padding
    # Each image has a partial gradient, and the caller adds them up: threads never write to the same place, and
    # the result does not depend on their number.
    dw, db = np.zeros((N, KH, KW, C), x.dtype), np.zeros((N, C), x.dtype)
    for n in numba.prange(N):
        for i in range(OH):
            for j in range(OW):
                for c in range(C):
                    db[n, c] += dy[n, i, j, c]
            for u in range(KH):
                p = i * SH + u - top
                if 0 <= p < H:
                    for v in range(KW):
                        first, last = _inside(v, left, SW, W, OW)
                        for j in range(first, last):
                            q = j * SW + v - left
                            for c in range(C):
                                dw[n, u, v, c] += dy[n, i, j, c] * x[n, p, q, c]
    return dw, db


# --- the public pair ---

_forward = backend.pick(loops=forward_loops, numpy=forward_numpy, numba=forward_numba)
_backward = backend.pick(loops=backward_loops, numpy=backward_numpy, numba=backward_numba)


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, stride: Size = 1, padding: Margin = 0
) -> np.ndarray:
    """Return y (N, OH, OW, C) from x (N, H, W, C), w (KH, KW, C) and b (C,) or None.

    stride: a number or (vertical, horizontal); padding: a number, ((top, bottom), (left, right)), or
    "same" for TensorFlow's. MbnpError for channels that do not match or a kernel larger than the padded
    input.
    """
    x, w, b = checks.operands(x, w, b, "(N, H, W, C)", "(KH, KW, C)")
    stride, padding, _ = resolve(x, w.shape[:2], stride, padding)
    x, padding = lay_out(x, padding, w)
    return _forward(x, w, b, stride, padding)


def backward(
    dy: np.ndarray, x: np.ndarray, w: np.ndarray, stride: Size = 1, padding: Margin = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return dx, dw, db from dy (N, OH, OW, C) and what went into `forward`."""
    x, w, _ = checks.operands(x, w, None, "(N, H, W, C)", "(KH, KW, C)")
    stride, padding, out = resolve(x, w.shape[:2], stride, padding)
    dy = checks.gradient(dy, (len(x), *out, w.shape[2]), x)
    dx, dw, db = _backward(dy, x, w, stride, padding)
    laid_out, no_padding = lay_out(x, padding, db)  # db, a sum of all dy, is finite only if they are
    if laid_out is not x:
        _, dw, _ = _backward(dy, laid_out, w, stride, no_padding)
    return dx, dw, db
