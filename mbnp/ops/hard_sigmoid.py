"""Hard-sigmoid: the sigmoid as three straight lines, for what should lie between 0 and 1.

    y = min(max(x + 3, 0), 6) / 6         any shape

The slope is 1/6 between -3 and 3 and 0 outside. At the two corners themselves there is no derivative; we take 0
there, as PyTorch does, and 0 where x is NaN:

    dx = dy / 6 where -3 < x < 3, else 0

An exponential costs some twenty times as much as these two selections, and 8 bits hold the lines exactly.

Source: Howard et al., "Searching for MobileNetV3", 2019, arXiv:1905.02244, section 5.2: ReLU6(x + 3) / 6.
"""

import numba
import numpy as np

from mbnp import backend
from mbnp.ops import checks

# --- loops: the definition ---


def forward_loops(x):
    y = np.empty_like(x)
    for k in np.ndindex(x.shape):
        if x[k] <= -3:
            y[k] = 0
        elif x[k] >= 3:
            y[k] = 1
        else:
            y[k] = (x[k] + 3) / 6
    return y


def backward_loops(dy, x):
    dx = np.zeros_like(x)
    for k in np.ndindex(x.shape):
        if -3 < x[k] < 3:
            dx[k] = dy[k] / 6
    return dx


# --- NumPy: whole arrays at once ---


def forward_numpy(x):
    return np.clip(x + 3, 0, 6) / 6


def backward_numpy(dy, x):
    return np.where((x > -3) & (x < 3), dy / 6, 0)


# --- Numba: one pass over the memory, on all threads ---


def forward_numba(x):
    y = np.empty_like(x)
    _forward_kernel(x.reshape(-1), y.reshape(-1))
    return y


@backend.jit(parallel=True)
def _forward_kernel(x, y):
    zero, three, six = x.dtype.type(0), x.dtype.type(3), x.dtype.type(6)  # a literal 0.0 is float64
    for k in numba.prange(x.size):
        # Two selections without a branch: this is what the compiler turns into vector instructions.
        above = zero if x[k] <= -three else x[k] + three
        y[k] = (six if above > six else above) / six


def backward_numba(dy, x):
    dx = np.empty_like(x)
    _backward_kernel(dy.reshape(-1), x.reshape(-1), dx.reshape(-1))
    return dx


@backend.jit(parallel=True)
def _backward_kernel(dy, x, dx):
    zero, three, six = x.dtype.type(0), x.dtype.type(3), x.dtype.type(6)
    for k in numba.prange(x.size):
        dx[k] = dy[k] / six if (x[k] > -three) & (x[k] < three) else zero


# --- the public pair ---

_forward = backend.pick(loops=forward_loops, numpy=forward_numpy, numba=forward_numba)
_backward = backend.pick(loops=backward_loops, numpy=backward_numpy, numba=backward_numba)


def forward(x: np.ndarray) -> np.ndarray:
    """Return min(max(x + 3, 0), 6) / 6, of the shape and dtype of x. x: any shape."""
    return _forward(checks.array("x", x))


def backward(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return dx from dy, the gradient of the output, and x, the input of `forward`; both of one shape."""
    x = checks.array("x", x)
    return _backward(checks.gradient(dy, x.shape, x), x)
