"""Dropout: in training some entries are zero, others each time, so that no output can rely on any one of them.

    y = x * mask,      mask = 0 with probability `rate`, else 1 / (1 - rate)         any shape

The expectation of y is x: in inference there is nothing to do. The mask is fixed once it is drawn, so

    dx = dy * mask

The mask is a function of a generator and not of the implementation: it is the same in all of them, and in the fast
engine. It is drawn in float32, whatever the dtype of x, so that both types drop the same entries.

Source: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR 15, 2014; scaled in
training instead of inference, as PyTorch and Keras do.
"""

import numpy as np

from mbnp import backend
from mbnp.errors import MbnpError
from mbnp.ops import checks


def draw(shape: tuple[int, ...], rate: float, rng: np.random.Generator, dtype: type = np.float32) -> np.ndarray:
    """Return a mask of `shape`: 0 with probability `rate`, from 0 to below 1, else 1 / (1 - rate)."""
    if not 0 <= rate < 1:
        raise MbnpError(f"rate must be at least 0 and below 1, got {rate}")
    kept = rng.random(shape, np.float32) >= np.float32(rate)
    return kept.astype(dtype) * np.dtype(dtype).type(1 / (1 - rate))


# --- loops: the definition ---


def forward_loops(x, mask):
    y = np.empty_like(x)
    for k in np.ndindex(x.shape):
        y[k] = x[k] * mask[k]
    return y


# --- NumPy: whole arrays at once, as fast as a kernel on the few numbers of a classifier ---


def forward_numpy(x, mask):
    return x * mask


# --- the public pair ---

_forward = backend.pick(loops=forward_loops, numpy=forward_numpy, numba=forward_numpy)


def forward(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return x * mask, of the shape and dtype of x. mask: of that shape and dtype, as `draw` makes it."""
    x = checks.array("x", x)
    mask = checks.array("mask", mask, like=x)
    checks.shape("mask", mask, x.shape)
    return _forward(x, mask)


def backward(dy: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return dx from dy, the gradient of the output: the same product."""
    return forward(dy, mask)
