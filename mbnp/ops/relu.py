"""ReLU: what is negative becomes zero. ReLU6, the same with a ceiling.

    y = min(max(x, 0), cap)                     any shape; cap = None is no ceiling, cap = 6 is ReLU6

The slope is 1 between 0 and cap and 0 outside. At the two corners themselves there is no derivative; we
take 0 there, as PyTorch does:

    dx = dy where 0 < x < cap, else 0

NaN must come out as NaN: a network that diverges should show it. `x if x > 0 else 0` would turn NaN into
0, since every comparison with NaN is false, so all spellings ask whether x is outside, not whether it is
inside.

Source: Nair and Hinton, "Rectified Linear Units Improve Restricted Boltzmann Machines", ICML 2010; ReLU6:
Krizhevsky, "Convolutional Deep Belief Networks on CIFAR-10", 2010.
"""

import numba
import numpy as np

from mbnp import backend
from mbnp.errors import MbnpError
from mbnp.ops import checks

# --- loops: the definition ---


def forward_loops(x, cap):
    y = np.zeros_like(x)
    for k in np.ndindex(x.shape):
        if cap is not None and x[k] >= cap:
            y[k] = cap
        elif not x[k] <= 0:
            y[k] = x[k]
    return y


def backward_loops(dy, x, cap):
    dx = np.zeros_like(x)
    for k in np.ndindex(x.shape):
        outside = x[k] <= 0 or (cap is not None and x[k] >= cap)
        if not outside:
            dx[k] = dy[k]
    return dx


# --- NumPy: whole arrays at once ---


def forward_numpy(x, cap):
    y = np.maximum(x, 0)
    return y if cap is None else np.minimum(y, cap)


def backward_numpy(dy, x, cap):
    outside = x <= 0
    if cap is not None:
        outside |= x >= cap
    return np.where(outside, 0, dy)


# --- Numba: one pass over the memory, on all threads ---


def forward_numba(x, cap):
    y = np.empty_like(x)
    _forward_kernel(x.reshape(-1), _ceiling(x, cap), y.reshape(-1))
    return y


@backend.jit(parallel=True)
def _forward_kernel(x, cap, y):
    zero = x.dtype.type(0)  # a literal 0.0 is float64 and would take float32 arithmetic with it
    for k in numba.prange(x.size):
        # Two selections without a branch: this is what the compiler turns into vector instructions.
        below = zero if x[k] <= zero else x[k]
        y[k] = cap if below > cap else below


def backward_numba(dy, x, cap):
    dx = np.empty_like(x)
    _backward_kernel(dy.reshape(-1), x.reshape(-1), _ceiling(x, cap), dx.reshape(-1))
    return dx


@backend.jit(parallel=True)
def _backward_kernel(dy, x, cap, dx):
    zero = x.dtype.type(0)
    for k in numba.prange(x.size):
        dx[k] = zero if (x[k] <= zero) | (x[k] >= cap) else dy[k]


def _ceiling(x, cap):
    # No ceiling is NaN, because no comparison with NaN is true: one kernel serves ReLU and ReLU6.
    return x.dtype.type(np.nan if cap is None else cap)


# --- the public pair ---

_forward = backend.pick(loops=forward_loops, numpy=forward_numpy, numba=forward_numba)
_backward = backend.pick(loops=backward_loops, numpy=backward_numpy, numba=backward_numba)


def forward(x: np.ndarray, cap: float | None = None) -> np.ndarray:
    """min(max(x, 0), cap), of the shape and dtype of x. x: any shape; cap=6.0 is ReLU6."""
    x = checks.array("x", x)
    return _forward(x, _valid(cap))


def backward(dy: np.ndarray, x: np.ndarray, cap: float | None = None) -> np.ndarray:
    """dx from dy, the gradient of the output, and x, the input of `forward`; both of one shape."""
    x = checks.array("x", x)
    return _backward(checks.gradient(dy, x.shape, x), x, _valid(cap))


def _valid(cap: float | None) -> float | None:
    if cap is not None and not cap > 0:
        raise MbnpError(f"cap must be above 0 (6 for ReLU6, None for no ceiling), got {cap!r}")
    return None if cap is None else float(cap)
