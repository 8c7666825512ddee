"""One layer as Keras describes it. Its values may be anything: methods return good ones or raise MbnpError."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mbnp.errors import MbnpError, short

LARGEST_STEP = 1024  # of strides, paddings and windows

# The arrays of a layer in the order in which Keras numbers them.
WEIGHTS = {
    "Conv2D": ("kernel", "bias"),
    "DepthwiseConv2D": ("kernel", "bias"),
    "SeparableConv2D": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "Dense": ("kernel", "bias"),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "Normalization": ("mean", "variance", "count"),
}
STATISTICS = ("moving_mean", "moving_variance", *WEIGHTS["Normalization"])  # are not trained


@dataclass
class KerasLayer:
    """One layer of the sequence, as Keras describes it."""

    kind: str  # Keras's class
    name: str
    config: dict[str, Any]
    place: tuple[int, ...] = ()  # in the lists of layers of the models it is nested in, from the outside
    trainable: bool = True  # and so are those models
    owners: tuple[str, ...] = ()  # the models it is nested in, from the outside, then its own name
    steps: tuple[tuple[str, int], ...] = ()  # the same, as (class in snake case, which of its class)
    operands: list[Any] = field(default_factory=list)  # what it was called with: INPUT or a number
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    branches: list[list["KerasLayer"]] = field(default_factory=list)  # two, that an Add or a Multiply joins

    def expected_arrays(self) -> tuple[str, ...]:
        """Return the names of the arrays that it has by its configuration, in Keras's order."""
        if self.kind == "Normalization" and self.config.get("mean") is not None:
            return ()
        switches = {"bias": "use_bias", "gamma": "scale", "beta": "center"}
        names = WEIGHTS.get(self.kind, ())
        return tuple(n for n in names if n not in switches or self.config.get(switches[n], True) is not False)

    def __str__(self) -> str:
        return f"layer {short(self.name)} ({self.kind[:40]})"

    def _wrong(self, key: str, expected: str) -> MbnpError:
        return MbnpError(f"{self} has {key} {short(self.config.get(key))}, where {expected} belongs")

    def number(self, key: str, default: float) -> Any:
        """Return a finite number, or an array of up to four."""
        flat = self.config.get(key)
        flat = default if flat is None else flat
        while isinstance(flat, list) and len(flat) == 1:  # Keras writes [[[[m, m, m]]]] as well
            flat = flat[0]
        numbers = flat if isinstance(flat, list) and len(flat) <= 4 else [flat]
        if not all(type(n) in (int, float) and abs(n) < 1e30 for n in numbers):
            raise self._wrong(key, "a number")
        return np.array(flat, np.float64) if isinstance(flat, list) else float(flat)

    def scalar(self, key: str, default: float) -> float:
        """Return a finite number."""
        value = self.number(key, default)
        if not isinstance(value, float):
            raise self._wrong(key, "one number")
        return value

    def pair(self, key: str, default: int) -> tuple[int, int]:
        """Return two numbers from 1 to LARGEST_STEP."""
        pair = _twice(self.config.get(key, default))
        if len(pair) != 2 or not all(type(n) is int and 1 <= n <= LARGEST_STEP for n in pair):
            raise self._wrong(key, f"two of 1 to {LARGEST_STEP}")
        return pair[0], pair[1]

    def padding(self) -> Any:
        """Return the padding of a window as mbnp's layers take it."""
        value = self.config.get("padding", "valid")
        if value not in ("same", "valid"):
            raise self._wrong("padding", "'same' or 'valid'")
        return "same" if value == "same" else 0

    def margin(self) -> Any:
        """Return the ((top, bottom), (left, right)) of a ZeroPadding2D."""
        sides = [_twice(side) for side in _twice(self.config.get("padding", 1))]
        small = all(type(n) is int and 0 <= n <= LARGEST_STEP for side in sides for n in side)
        if [len(side) for side in sides] != [2, 2] or not small:
            raise self._wrong("padding", "((top, bottom), (left, right))")
        return tuple(map(tuple, sides))

    def floats(self, variable: str, axes: str, channels: int) -> np.ndarray:
        """Return an array, which must be of floats, finite and not empty, with these axes.

        axes: letters as in `layouts`; i and c have the length `channels`, h, w and o any.
        """
        array, lengths = self.arrays[variable], {"i": channels, "c": channels, "1": 1}
        expected = [lengths.get(axis, "any") for axis in axes]
        if array.dtype.kind != "f":
            raise MbnpError(f"the {variable} of {self} is {array.dtype}, not floating point")
        fits = [n > 0 and length in (n, "any") for n, length in zip(array.shape, expected, strict=False)]
        if array.ndim != len(axes) or not all(fits):
            shape = ", ".join(map(str, expected))
            raise MbnpError(f"the {variable} of {self} has shape {array.shape}, not ({shape})")
        if not np.isfinite(array).all():
            raise MbnpError(f"the {variable} of {self} holds NaN or infinity")
        return array


def flat(layers: list[KerasLayer]) -> list[KerasLayer]:
    """Return the layers with those in their branches."""
    return [one for layer in layers for one in (*(x for branch in layer.branches for x in flat(branch)), layer)]


def _twice(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value, value]
