"""Values of a layer's configuration, which may be anything: each function returns a good one or raises MbnpError."""

from typing import Any

import numpy as np

from mbnp.errors import MbnpError
from mbnp.weights.keras.graph import Node

LARGEST_RESOLUTION = 10_000
LARGEST_STEP = 1024  # of strides, margins and windows


def size(node: Node, n: Any) -> int | None:
    if n is not None and (type(n) is not int or not 1 <= n <= LARGEST_RESOLUTION):
        raise MbnpError(
            f"the input of {node} has a side of {repr(n)[:40]}, not 1 to {LARGEST_RESOLUTION} pixels"
        )
    return n


def number(node: Node, key: str, default: float) -> Any:
    """A finite number, or a list of them as an array."""
    value = node.config.get(key)
    value = default if value is None else value
    flat = value
    while isinstance(flat, list) and len(flat) == 1:  # Keras writes [[[[m, m, m]]]] as well
        flat = flat[0]
    numbers = flat if isinstance(flat, list) and len(flat) <= 4 else [flat]
    if not all(type(n) in (int, float) and abs(n) < 1e30 for n in numbers):
        raise MbnpError(f"{node} has {key} {repr(value)[:40]}, where a number belongs")
    return np.array(flat, np.float64) if isinstance(flat, list) else float(flat)


def scalar(node: Node, key: str, default: float) -> float:
    """A finite number."""
    value = number(node, key, default)
    if not isinstance(value, float):
        raise MbnpError(f"{node} has {key} {repr(node.config.get(key))[:40]}, where one number belongs")
    return value


def whole(node: Node, key: str, default: int) -> int:
    value = node.config.get(key, default)
    if type(value) is not int or not 1 <= value <= LARGEST_STEP:
        raise MbnpError(f"{node} has {key} {repr(value)[:40]}, where 1 to {LARGEST_STEP} belongs")
    return value


def pair(node: Node, key: str, default: int) -> tuple[int, int]:
    value = node.config.get(key, default)
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) != 2 or not all(type(n) is int and 1 <= n <= LARGEST_STEP for n in pair):
        raise MbnpError(f"{node} has {key} {repr(value)[:40]}, where two of 1 to {LARGEST_STEP} belong")
    return pair[0], pair[1]


def padding(node: Node) -> Any:
    value = node.config.get("padding", "valid")
    if value not in ("same", "valid"):
        raise MbnpError(f"{node} has padding {repr(value)[:40]}; mbnp reads 'same' and 'valid'")
    return "same" if value == "same" else 0


def margin(node: Node) -> Any:
    """The ((top, bottom), (left, right)) of a ZeroPadding2D."""
    value = node.config.get("padding", 1)
    sides = value if isinstance(value, list) else [value, value]
    sides = [side if isinstance(side, list) else [side, side] for side in sides]
    flat = [n for side in sides for n in side]
    if list(map(len, sides)) != [2, 2] or not all(type(n) is int and 0 <= n <= LARGEST_STEP for n in flat):
        raise MbnpError(
            f"{node} has padding {repr(value)[:40]}, where ((top, bottom), (left, right)) belongs"
        )
    return tuple(map(tuple, sides))
