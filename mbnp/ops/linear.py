"""Linear layer: every output is a weighted sum of all inputs.

    y[n, d] = sum_c x[n, c] w[c, d] + b[d]

x (N, C), w (C, D), b (D,), y (N, D).

    db[d]    = sum_n dy[n, d]
    dw[c, d] = sum_n x[n, c] dy[n, d]           x^T dy
    dx[n, c] = sum_d dy[n, d] w[c, d]           dy w^T

The Numba implementation is the matrix product of matmul.py: pointwise.py says why it is not NumPy's.

Source: Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", 1986,
equations 1, 5, 6 and 7.
"""

import numpy as np

from mbnp import backend
from mbnp.ops import checks, matmul

# --- loops: the definition ---


def forward_loops(x, w, b):
    N, C = x.shape
    _, D = w.shape
    y = np.zeros((N, D), x.dtype)
    for n in range(N):
        for d in range(D):
            for c in range(C):
                y[n, d] += x[n, c] * w[c, d]
            if b is not None:
                y[n, d] += b[d]
    return y


def backward_loops(dy, x, w):
    N, C = x.shape
    _, D = w.shape
    dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros(D, x.dtype)
    for n in range(N):
        for d in range(D):
            for c in range(C):
                dx[n, c] += dy[n, d] * w[c, d]
                dw[c, d] += x[n, c] * dy[n, d]
            db[d] += dy[n, d]
    return dx, dw, db


# --- NumPy: matrix products ---


def forward_numpy(x, w, b):
    y = x @ w  # nc, cd -> nd
    return y if b is None else y + b


def backward_numpy(dy, x, w):
    dx = dy @ w.T  # nd, cd -> nc
    dw = x.T @ dy  # nc, nd -> cd
    return dx, dw, dy.sum(axis=0, dtype=np.float64).astype(x.dtype)


# --- Numba: the same, by the kernel of matmul.py, without waking the threads of NumPy's BLAS ---


def forward_numba(x, w, b):
    return matmul.forward_bias(x, w, b)


def backward_numba(dy, x, w):
    return matmul.backward_bias(dy, x, w)


# --- the public pair ---

_forward = backend.pick(loops=forward_loops, numpy=forward_numpy, numba=forward_numba)
_backward = backend.pick(loops=backward_loops, numpy=backward_numpy, numba=backward_numba)


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """Return y (N, D) from x (N, C), w (C, D) and b (D,) or None."""
    x, w, b = checks.operands(x, w, b, "(N, C)", "(C, D)")
    return _forward(x, w, b)


def backward(dy: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return dx, dw, db from dy (N, D) and what went into `forward`."""
    x, w, _ = checks.operands(x, w, None, "(N, C)", "(C, D)")
    dy = checks.gradient(dy, (len(x), w.shape[1]), x)
    return _backward(dy, x, w)
