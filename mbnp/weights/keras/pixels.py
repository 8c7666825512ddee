"""Layers at the beginning of a model that scale pixels: x = scale * pixel + shift, for each channel."""

import math

import numpy as np

from mbnp.errors import MbnpError
from mbnp.weights.keras.graph import INPUT
from mbnp.weights.keras.layer import KerasLayer

KINDS = ("Rescaling", "Normalization", "TrueDivide", "Divide", "Multiply", "Subtract", "Add")
SMALLEST_STD = 1e-7  # Keras's epsilon


def scaling(layer: KerasLayer, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (scale, shift), each (C,), of one layer."""
    if layer.kind == "Rescaling":
        scale, shift = layer.number("scale", 1.0), layer.number("offset", 0.0)
    elif layer.kind == "Normalization":
        mean, std = _normalization(layer, channels)
        scale, shift = 1 / std, -mean / std
    else:
        n = _constant(layer)
        by_kind = {"Multiply": (n, 0.0), "Subtract": (1.0, -n), "Add": (1.0, n)}
        scale, shift = by_kind.get(layer.kind, (1 / n if n else math.inf, 0.0))
    try:
        return np.broadcast_to(scale, (channels,)), np.broadcast_to(shift, (channels,))
    except ValueError:
        raise MbnpError(f"{layer} does not fit {channels} channels") from None


def _normalization(layer: KerasLayer, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation, from the arrays of a layer adapted to data or else its configuration."""
    if layer.config.get("axis", -1) not in (-1, 3, [-1], [3]) or layer.config.get("invert"):
        raise MbnpError(f"{layer} is inverted or not over the channels")
    if layer.arrays:
        mean, variance = (layer.floats(name, "c", channels) for name in ("mean", "variance"))
    else:
        mean, variance = layer.number("mean", 0.0), layer.number("variance", 1.0)
    if np.any(np.asarray(variance) < 0):
        raise MbnpError(f"{layer} has a negative variance")
    std = np.maximum(np.sqrt(np.asarray(variance, np.float64)), SMALLEST_STD)
    return np.asarray(mean, np.float64), std


def _constant(layer: KerasLayer) -> float:
    """Return the number of an arithmetic operation between the layer's input and a number, in that order."""
    match layer.operands:
        case [operand, constant] if operand is INPUT and constant is not INPUT:
            return float(constant)
    raise MbnpError(f"{layer} is no arithmetic of its input with one number; mbnp reads layers in sequence")
