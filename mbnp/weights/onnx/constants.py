"""Arithmetic on constants, from which exporters compute a shape or a padding: nodes that no image passes through."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from mbnp.errors import MbnpError
from mbnp.weights.onnx.read import Node

Array = np.ndarray | None
FLOATS = (1, 10, 11, 16)  # ONNX's numbers for float32, float16, float64 and bfloat16
MOST = 64  # numbers that such a node makes: shapes and paddings have few


def _constant(node: Node) -> np.ndarray:
    ((key, value),) = node.attributes.items() or ((None, None),)
    if key not in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        raise MbnpError(f"it holds a {key}")
    return np.asarray(value)


def _cast(node: Node, a: np.ndarray) -> np.ndarray:
    if node.attributes["to"] in FLOATS:
        return a  # weights get the network's own type when they are used
    return _small(a).astype(np.int64)


def _reshape(node: Node, a: np.ndarray, shape: np.ndarray) -> np.ndarray:
    keeps = not node.attributes.get("allowzero", 0)
    return a.reshape([a.shape[i] if d == 0 and keeps else int(d) for i, d in enumerate(_small(shape))])


def _concat(node: Node, *arrays: np.ndarray) -> np.ndarray:
    return _small(np.concatenate([_small(a) for a in arrays[:MOST]], node.attributes["axis"]))


def _slice(node: Node, a: np.ndarray, *bounds: Array) -> np.ndarray:
    at: list[Any] = [slice(None)] * a.ndim
    for axis, start, stop, step in slices(node, *bounds):
        # Backwards, the first number is number 0, and there is none before it to stop at.
        at[axis] = slice(start, None if step < 0 and stop < -a.shape[axis] else stop, step)
    return a[tuple(at)]


def _constant_of_shape(node: Node, shape: np.ndarray) -> np.ndarray:
    value = node.attributes.get("value", np.zeros(1, np.float32))
    dims = [int(d) for d in _small(shape)]
    if min(dims, default=1) < 0 or math.prod(dims) > MOST:
        raise MbnpError(f"it makes an array of shape {dims}")
    return np.full(dims, value.reshape(-1)[0])


def _arithmetic(operation: Callable[..., np.ndarray], node: Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if math.prod(np.broadcast_shapes(a.shape, b.shape)) > max(a.size, b.size, MOST):
        raise MbnpError(f"it makes more numbers of constants of shape {a.shape} and {b.shape}")
    with np.errstate(divide="raise", invalid="raise"):
        return operation(a, b)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    whole = a.dtype.kind in "iu"
    return np.trunc(a / b).astype(a.dtype) if whole else np.divide(a, b)  # ONNX's division goes towards 0


# Functions of a node and its inputs that return its output; a Transpose, Reshape or Identity makes a view.
OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    **{op: partial(_arithmetic, f) for op, f in {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}.items()},
    "Div": partial(_arithmetic, _divide),
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Gather": lambda node, a, at: np.take(_small(a), _small(at), node.attributes.get("axis", 0)),
    "Identity": lambda node, a: a,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": lambda node, a, axes=None: np.squeeze(a, named_axes(node, axes)),
    "Transpose": lambda node, a: np.transpose(a, node.attributes.get("perm")),
    "Unsqueeze": lambda node, a, axes=None: np.expand_dims(a, named_axes(node, axes) or ()),
}


def slices(
    node: Node, starts: Array = None, ends: Array = None, axes: Array = None, steps: Array = None
) -> list[tuple[int, int, int, int]]:
    """Return (axis, start, stop, step) for each axis of a Slice, whose numbers were attributes before opset 10."""
    first = node.attributes["starts"] if starts is None else _small(starts).tolist()
    last = node.attributes["ends"] if ends is None else _small(ends).tolist()
    along = node.attributes.get("axes", [*range(len(first))]) if axes is None else _small(axes).tolist()
    by = [1] * len(first) if steps is None else _small(steps).tolist()
    return list(zip(along, first, last, by, strict=True))


def named_axes(node: Node, axes: Array) -> tuple[int, ...] | None:
    """Return the axes that a node names: as an input, or as an attribute in opsets before 13; None for all of them."""
    named = node.attributes.get("axes") if axes is None else _small(axes).reshape(-1).tolist()
    return None if named is None else tuple(named)


def _small(a: np.ndarray) -> np.ndarray:
    if a.size > MOST:
        raise MbnpError(f"it computes with {a.size:,} constants where a shape or a padding has few")
    return a
