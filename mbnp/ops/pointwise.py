"""Pointwise convolution: a 1x1 kernel that mixes the channels of each pixel and looks at no other pixel.

    y[n, i, j, d] = sum_c x[n, i, j, c] w[c, d] + b[d]

x (N, H, W, C), w (C, D), b (D,), y (N, H, W, D). With channels last, x is a matrix of N*H*W rows (one a
pixel) and C columns without moving a single number, so the whole operation is one matrix product. In a
MobileNet it is 95 % of all arithmetic.

    db[d]          = sum_{n, i, j} dy[n, i, j, d]
    dw[c, d]       = sum_{n, i, j} x[n, i, j, c] dy[n, i, j, d]         x^T dy
    dx[n, i, j, c] = sum_d dy[n, i, j, d] w[c, d]                       dy w^T

Source: Howard et al., "MobileNets", arXiv:1704.04861, section 3.1.
"""

import numpy as np

from mbnp import backend
from mbnp.ops import checks, matmul

# --- loops: the definition ---


def forward_loops(x, w, b):
    N, H, W, C = x.shape
    _, D = w.shape
    y = np.zeros((N, H, W, D), x.dtype)
    for n in range(N):
        for i in range(H):
            for j in range(W):
                for d in range(D):
                    for c in range(C):
                        y[n, i, j, d] += x[n, i, j, c] * w[c, d]
                    if b is not None:
                        y[n, i, j, d] += b[d]
    return y


def backward_loops(dy, x, w):
    N, H, W, C = x.shape
    _, D = w.shape
    dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros(D, x.dtype)
    for n in range(N):
        for i in range(H):
            for j in range(W):
                for d in range(D):
                    for c in range(C):
                        dx[n, i, j, c] += dy[n, i, j, d] * w[c, d]
                        dw[c, d] += x[n, i, j, c] * dy[n, i, j, d]
                    db[d] += dy[n, i, j, d]
    return dx, dw, db


# --- NumPy: matrix products, M = N*H*W pixels ---


def forward_numpy(x, w, b):
    y = x @ w  # nijc, cd -> nijd
    return y if b is None else y + b


def backward_numpy(dy, x, w):
    C, D = w.shape
    dx = dy @ w.T  # nijd, cd -> nijc
    dw = x.reshape(-1, C).T @ dy.reshape(-1, D)  # mc, md -> cd
    db = dy.sum(axis=(0, 1, 2), dtype=np.float64).astype(x.dtype)
    return dx, dw, db


# --- Numba: the same matrix products, by the kernel of matmul.py ---
#
# NumPy's matrix product is as fast as this by itself. But its BLAS keeps threads of its own, which wait for the next
# product by spinning on the very cores that the kernels before and after it need: a training step with both pools was
# measured four to ten times slower than with one.


def forward_numba(x, w, b):
    C, D = w.shape
    return matmul.forward_bias(x.reshape(-1, C), w, b).reshape(*x.shape[:-1], D)


def backward_numba(dy, x, w):
    C, D = w.shape
    dx, dw, db = matmul.backward_bias(dy.reshape(-1, D), x.reshape(-1, C), w)
    return dx.reshape(x.shape), dw, db


# --- the public pair ---

_forward = backend.pick(loops=forward_loops, numpy=forward_numpy, numba=forward_numba)
_backward = backend.pick(loops=backward_loops, numpy=backward_numpy, numba=backward_numba)


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """Return y (N, H, W, D) from x (N, H, W, C), w (C, D) and b (D,) or None."""
    x, w, b = checks.operands(x, w, b, "(N, H, W, C)", "(C, D)")
    return _forward(x, w, b)


def backward(dy: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return dx, dw, db from dy (N, H, W, D) and what went into `forward`."""
    x, w, _ = checks.operands(x, w, None, "(N, H, W, C)", "(C, D)")
    dy = checks.gradient(dy, (*x.shape[:3], w.shape[1]), x)
    return _backward(dy, x, w)
