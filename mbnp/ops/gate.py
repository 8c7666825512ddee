"""Gate: every feature map of an image is multiplied by one number of its own.

    y[n, i, j, c] = x[n, i, j, c] * s[n, c]         x: (N, H, W, C), s: (N, C)

Both factors have a gradient; s meets every pixel of its map, so that its gradient is a sum over them:

    dx[n, i, j, c] = dy[n, i, j, c] * s[n, c]
    ds[n, c]       = sum over i, j of dy[n, i, j, c] * x[n, i, j, c]

In squeeze-and-excite s is what a small network makes of the averages of the same x (`network.Gate`), and x's gradient
is then the sum of dx and what comes back through that network.

Source: Hu et al., "Squeeze-and-Excitation Networks", 2017, arXiv:1709.01507, equation 4.
"""

import numba
import numpy as np

from mbnp import backend
from mbnp.ops import checks

# --- loops: the definition ---


def forward_loops(x, s):
    y = np.empty_like(x)
    for n, i, j, c in np.ndindex(x.shape):
        y[n, i, j, c] = x[n, i, j, c] * s[n, c]
    return y


def backward_loops(dy, x, s):
    dx, ds = np.empty_like(x), np.zeros_like(s)
    for n, i, j, c in np.ndindex(x.shape):
        dx[n, i, j, c] = dy[n, i, j, c] * s[n, c]
        ds[n, c] += dy[n, i, j, c] * x[n, i, j, c]
    return dx, ds


# --- NumPy: whole arrays at once ---


def forward_numpy(x, s):
    return x * s[:, None, None, :]


def backward_numpy(dy, x, s):
    # ds[n, c] = sum over i, j of dy[n, i, j, c] * x[n, i, j, c]
    ds = np.einsum("nijc,nijc->nc", dy, x, dtype=np.float64).astype(x.dtype)
    return dy * s[:, None, None, :], ds


# --- Numba: one pass over the memory; an image belongs to one thread, so that its sums do, too ---


def forward_numba(x, s):
    N, H, W, C = x.shape
    y = np.empty_like(x)
    _forward_kernel(x.reshape(N, H * W, C), s, y.reshape(N, H * W, C))
    return y


@backend.jit(parallel=True)
def _forward_kernel(x, s, y):
    N, P, C = x.shape
    for row in numba.prange(N * P):
        n, p = row // P, row % P
        for c in range(C):
            y[n, p, c] = x[n, p, c] * s[n, c]


def backward_numba(dy, x, s):
    N, H, W, C = x.shape
    dx, ds = np.empty_like(x), np.empty(s.shape)
    _backward_kernel(dy.reshape(N, H * W, C), x.reshape(N, H * W, C), s, dx.reshape(N, H * W, C), ds)
    return dx, ds.astype(x.dtype)


@backend.jit(parallel=True)
def _backward_kernel(dy, x, s, dx, ds):
    N, P, C = x.shape
    for n in numba.prange(N):
        for c in range(C):
            ds[n, c] = 0
        for p in range(P):
            for c in range(C):
                dx[n, p, c] = dy[n, p, c] * s[n, c]
                ds[n, c] += np.float64(dy[n, p, c]) * np.float64(x[n, p, c])


# --- the public pair ---

_forward = backend.pick(loops=forward_loops, numpy=forward_numpy, numba=forward_numba)
_backward = backend.pick(loops=backward_loops, numpy=backward_numpy, numba=backward_numba)


def forward(x: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Return x (N, H, W, C), each feature map times its factor in s (N, C)."""
    return _forward(*_checked(x, s))


def backward(dy: np.ndarray, x: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return dx and ds from dy, the gradient of the output, and the inputs of `forward`."""
    x, s = _checked(x, s)
    return _backward(checks.gradient(dy, x.shape, x), x, s)


def _checked(x: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = checks.array("x", x, "(N, H, W, C)")
    s = checks.array("s", s, "(N, C)", x)
    checks.shape("s", s, (x.shape[0], x.shape[3]))
    return x, s
