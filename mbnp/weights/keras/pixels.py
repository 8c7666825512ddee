"""Layers at the beginning of a model that scale pixels: x = scale * pixel + shift, for each channel."""

import math

import numpy as np

from mbnp.errors import MbnpError
from mbnp.weights.keras import settings
from mbnp.weights.keras.arrays import floats
from mbnp.weights.keras.graph import INPUT, Node

KINDS = ("Rescaling", "Normalization", "TrueDivide", "Divide", "Multiply", "Subtract", "Add")
SMALLEST_STD = 1e-7  # Keras's epsilon


def scaling(node: Node, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """(scale, shift), each (C,), of one layer."""
    if node.kind == "Rescaling":
        scale, shift = settings.number(node, "scale", 1.0), settings.number(node, "offset", 0.0)
    elif node.kind == "Normalization":
        mean, std = _normalization(node, channels)
        scale, shift = 1 / std, -mean / std
    else:
        n = _constant(node)
        scale, shift = {
            "Multiply": (n, 0.0),
            "Subtract": (1.0, -n),
            "Add": (1.0, n),
        }.get(node.kind, (1 / n if n else math.inf, 0.0))
    try:
        return np.broadcast_to(scale, (channels,)), np.broadcast_to(shift, (channels,))
    except ValueError:
        raise MbnpError(f"{node} does not fit {channels} channels") from None


def _normalization(node: Node, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread, from the configuration or, where the layer was adapted to data, from its arrays."""
    if node.config.get("axis", -1) not in (-1, 3, [-1], [3]) or node.config.get("invert"):
        raise MbnpError(f"{node} is inverted or not over the channels")
    if node.arrays:
        mean, variance = (floats(node, name, (channels,)) for name in ("mean", "variance"))
    else:
        mean, variance = settings.number(node, "mean", 0.0), settings.number(node, "variance", 1.0)
    if np.any(np.asarray(variance) < 0):
        raise MbnpError(f"{node} has a negative variance")
    std = np.maximum(np.sqrt(np.asarray(variance, np.float64)), SMALLEST_STD)
    return np.asarray(mean, np.float64), std


def _constant(node: Node) -> float:
    """The number of an arithmetic operation between the layer's input and a number, in that order."""
    match node.operands:
        case [operand, constant] if operand is INPUT and constant is not INPUT:
            return float(constant)
    raise MbnpError(f"{node} is no arithmetic of a map with one number; mbnp reads chains")
