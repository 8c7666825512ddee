"""Checks of the arrays that public operations are given, and the errors when they do not fit."""

import numpy as np

from mbnp.backend import of_one_type
from mbnp.errors import MbnpError, refuse_mask


def array(
    name: str, value: np.ndarray, layout: str | None = None, like: np.ndarray | None = None, empty: bool = False
) -> np.ndarray:
    """Return `value` as a C-contiguous float array (not copied if it is one already).

    layout: the axes it must have, such as "(N, H, W, C)"; like: the array whose dtype it must share; empty: whether it
    may hold nothing. Kernels only ever see contiguous arrays that can be written, so that no view compiles a kernel of
    its own.
    """
    if not isinstance(value, np.ndarray):
        raise MbnpError(f"{name} must be a NumPy array, got {type(value).__name__}: use np.asarray({name})")
    refuse_mask(name, value)
    if value.dtype not in (np.float32, np.float64):
        native = "float64" if value.dtype.name == "float64" else "float32"  # the bytes of >f8 are the other way round
        raise MbnpError(f"{name} must be float32 or float64, got {value.dtype}: use {name}.astype(np.{native})")
    if like is not None and value.dtype != like.dtype:
        raise MbnpError(f"{name} is {value.dtype} where the input is {like.dtype}: use {name}.astype(np.{like.dtype})")
    if layout is not None and value.ndim != len(layout.split(",")):
        raise MbnpError(f"{name} must have the axes {layout}, got the shape {value.shape}")
    if value.size == 0 and not empty:
        raise MbnpError(f"{name} is empty: its shape is {value.shape}")
    return of_one_type(np.asarray(value, order="C"))


def vector(name: str, value: np.ndarray, length: int, like: np.ndarray) -> np.ndarray:
    """Return `value`, which must be `length` numbers, one a channel, in the dtype of `like`."""
    value = array(name, value, like=like)
    shape(name, value, (length,))
    return value


def gradient(dy: np.ndarray, expected: tuple[int, ...], like: np.ndarray) -> np.ndarray:
    """Return dy as a C-contiguous array; it must have the output's shape, `expected`, and the dtype of `like`."""
    dy = array("dy", dy, like=like)
    shape("dy", dy, expected)
    return dy


def operands(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, x_axes: str, w_axes: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return x, w and b of a layer with weights, C-contiguous; `w_axes`, such as "(C, D)", tells which is C."""
    x = array("x", x, x_axes)
    w = array("w", w, w_axes, x)
    channels(x, w.shape[w_axes.strip("()").split(", ").index("C")], f"w {w.shape}")
    return x, w, None if b is None else vector("b", b, w.shape[-1], x)


def shape(name: str, value: np.ndarray, expected: tuple[int, ...]) -> None:
    """Raise MbnpError unless `value` has the expected shape."""
    if value.shape != expected:
        raise MbnpError(f"{name} must have the shape {expected}, got {value.shape}")


def channels(x: np.ndarray, expected: int, by: str) -> None:
    """Raise MbnpError unless the last axis of x, its channels, has the length that the weights, `by`, expect."""
    if x.shape[-1] == expected:
        return
    if x.ndim == 4 and x.shape[1] == expected:
        raise MbnpError(
            f"x {x.shape} has its {expected} channels second, but mbnp keeps channels last, (N, H, W, C): "
            "use x.transpose(0, 2, 3, 1)"
        )
    raise MbnpError(f"x has {x.shape[-1]} channels (the last axis of {x.shape}), but {by} expects {expected}")
