"""Convolutions, pooling and padding: operations that slide over a feature map, or change its size."""

from typing import Any

import numpy as np

from mbnp.errors import MbnpError
from mbnp.layers import AveragePool, Conv, Depthwise, Linear, Pad, Pointwise, Subsample
from mbnp.network import Layer
from mbnp.ops import window
from mbnp.weights import layouts
from mbnp.weights.onnx.constants import Array, slices
from mbnp.weights.onnx.read import Node
from mbnp.weights.onnx.value import Value, layer_padding, one

LARGEST = 4096  # pixels of a window or a margin


def conv(node: Node, x: Value, w: np.ndarray, b: Array = None) -> None:
    x.expect_nchw(feature_map=False)
    group = node.attributes.get("group", 1)
    if w.ndim != 4 or w.shape[1] * group != x.channels:
        raise MbnpError(f"its weights have shape {w.shape}, for {x.channels} channels")
    c_out, kernel = w.shape[0], w.shape[2:]
    kind: type[Layer] = Conv
    options = _window(node, kernel)
    if group == 1 and kernel == (1, 1) and options == {"stride": 1, "padding": 0}:
        kind, options = Pointwise, {}
    elif group == x.channels == c_out and group > 1:
        kind = Depthwise
    elif group != 1:
        raise MbnpError(f"it has {group} groups for {x.channels} channels and {c_out} outputs; mbnp has 1 or all")
    if options:
        x.expect_nchw()
        _take_margin(x, options)
    w = layouts.convert(w, kind, "torch", "mbnp")
    x.add_weighted(node, Linear if x.flat else kind, w, b, **options)


def pool(kind: Any, node: Node, x: Value) -> None:
    x.expect_nchw()
    a = node.attributes
    if a.get("ceil_mode", 0) or len(node.outputs) > 1:
        raise MbnpError("it has ceil_mode or a second output, which mbnp does not have")
    kernel = tuple(a["kernel_shape"])
    options = _window(node, kernel)
    sides = Pad(0 if options["padding"] == "same" else options["padding"]).padding
    if max(sides[0]) >= kernel[0] or max(sides[1]) >= kernel[1]:
        raise MbnpError(f"its padding {options['padding']} is not smaller than its window {kernel}")
    if kind is AveragePool:
        options["count_padding"] = options["padding"] == 0 or bool(a.get("count_include_pad", 0))
    x.add(node, kind(one(kernel), **options))


def _window(node: Node, kernel: tuple[int, ...]) -> dict[str, Any]:
    """Return stride and padding, as layers take them."""
    a = node.attributes
    if len(kernel) != 2 or tuple(a.get("kernel_shape", kernel)) != kernel:
        raise MbnpError(f"its window is {a.get('kernel_shape')} and its weights {kernel}; mbnp has two axes")
    if any(d != 1 for d in a.get("dilations", ())):
        raise MbnpError(f"it has dilations {a['dilations']}, which mbnp does not have")
    stride, pads = one(a.get("strides", [1, 1])), a.get("pads", [0, 0, 0, 0])
    if len(pads) != 4 or min(pads) < 0 or max(*kernel, *pads) > LARGEST:
        raise MbnpError(f"its window {kernel} or its padding {pads} is out of bounds")
    auto = a.get("auto_pad", "NOTSET")
    if auto == "SAME_UPPER":
        if not same_is_tensorflows(kernel, stride):
            raise MbnpError(f"with auto_pad {auto}, its stride {stride} is too large for its window {kernel}")
        return {"stride": stride, "padding": "same"}
    if auto not in ("NOTSET", "VALID"):
        raise MbnpError(f"it has auto_pad {auto}, and mbnp has SAME_UPPER, which is TensorFlow's")
    return {"stride": stride, "padding": 0 if auto == "VALID" else layer_padding(pads)}


def same_is_tensorflows(kernel: tuple[int, ...], stride: Any) -> bool:
    """Return whether SAME_UPPER is TensorFlow's SAME: ONNX crops the input where TensorFlow pads by less than 0."""
    return all(s <= k + 1 for k, s in zip(kernel, window.pair("stride", stride), strict=True))


def _take_margin(x: Value, options: dict[str, Any]) -> None:
    """Let a convolution pad by itself where a Pad does it before."""
    margin = x.last
    if isinstance(margin, Pad) and margin.channels == (0, 0) and options["padding"] != "same":
        (top, bottom), (left, right) = margin.padding
        h, w, c = x.shape
        x.shape = (h - top - bottom, w - left - right, c)
        x.entries.pop()
        sides = np.add(margin.padding, Pad(options["padding"]).padding)
        options["padding"] = layer_padding(sides.T.reshape(-1).tolist())


def pad(node: Node, x: Value, pads: Array = None, value: Array = None, axes: Array = None) -> None:
    a = node.attributes
    amounts = a["pads"] if pads is None else pads.tolist()
    fill = a.get("value", 0.0) if value is None else value.item()
    along = range(len(x.axes)) if axes is None else axes.tolist()
    half = len(along)
    if a.get("mode", "constant") != "constant" or fill != 0:
        raise MbnpError(f"it pads in mode {a.get('mode', 'constant')} with {fill}; mbnp pads with zeros")
    if len(amounts) != 2 * half or min(amounts) < 0 or max(amounts) > LARGEST:
        raise MbnpError(f"its padding {amounts} is out of bounds")
    margin = dict.fromkeys("NCHW", (0, 0))
    margin |= {x.axes[at]: (amounts[i], amounts[i + half]) for i, at in enumerate(along)}
    if not any(map(any, margin.values())):
        return
    if x.flat or any(margin["N"]):
        raise MbnpError(f"it pads the axes {x.axes} by {amounts}; mbnp pads feature maps and their channels")
    before = x.last
    spatial, channels = (margin["H"], margin["W"]), margin["C"]
    if isinstance(before, Subsample) and before.before == before.after == 0 and not any(map(any, spatial)):
        whole = Subsample(0, sum(channels), before.stride)
        if (whole.before, whole.after) == channels:  # the shortcut of a ResNet
            x.entries[-1] = (x.entries[-1][0], whole)
            x.shape = (*x.shape[:2], x.channels + sum(channels))
            return
    x.add(node, Pad(spatial, channels))


def slice_(node: Node, x: Value, *bounds: Array) -> None:
    steps = {"H": 1, "W": 1}
    for at, start, stop, step in slices(node, *bounds):
        axis, size = x.axes[at], x.dims()[at]
        whole = start == 0 and stop >= size and step >= 1
        if x.flat or (axis not in steps and step != 1) or axis == "N" or not whole:
            raise MbnpError(f"it takes {start}:{stop}:{step} of axis {axis}; mbnp every s-th row and column")
        if axis in steps:
            steps[axis] = step
    layer, before = Subsample(x.channels, x.channels, one(steps.values())), x.last
    if isinstance(before, Subsample) and before.before == before.after == 0:
        x.shape = layer.output_shape(x.shape)
        sh, sw = window.pair("stride", before.stride)
        layer.stride = one((sh * steps["H"], sw * steps["W"]))  # every b-th of every a-th is every ab-th
        x.entries[-1] = ("subsample", layer)
    elif layer.stride != 1:
        x.add(node, layer)
