"""Check with finite differences that a backward function is the derivative of its forward function.

A step h along one input entry moves the output y, and with it L = sum(dy * y) for any fixed dy, by the
gradient:

    dL/dx[k] = (L(x + h e_k) - L(x - h e_k)) / 2h + O(h^2)

dy is random: with dy = 1 errors cancel (batch normalisation's dx would be zero whatever the code says).

>>> import numpy as np
>>> from mbnp import gradcheck
>>> def forward(x, w):
...     return x @ w
>>> def backward(dy, x, w):
...     return dy @ w.T, x.T @ dy
>>> errors = gradcheck.compare(forward, backward, [np.ones((4, 3)), np.ones((3, 2))])
>>> max(errors) < 1e-9
True

Source: Baydin et al., "Automatic differentiation in machine learning: a survey", section 2.1
(arXiv:1502.05767).
"""

from collections.abc import Callable, Sequence

import numpy as np

from mbnp.errors import MbnpError


def compare(
    forward: Callable[..., np.ndarray],
    backward: Callable[..., np.ndarray | Sequence[np.ndarray | None]],
    inputs: Sequence[np.ndarray],
    *,
    tol: float = 1e-6,
    step: float = 1e-5,
    entries: int = 100,
    seed: int = 0,
) -> list[float | None]:
    """Compare `backward` with central differences of `forward`, in float64; return the error of each gradient.

    forward(*inputs) -> y, an array or a number. backward(dy, *inputs) -> one gradient per input, as a tuple,
    or a bare array for a single input; None for an input that has no gradient (labels). Float inputs are cast
    to float64, others are passed as they are. Of an input with more than `entries` entries, that many random
    ones are checked. Keep inputs away from kinks (ReLU at 0): there is no derivative to compare with.

    An error is the largest difference between the two gradients of an input, divided by the largest entry of
    either; it is None where the gradient is None. Raise MbnpError if one exceeds `tol`, with the input, the index
    of the worst entry and both its values, and if a gradient is missing or has the wrong shape.
    """
    copies = map(np.array, [inputs] if isinstance(inputs, np.ndarray) else inputs)
    inputs = [a.astype(np.float64) if np.issubdtype(a.dtype, np.floating) else a for a in copies]
    rng = np.random.default_rng(seed)
    y = np.asarray(forward(*inputs))
    dy = rng.standard_normal(y.shape)
    result = backward(dy, *inputs)
    gradients = result if isinstance(result, (tuple, list)) else (result,)
    if len(gradients) != len(inputs):
        raise MbnpError(f"backward gave {len(gradients)} gradients for {len(inputs)} inputs: use None to skip one")

    def output(number: int, k: int, h: float) -> np.ndarray:
        moved = inputs[number].copy()
        moved.reshape(-1)[k] += h
        return np.asarray(forward(*inputs[:number], moved, *inputs[number + 1 :]))

    # L is rounded to a few eps * sum|dy y|, and its difference quotient to that much divided by the step.
    noise = 10 * np.finfo(np.float64).eps * (np.abs(dy * y).sum() + 1) / step
    errors: list[float | None] = []
    for number, (x, dx) in enumerate(zip(inputs, gradients, strict=True)):
        if dx is None:
            errors.append(None)
            continue
        if np.shape(dx) != x.shape:
            raise MbnpError(f"the gradient of input {number} has the shape {np.shape(dx)}, the input {x.shape}")
        places = rng.permutation(x.size)[:entries]
        # Differences first, then the sum: entries of y that did not move cancel exactly.
        moves = [np.sum(dy * (output(number, k, step) - output(number, k, -step))) for k in places]
        numeric = np.array(moves) / (2 * step)
        analytic = np.asarray(dx).reshape(-1)[places]
        scale = max(np.abs(analytic).max(), np.abs(numeric).max()) + noise / tol
        error = np.abs(analytic - numeric) / scale
        worst = int(np.argmax(error))  # the first NaN, if there is one
        if not error[worst] <= tol:
            at = tuple(int(k) for k in np.unravel_index(places[worst], x.shape))
            raise MbnpError(
                f"the gradient of input {number} is wrong at {at}: backward says {analytic[worst]:.9g}, "
                f"finite differences say {numeric[worst]:.9g} "
                f"(error {error[worst]:.1e} of the largest entry, allowed {tol:.0e})"
            )
        errors.append(float(error[worst]))
    return errors
