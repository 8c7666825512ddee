"""The axes of every layer's weights, here and in other frameworks: one table, which all formats read.

h, w are the kernel's height and width, o the channels out, i the channels in of which one output is a sum (those of
its group), c the channels where they do not mix, and 1 is an axis of length one. A subclass of a layer has its layout.
Biases and BatchNorm's arrays are (C,) everywhere.
"""

from typing import Any

import numpy as np

from mbnp.errors import MbnpError
from mbnp.layers import Conv, Depthwise, Linear, Pointwise
from mbnp.network import Layer, Network

AXES: dict[type[Layer], dict[str, str]] = {
    Conv: {"mbnp": "hwio", "torch": "oihw", "keras": "hwio"},
    Depthwise: {"mbnp": "hwc", "torch": "c1hw", "keras": "hwc1"},
    Pointwise: {"mbnp": "io", "torch": "oi11", "keras": "11io"},
    Linear: {"mbnp": "io", "torch": "oi", "keras": "io"},
}  # ONNX has PyTorch's

_OPTIONS = {"i": "c_in", "o": "c_out", "c": "channels"}  # the constructor's names for the lengths of axes


def axes(kind: type[Layer]) -> dict[str, str]:
    """Return the axes of the weights of a layer of class `kind`, by framework; {} for a layer that is not in AXES."""
    return next((AXES[parent] for parent in kind.__mro__ if parent in AXES), {})


def owners(net: Network) -> dict[str, Layer]:
    """Return the layer of each array whose axes differ between frameworks, by the array's full name."""
    return {f"{name}.weight": layer for name, layer in net.leaves() if axes(type(layer))}


def convert(w: Any, kind: type[Layer], source: str, target: str, name: str = "weight") -> np.ndarray:
    """Return `w`, the weight of a layer of class `kind`, with the axes of `target` instead of those of `source`.

    Both are "mbnp", "torch" or "keras". A view where NumPy can make one; `w` itself for a layer that is not in AXES.
    MbnpError for a shape that does not fit.
    """
    if not axes(kind):
        return w
    before, after = axes(kind)[source], axes(kind)[target]
    if w.ndim != len(before) or any(n != 1 for n, axis in zip(w.shape, before, strict=True) if axis == "1"):
        expected = f"{kind.__name__}, which has the axes {before}"
        raise MbnpError(f"{name} of shape {w.shape} is no weight of a {expected}")
    letters = before.replace("1", "")
    w = w.reshape([n for n, axis in zip(w.shape, before, strict=True) if axis != "1"])
    w = w.transpose([letters.index(axis) for axis in after if axis != "1"])
    return np.expand_dims(w, tuple(i for i, axis in enumerate(after) if axis == "1"))


def layer(kind: type[Layer], w: np.ndarray, b: np.ndarray | None, dtype: Any, **options: Any) -> Any:
    """Return a layer of class `kind` with the weight `w`, in mbnp's layout, and the bias `b`.

    Its sizes are those of `w`; options: what else its constructor takes, such as stride and padding.
    """
    letters = axes(kind)["mbnp"]
    sizes: dict[str, Any] = {_OPTIONS[a]: n for a, n in zip(letters, w.shape, strict=True) if a in _OPTIONS}
    if letters.startswith("hw"):
        sizes["kernel"] = w.shape[:2]
    made: Any = kind(**sizes | options, bias=b is not None, dtype=dtype)  # type: ignore[call-arg]
    made.weight.value = w
    if b is not None:
        made.bias.value = b
    return made
