"""Hard-swish: x times its hard-sigmoid, the activation of MobileNetV3's deeper half.

    y = x * min(max(x + 3, 0), 6) / 6         any shape

It is 0 up to -3, x from 3 on, and a parabola between, which is below zero left of 0 and has its lowest point, -3/8, at
-3/2. By the product rule

    dx = 0                  where x <= -3
    dx = dy * (x / 3 + 1/2) where -3 < x < 3         (x + 3) / 6 + x / 6
    dx = dy                 where x >= 3

At the corners there is no derivative; these are PyTorch's values. The factor is divided by 6 before it meets x, so that
y is x itself from 3 on, however large.

Source: Howard et al., "Searching for MobileNetV3", 2019, arXiv:1905.02244, section 5.2; swish, x * sigmoid(x), is
Ramachandran et al., "Searching for Activation Functions", 2017, arXiv:1710.05941.
"""

import numba
import numpy as np

from mbnp import backend
from mbnp.ops import checks

# --- loops: the definition ---


def forward_loops(x):
    y = np.empty_like(x)
    for k in np.ndindex(x.shape):
        y[k] = x[k] * (min(max(x[k] + 3, 0), 6) / 6)
    return y


def backward_loops(dy, x):
    dx = np.zeros_like(x)
    for k in np.ndindex(x.shape):
        if x[k] <= -3:
            dx[k] = 0
        elif x[k] >= 3:
            dx[k] = dy[k]
        else:
            dx[k] = dy[k] * (x[k] / 3 + 0.5)
    return dx


# --- NumPy: whole arrays at once ---


def forward_numpy(x):
    return x * (np.clip(x + 3, 0, 6) / 6)


def backward_numpy(dy, x):
    half = x.dtype.type(0.5)
    inside = dy * (x / 3 + half)
    return np.where(x <= -3, 0, np.where(x >= 3, dy, inside))


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
        y[k] = x[k] * ((six if above > six else above) / six)


def backward_numba(dy, x):
    dx = np.empty_like(x)
    _backward_kernel(dy.reshape(-1), x.reshape(-1), dx.reshape(-1))
    return dx


@backend.jit(parallel=True)
def _backward_kernel(dy, x, dx):
    zero, three, half = x.dtype.type(0), x.dtype.type(3), x.dtype.type(0.5)
    for k in numba.prange(x.size):
        inside = dy[k] * (x[k] / three + half)
        right = dy[k] if x[k] >= three else inside
        dx[k] = zero if x[k] <= -three else right


# --- the public pair ---

_forward = backend.pick(loops=forward_loops, numpy=forward_numpy, numba=forward_numba)
_backward = backend.pick(loops=backward_loops, numpy=backward_numpy, numba=backward_numba)


def forward(x: np.ndarray) -> np.ndarray:
    """Return x * min(max(x + 3, 0), 6) / 6, of the shape and dtype of x. x: any shape."""
    return _forward(checks.array("x", x))


def backward(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return dx from dy, the gradient of the output, and x, the input of `forward`; both of one shape."""
    x = checks.array("x", x)
    return _backward(checks.gradient(dy, x.shape, x), x)
