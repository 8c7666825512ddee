"""One helper for all operations: do they agree with PyTorch, with one another, and with finite differences?

Add a case by adding a line to a test file:

    oracle.check(relu.forward, relu.backward, torch.relu, (2, 5, 5, 3))
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mbnp import backend, gradcheck

TOLERANCE = {np.float64: 1e-10, np.float32: 1e-5}  # of the largest entry


def check(
    forward: Callable,
    backward: Callable,
    reference: Callable,
    *inputs: tuple | np.ndarray | None,
    finite: bool = True,
    dy: np.ndarray | None = None,
    tolerance: dict = TOLERANCE,
    backends: tuple = backend.BACKENDS,
) -> None:
    """forward(*inputs) -> y and backward(dy, *inputs) -> gradients, against reference(*tensors) -> tensor.

    An input is a shape, filled with random numbers, or an array, or None; dy is random unless given.
    `forward` may return a tuple that begins with y; `backward` returns a gradient per input. Compares y and
    all gradients by every backend, in float64 and in float32; that types are kept and that no argument is
    written to. Then finite differences, unless `finite` is False (NaN, kinks).
    """
    rng = np.random.default_rng(0)

    def draw(shape: tuple) -> np.ndarray:
        # float32, so that both types compute with exactly the same numbers
        return rng.standard_normal(shape).astype(np.float32)

    inputs = tuple(draw(a) if isinstance(a, tuple) else a for a in inputs)
    tensors = [_tensor(a) for a in inputs]
    y_torch = reference(*tensors)
    dy = draw(tuple(y_torch.shape)) if dy is None else dy
    y_torch.backward(_tensor(dy).detach())
    expected = [t.grad if isinstance(t, torch.Tensor) else None for t in tensors]

    for dtype in (np.float64, np.float32):
        for name in backends:
            where = f"{name}, {dtype.__name__}"
            arguments = [_cast(a, dtype) for a in (dy, *inputs)]
            before = [None if a is None else a.copy() for a in arguments]
            with backend.use(name):
                y = _first(forward(*arguments[1:]))
                gradients = _tuple(backward(*arguments))
            close(y, y_torch.detach().numpy(), tolerance[dtype], f"y ({where})", dtype)
            for k, exact in enumerate(expected):
                if exact is not None:
                    close(gradients[k], exact.numpy(), tolerance[dtype], f"gradient {k} ({where})", dtype)
            for k, (after, copy) in enumerate(zip(arguments, before, strict=True)):
                np.testing.assert_array_equal(after, copy, err_msg=f"argument {k} was written to ({where})")
                for result in (y, *gradients):
                    assert after is None or not np.shares_memory(result, after), f"argument {k} leaks ({where})"

    if finite:
        given = [a for a in inputs if a is not None]

        def gradients_of_given(*arguments: np.ndarray) -> tuple:
            return _tuple(backward(*arguments))[: len(given)]

        with backend.use("numpy"):
            gradcheck.compare(lambda *a: _first(forward(*a)), gradients_of_given, given, entries=20)


def close(actual: Any, expected: np.ndarray, tolerance: float, what: str, dtype: type | None = None) -> None:
    """The same shape and type, NaNs and infinities, the rest within `tolerance` of the largest entry."""
    assert np.shape(actual) == expected.shape, f"{what}: shape {np.shape(actual)}, expected {expected.shape}"
    assert dtype is None or actual.dtype == dtype, f"{what}: {actual.dtype}, expected {dtype}"
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(actual), finite, err_msg=what)
    np.testing.assert_array_equal(actual[~finite], expected[~finite], err_msg=what)
    if finite.any():
        difference = np.abs(actual[finite] - expected[finite]).max()
        allowed = tolerance * max(np.abs(expected[finite]).max(), 1e-3)
        assert difference <= allowed, f"{what}: off by {difference:.2e}, allowed {allowed:.2e}"


def _cast(a: np.ndarray | None, dtype: type) -> np.ndarray | None:
    return a.astype(dtype) if a is not None and np.issubdtype(a.dtype, np.floating) else a


def _tensor(a: np.ndarray | None) -> torch.Tensor | None:
    if a is None:
        return None
    tensor = torch.from_numpy(_cast(a, np.float64))
    return tensor.requires_grad_() if tensor.is_floating_point() else tensor


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result


def _tuple(result: Any) -> tuple:
    return result if isinstance(result, tuple) else (result,)


def nchw(x: torch.Tensor) -> torch.Tensor:
    """PyTorch's layout from ours."""
    return x.permute(0, 3, 1, 2)


def nhwc(x: torch.Tensor) -> torch.Tensor:
    """Our layout from PyTorch's."""
    return x.permute(0, 2, 3, 1)


def padded(x: torch.Tensor, padding: Any, value: float = 0.0) -> torch.Tensor:
    """x (N, C, H, W) with one number or ((top, bottom), (left, right)) of padding."""
    (top, bottom), (left, right) = ((padding,) * 2,) * 2 if isinstance(padding, int) else padding
    return torch.nn.functional.pad(x, (left, right, top, bottom), value=value)
