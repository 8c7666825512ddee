"""Values of a layer's configuration, which may be anything: each function returns a good one or raises MbnpError."""

from typing import Any

import numpy as np

from mbnp.errors import MbnpError
from mbnp.weights.files import short
from mbnp.weights.keras.graph import KerasLayer

LARGEST_STEP = 1024  # of strides, paddings and windows


def _wrong(layer: KerasLayer, key: str, expected: str) -> MbnpError:
    return MbnpError(f"{layer} has {key} {short(layer.config.get(key))}, where {expected} belongs")


def number(layer: KerasLayer, key: str, default: float) -> Any:
    """Return a finite number, or an array of up to four."""
    flat = layer.config.get(key)
    flat = default if flat is None else flat
    while isinstance(flat, list) and len(flat) == 1:  # Keras writes [[[[m, m, m]]]] as well
        flat = flat[0]
    numbers = flat if isinstance(flat, list) and len(flat) <= 4 else [flat]
    if not all(type(n) in (int, float) and abs(n) < 1e30 for n in numbers):
        raise _wrong(layer, key, "a number")
    return np.array(flat, np.float64) if isinstance(flat, list) else float(flat)


def scalar(layer: KerasLayer, key: str, default: float) -> float:
    """Return a finite number."""
    value = number(layer, key, default)
    if not isinstance(value, float):
        raise _wrong(layer, key, "one number")
    return value


def pair(layer: KerasLayer, key: str, default: int) -> tuple[int, int]:
    """Return two numbers from 1 to LARGEST_STEP."""
    value = layer.config.get(key, default)
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) != 2 or not all(type(n) is int and 1 <= n <= LARGEST_STEP for n in pair):
        raise _wrong(layer, key, f"two of 1 to {LARGEST_STEP}")
    return pair[0], pair[1]


def padding(layer: KerasLayer) -> Any:
    """Return the padding of a window as mbnp's layers take it."""
    value = layer.config.get("padding", "valid")
    if value not in ("same", "valid"):
        raise _wrong(layer, "padding", "'same' or 'valid'")
    return "same" if value == "same" else 0


def margin(layer: KerasLayer) -> Any:
    """Return the ((top, bottom), (left, right)) of a ZeroPadding2D."""
    value = layer.config.get("padding", 1)
    sides = value if isinstance(value, list) else [value, value]
    sides = [side if isinstance(side, list) else [side, side] for side in sides]
    flat = [n for side in sides for n in side]
    if list(map(len, sides)) != [2, 2] or not all(type(n) is int and 0 <= n <= LARGEST_STEP for n in flat):
        raise _wrong(layer, "padding", "((top, bottom), (left, right))")
    return tuple(map(tuple, sides))
