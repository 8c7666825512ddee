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

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from mbnp.errors import MbnpError
from mbnp.gradcheck.report import Errors, worst
from mbnp.network import Layer

Forward = Callable[..., np.ndarray]
Backward = Callable[..., np.ndarray | Sequence[np.ndarray | None]]
AnyLayer = TypeVar("AnyLayer", bound=Layer)


def compare(
    forward: Forward,
    backward: Backward,
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
    inputs = in_float64(inputs)
    names = [f"input {number}" for number in range(len(inputs))]
    return differences(forward, backward, inputs, names, tol, step, entries, seed)


def layer(
    layer: Layer, x: np.ndarray, *, tol: float = 1e-6, step: float = 1e-5, entries: int = 100, seed: int = 0
) -> Errors:
    """Compare the backward of a layer, or of a container of layers, with central differences of its forward.

    Return the error of "dx" and of the gradient of each parameter, by its name, as `compare` measures it. The layer
    runs as in training, on a copy in float64: its own arrays stay as they are. Frozen parameters have no gradient.
    """
    if not isinstance(layer, Layer):
        raise MbnpError(f"gradcheck.layer takes a layer of mbnp, got {type(layer).__name__}")
    ours = double(layer)
    ours.needs_dx = True
    learned = {name: p for name, p in ours.parameters().items() if not p.frozen}

    def forward(x: np.ndarray, *values: np.ndarray) -> np.ndarray:
        for p, value in zip(learned.values(), values, strict=True):
            p.value = value
        return ours.forward(x, train=True)

    def backward(dy: np.ndarray, *inputs: np.ndarray) -> list[np.ndarray | None]:
        forward(*inputs)
        for p in learned.values():
            p.grad = np.zeros_like(p.grad)
        dx = ours.backward(dy)
        return [dx, *(p.grad.copy() for p in learned.values())]

    inputs = in_float64([x, *(p.value for p in learned.values())])
    found = differences(forward, backward, inputs, ["x", *learned], tol, step, entries, seed)
    errors = zip(["dx", *learned], found, strict=True)
    return Errors({name: error for name, error in errors if error is not None}, tol)


def double(layer: AnyLayer) -> AnyLayer:
    """Return a copy of a layer or network in float64, its gradients zero."""
    ours = copy.deepcopy(layer)
    for variable in ours.variables().values():
        variable.cast(np.float64)
    return ours


def in_float64(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return copies of the inputs, those of floats in float64; MbnpError for what is no list of arrays of numbers."""
    given = [inputs] if isinstance(inputs, np.ndarray) else inputs
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) == 0:
        raise MbnpError(f"inputs must be a list of arrays, got {_kind(given)}")
    copies = [_numbers(a, f"input {number} must be an array of numbers") for number, a in enumerate(given)]
    for number, a in enumerate(copies):
        if a.size == 0:
            raise MbnpError(f"input {number} has the shape {a.shape}, which holds no numbers")
    return [a.astype(np.float64) if a.dtype.kind == "f" else a for a in copies]


def _kind(value: Any) -> str:
    """Say what an unwelcome value is."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    what = type(value).__name__ if value is not None else "None: is a return missing?"
    return f"a {what} of {len(value)}" if isinstance(value, (tuple, list)) else what


def _numbers(value: Any, must: str) -> np.ndarray:
    """Return `value` as a new array; MbnpError, which begins with `must`, for what holds anything but numbers."""
    try:
        array = np.array(value)
    except (TypeError, ValueError, RuntimeError):  # rows of different lengths, a tensor that needs gradients
        raise MbnpError(f"{must}, got {_kind(value)}") from None
    if array.dtype.kind not in "biuf":
        raise MbnpError(f"{must}, got {_kind(array if array.dtype != object else value)}")
    return array


def argument_names(function: Callable, count: int) -> list[str]:
    """Return what `function` calls its first `count` arguments; "input 0", ... where it has no names for them."""
    try:
        parameters = inspect.signature(function).parameters.values()
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    except (TypeError, ValueError):  # some that are written in C
        names = []
    return names[:count] if len(names) >= count else [f"input {number}" for number in range(count)]


def gradient_name(name: str) -> str:
    """Return what the gradient of an argument is called: "dx" for x."""
    return f"d{name}" if name.isidentifier() else name


def output(forward: Forward, inputs: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Return a copy of forward(*inputs); MbnpError where finite differences would mean nothing."""
    y = _pure("forward", forward, inputs, names)
    must = "forward must return an array of numbers"
    if isinstance(y, tuple):
        raise MbnpError(f"{must}, got {_kind(y)}")
    y = _numbers(y, must)
    if y.dtype.kind != "f" or y.itemsize < 8:
        raise MbnpError(f"forward gives {y.dtype}: finite differences need float64, as it is given")
    if not np.isfinite(y).all():
        at = tuple(int(k) for k in np.argwhere(~np.isfinite(y))[0])
        raise MbnpError(f"forward returns {y[at]} at {at}: give it inputs where it has a derivative")
    again = _pure("forward", forward, inputs, names)
    if not np.array_equal(y, again):
        raise MbnpError(
            "forward gives other numbers each time: finite differences need the same, so seed what is random"
        )
    return y


def gradients(
    backward: Backward, dy: np.ndarray, inputs: Sequence[np.ndarray], names: Sequence[str]
) -> list[np.ndarray | None]:
    """Return what backward(dy, *inputs) gives, one for each input; MbnpError for another number or shape."""
    result = _pure("backward", backward, [dy, *inputs], ["dy", *names])
    if result is None:
        raise MbnpError("backward returned None: is its return missing?")
    given: list[Any] = list(result) if isinstance(result, (tuple, list)) else [result]
    if len(given) != len(inputs):
        raise MbnpError(f"backward gave {len(given)} gradients for {len(inputs)} inputs: use None to skip one")
    if all(dx is None for dx in given):
        raise MbnpError("backward gave None for every input: there is nothing to compare")
    found = []
    for name, x, dx in zip(names, inputs, given, strict=True):
        if dx is not None and x.dtype != np.float64:
            raise MbnpError(f"{name} is {x.dtype}, which has no gradient: give floats, or None as its gradient")
        if dx is not None:
            dx = _numbers(dx, f"the gradient of {name} must be an array of numbers")
        if dx is not None and dx.shape != x.shape:
            raise MbnpError(f"the gradient of {name} has the shape {dx.shape}, the input {x.shape}")
        found.append(dx)
    return found


def _pure(what: str, function: Callable, arrays: Sequence[np.ndarray], names: Sequence[str]) -> Any:
    """Return function(*arrays); MbnpError if it has written into one of them."""
    before = [a.copy() for a in arrays]
    result = function(*arrays)
    for name, array, copied in zip(names, arrays, before, strict=True):
        if array.tobytes() != copied.tobytes():
            raise MbnpError(f"{what} writes into {name}: it must leave what it is given as it is")
    return result


def differences(
    forward: Forward, backward: Backward, inputs: list[np.ndarray], names: Sequence[str], tol: float = 1e-6,
    step: float = 1e-5, entries: int = 100, seed: int = 0,
) -> list[float | None]:  # fmt: skip
    """Do the work of `compare` on inputs in float64; an error says `names` of them."""
    rng = np.random.default_rng(seed)
    y = output(forward, inputs, names)
    dy = rng.standard_normal(y.shape)
    found = gradients(backward, dy, inputs, names)
    # L is rounded to a few eps * sum|dy y|, and its difference quotient to that much divided by the step.
    noise = 10 * np.finfo(np.float64).eps * (np.abs(dy * y).sum() + 1) / step
    errors: list[float | None] = []
    for number, dx in enumerate(found):
        if dx is None:
            errors.append(None)
            continue
        places = rng.permutation(dx.size)[:entries]
        numeric = _slopes(forward, inputs, number, places, dy, step)
        analytic = dx.reshape(-1)[places]
        scale = max(np.abs(analytic).max(), np.abs(numeric).max()) + noise / tol
        error = np.abs(analytic - numeric) / scale
        at = int(np.argmax(error))  # the first NaN, if there is one
        if not error[at] <= tol:
            index = tuple(int(k) for k in np.unravel_index(places[at], dx.shape))
            values, say = (analytic[at], numeric[at]), ("backward says", "finite differences say")
            raise worst(f"the gradient of {names[number]}", index, values, say, error[at], tol)
        errors.append(float(error[at]))
    return errors


def _slopes(
    forward: Forward, inputs: list[np.ndarray], number: int, places: np.ndarray, dy: np.ndarray, step: float
) -> np.ndarray:
    """Return the central difference of L = sum(dy * y) at each of `places`, flat indices of one input."""

    def moved(k: int, h: float) -> np.ndarray:
        x = inputs[number].copy()
        x.reshape(-1)[k] += h
        y = np.array(forward(*inputs[:number], x, *inputs[number + 1 :]))  # a copy: forward may use the array again
        if y.shape != dy.shape:
            raise MbnpError(f"forward returned the shape {dy.shape}, and then {y.shape} for inputs of the same shapes")
        return y

    # Differences first, then the sum: entries of y that did not move cancel exactly.
    return np.array([np.sum(dy * (moved(k, step) - moved(k, -step))) for k in places]) / (2 * step)
