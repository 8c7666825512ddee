"""ReLU: what is negative becomes zero. ReLU6, the same with an upper bound.

    y = min(max(x, 0), max_value)         any shape; max_value = None is no upper bound, max_value = 6 is ReLU6

The slope is 1 between 0 and max_value and 0 outside. At the two corners themselves there is no derivative; we
take 0 there, as PyTorch does:

    dx = dy where 0 < x < max_value, else 0

NaN must come out as NaN: a network that diverges should show it. `x if x > 0 else 0` would turn NaN into 0, since
every comparison with NaN is false, so all implementations ask whether x is outside, not whether it is inside. So dx is
dy where x is NaN, as in PyTorch's relu (its hardtanh has 0 or dy there, depending on the place in the array).

Source: Nair and Hinton, "Rectified Linear Units Improve Restricted Boltzmann Machines", ICML 2010; ReLU6:
Krizhevsky, "Convolutional Deep Belief Networks on CIFAR-10", 2010.
"""

import numba
import numpy as np

from mbnp import backend, renamed
from mbnp.errors import MbnpError
from mbnp.ops import checks

# --- loops: the definition ---


def forward_loops(x, max_value):
    y = np.zeros_like(x)
    for k in np.ndindex(x.shape):
        if max_value is not None and x[k] >= max_value:
            y[k] = max_value
        elif not x[k] <= 0:
            y[k] = x[k]
    return y


def backward_loops(dy, x, max_value):
    dx = np.zeros_like(x)
    for k in np.ndindex(x.shape):
        outside = x[k] <= 0 or (max_value is not None and x[k] >= max_value)
        if not outside:
            dx[k] = dy[k]
    return dx


# --- NumPy: whole arrays at once ---


def forward_numpy(x, max_value):
    y = np.maximum(x, 0)
    return y if max_value is None else np.minimum(y, max_value)


def backward_numpy(dy, x, max_value):
    outside = x <= 0
    if max_value is not None:
        outside |= x >= max_value
    return np.where(outside, 0, dy)


# --- Numba: one pass over the memory, on all threads ---


def forward_numba(x, max_value):
    y = np.empty_like(x)
    _forward_kernel(x.reshape(-1), _upper_bound(x, max_value), y.reshape(-1))
    return y


@backend.jit(parallel=True)
def _forward_kernel(x, max_value, y):
    zero = x.dtype.type(0)  # a literal 0.0 is float64 and would take float32 arithmetic with it
    for k in numba.prange(x.size):
        # Two selections without a branch: this is what the compiler turns into vector instructions.
        below = zero if x[k] <= zero else x[k]
        y[k] = max_value if below > max_value else below


def backward_numba(dy, x, max_value):
    dx = np.empty_like(x)
    _backward_kernel(dy.reshape(-1), x.reshape(-1), _upper_bound(x, max_value), dx.reshape(-1))
    return dx


@backend.jit(parallel=True)
def _backward_kernel(dy, x, max_value, dx):
    zero = x.dtype.type(0)
    for k in numba.prange(x.size):
        dx[k] = zero if (x[k] <= zero) | (x[k] >= max_value) else dy[k]


def _upper_bound(x, max_value):
    # No upper bound is NaN, because no comparison with NaN is true: one kernel serves ReLU and ReLU6.
    return x.dtype.type(np.nan if max_value is None else max_value)


# --- the public pair ---

_forward = backend.pick(loops=forward_loops, numpy=forward_numpy, numba=forward_numba)
_backward = backend.pick(loops=backward_loops, numpy=backward_numpy, numba=backward_numba)


@renamed.keyword("cap", "max_value")
def forward(x: np.ndarray, max_value: float | None = None) -> np.ndarray:
    """Return min(max(x, 0), max_value), of the shape and dtype of x. x: any shape; max_value=6.0 is ReLU6."""
    x = checks.array("x", x)
    return _forward(x, _valid(max_value))


@renamed.keyword("cap", "max_value")
def backward(dy: np.ndarray, x: np.ndarray, max_value: float | None = None) -> np.ndarray:
    """Return dx from dy, the gradient of the output, and x, the input of `forward`; both of one shape."""
    x = checks.array("x", x)
    return _backward(checks.gradient(dy, x.shape, x), x, _valid(max_value))


def _valid(max_value: float | None) -> float | None:
    if max_value is not None and not max_value > 0:
        raise MbnpError(f"max_value must be above 0 (6 for ReLU6, None for no upper bound), got {max_value!r}")
    return None if max_value is None else float(max_value)
