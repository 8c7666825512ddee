"""Write a network as an ONNX graph. Weights get PyTorch's layout, which is ONNX's; nodes get the layers' names."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

import mbnp
from mbnp import layers, models
from mbnp.errors import MbnpError
from mbnp.network import Gate, Layer, Network, Pyramid, Residual, Sequential
from mbnp.ops import window
from mbnp.storage import replacing
from mbnp.weights import files, layouts
from mbnp.weights.onnx.nodes import ELEMENTWISE
from mbnp.weights.onnx.read import METADATA, library
from mbnp.weights.onnx.windows import same_is_tensorflows

OPSET, IR_VERSION = 17, 8  # of 2022: what every runtime of today reads
INPUT, OUTPUT = "images", "logits"
TO_CHANNELS_FIRST, TO_CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


def save(net: Network, path: str | os.PathLike, layout: str = "NCHW", fold: bool = True) -> None:
    """Write `net` as an ONNX graph for any number of images of its resolution, normalised as for `net`.

    layout: the input's axes, "NCHW" or "NHWC"; fold: fold each BatchNorm into the weights before it, which is
    faster and can no longer be trained. Weights are written as float32: runtimes have no convolution in float64.
    An older file is replaced only by a whole one that onnx's checker accepts. MbnpError for a layer that is none of
    mbnp's.
    """
    onnx = library()
    if layout not in ("NCHW", "NHWC"):
        raise MbnpError(f"layout must be 'NCHW' or 'NHWC', got {layout!r}")
    model = _model(onnx, net, layout, fold)
    onnx.checker.check_model(model, full_check=True)
    with replacing(Path(path)) as partial:
        partial.write_bytes(model.SerializeToString())


def _model(onnx: Any, net: Network, layout: str, fold: bool) -> Any:
    size = (net.resolution, net.resolution, net.channels)
    out = net.output_shape(size)
    graph = _Graph(onnx, fold)
    tensor = INPUT
    if layout == "NHWC":
        tensor = graph.node("Transpose", "to_nchw", [INPUT], perm=TO_CHANNELS_FIRST)
    tensor = graph.sequence(net.flat(), tensor)
    if len(out) == 3 and layout == "NHWC":
        tensor = graph.node("Transpose", "to_nhwc", [tensor], perm=TO_CHANNELS_LAST)
    if tensor == INPUT:
        graph.node("Identity", "nothing", [tensor])
    graph.nodes[-1].output[0] = OUTPUT
    ends = []
    for name, shape in ((INPUT, size), (OUTPUT, out)):
        dims = shape if layout == "NHWC" or len(shape) == 2 else (shape[-1], *shape[:-1])
        ends.append([onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *dims])])
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "mbnp", *ends, graph.arrays),
        producer_name="mbnp",
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        producer_version=mbnp.__version__,
        ir_version=IR_VERSION,
    )
    said = {"arch": models.description(net), "classes": net.classes}
    said["preprocessing"] = files.check_description(net, net.resolution, net.classes, net.preprocessing)
    if net.detection is not None:
        said["detection"] = net.detection
    onnx.helper.set_model_props(model, {METADATA + key: json.dumps(value) for key, value in said.items()})
    return model


class _Graph:
    """Nodes and arrays, as they are added. Feature maps are NCHW inside."""

    def __init__(self, onnx: Any, fold: bool) -> None:
        self.onnx, self.fold = onnx, fold
        self.nodes: list[Any] = []
        self.arrays: list[Any] = []

    def node(self, op: str, name: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        output = f"{name}.out"
        self.nodes.append(self.onnx.helper.make_node(op, inputs, [output], name, **attributes))
        return output

    def array(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        value = np.ascontiguousarray(value, dtype).reshape(np.shape(value))
        self.arrays.append(self.onnx.numpy_helper.from_array(value, name))
        return name

    def sequence(self, pairs: list[tuple[str, Layer]], x: str) -> str:
        """Add (name, layer) pairs one after another and return the name of the last one's output."""
        bn = None  # in the weights of the layer before
        for (name, layer), (_, after) in itertools.pairwise([*pairs, ("", Layer())]):
            if layer is not bn:
                folds = self.fold and layouts.axes(type(layer)) and isinstance(after, layers.BatchNorm)
                bn = after if folds else None
                x = self.layer(name, layer, x, bn)
        return x

    def pyramid(self, name: str, pyramid: Pyramid, x: str) -> str:
        """Add stages and heads, and what makes a row for each anchor of them."""
        rows = []
        for (at, stage), (boxes_at, boxes), (scores_at, scores) in pyramid.branches(name):
            x = self.sequence(Sequential({at: stage}).flat(), x)
            anchors = _channels(boxes) // 4
            parts = []
            for head_at, head, columns in ((boxes_at, boxes, 4), (scores_at, scores, _channels(scores) // anchors)):
                y = self.sequence(Sequential({head_at: head}).flat(), x)
                y = self.node("Transpose", f"{head_at}.nhwc", [y], perm=TO_CHANNELS_LAST)
                shape = self.array(f"{head_at}.shape", [0, -1, columns], np.int64)
                parts.append(self.node("Reshape", f"{head_at}.rows", [y, shape]))
            rows.append(self.node("Concat", f"{at}.rows", parts, axis=2))
        return self.node("Concat", f"{name}.rows", rows, axis=1)

    def layer(self, name: str, layer: Any, x: str, bn: Any = None) -> str:
        """Add a layer, with `bn` folded into its weights, and return the name of its output."""
        if layouts.axes(type(layer)):
            return self.weighted(name, layer, x, bn)
        match layer:
            case Residual():
                shortcut = Sequential({"shortcut": layer.shortcut} if layer.shortcut else {})
                branches = layer.flat(name), shortcut.flat(name)
                return self.node("Add", name, [self.sequence(pairs, x) for pairs in branches])
            case layers.BatchNorm():
                arrays = [self.array(f"{name}.{key}", v.value) for key, v in layer.variables().items()]
                attributes = {"epsilon": layer.eps, "momentum": 1 - layer.momentum}
                return self.node("BatchNormalization", name, [x, *arrays], **attributes)
            case layers.ReLU() if layer.max_value is not None:
                bounds = [self.array(f"{name}.min", 0), self.array(f"{name}.max", layer.max_value)]
                return self.node("Clip", name, [x, *bounds])
            case layers.MaxPool() | layers.AveragePool():
                op = "MaxPool" if isinstance(layer, layers.MaxPool) else "AveragePool"
                return self.node(op, name, [x], **_window(layer.size, layer.options))
            case Gate():
                factors, each = self.sequence(layer.flat(name), x), self.array(f"{name}.each", [0, -1, 1, 1], np.int64)
                return self.node("Mul", name, [x, self.node("Reshape", f"{name}.reshape", [factors, each])])
            case Pyramid():
                return self.pyramid(name, layer, x)
            case layers.HardSigmoid():
                return self.node("HardSigmoid", name, [x], alpha=1 / 6, beta=0.5)
            case layers.Dropout():
                return x
            case layers.Squeeze():
                return self.node("GlobalAveragePool", name, [x])
            case layers.GlobalAveragePool():
                return self.node("Flatten", f"{name}.flatten", [self.node("GlobalAveragePool", name, [x])])
            case layers.Flatten():
                if layer.order == "HWC":
                    x = self.node("Transpose", f"{name}.hwc", [x], perm=TO_CHANNELS_LAST)
                return self.node("Flatten", name, [x])
            case layers.Pad():
                before, after = zip(layer.channels, *layer.padding, strict=True)
                pads = self.array(f"{name}.pads", [0, *before, 0, *after], np.int64)
                return self.node("Pad", name, [x, pads])
            case layers.Subsample():
                numbers = {"starts": [0, 0], "ends": [np.iinfo(np.int64).max] * 2, "axes": [2, 3]}
                numbers["steps"] = list(window.pair("stride", layer.stride))
                arrays = [self.array(f"{name}.{key}", value, np.int64) for key, value in numbers.items()]
                x, channels = self.node("Slice", name, [x, *arrays]), (layer.before, layer.after)
                return self.layer(f"{name}.pad", layers.Pad(0, channels), x) if any(channels) else x
        for op, kind in ELEMENTWISE.items():
            if type(layer) is kind:
                return self.node(op, name, [x])
        raise MbnpError(f"{name} is a {type(layer).__name__}, of which mbnp knows no counterpart in ONNX")

    def weighted(self, name: str, layer: Any, x: str, bn: layers.BatchNorm | None) -> str:
        """Add the one layer that computes bn(layer(x)); its weights are folded in float64."""
        arrays = {key: variable.value for key, variable in layer.variables().items()}
        if bn is not None:
            scale = bn.weight.value / np.sqrt(bn.running_var.value.astype(np.float64) + bn.eps)
            shift = bn.bias.value + (arrays.get("bias", 0.0) - bn.running_mean.value) * scale
            arrays = {"weight": arrays["weight"] * scale, "bias": shift}
        arrays["weight"] = w = layouts.convert(arrays["weight"], type(layer), "mbnp", "torch")
        if w.ndim == 2:
            op, attributes = "Gemm", {"transB": 1}
        else:
            op, attributes = "Conv", _window(w.shape[2:], layer.options or {"stride": 1, "padding": 0})
            attributes |= {"group": layer.groups} if layer.groups > 1 else {}
        inputs = [self.array(f"{name}.{key}", value) for key, value in arrays.items()]
        return self.node(op, name, [x, *inputs], **attributes)


def _window(kernel: tuple[int, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a convolution or pooling. ONNX's pads are top, left, bottom, right."""
    strides = window.pair("stride", options["stride"])
    attributes: dict[str, Any] = {"kernel_shape": list(kernel), "strides": list(strides)}
    if "count_padding" in options:
        attributes["count_include_pad"] = int(options["count_padding"])
    if options["padding"] == "same":
        if not same_is_tensorflows(kernel, strides):
            raise MbnpError(f"ONNX pads 'same' differently at stride {options['stride']}, window {kernel}")
        return attributes | {"auto_pad": "SAME_UPPER"}
    (top, bottom), (left, right) = layers.Pad(options["padding"]).padding
    return attributes | {"pads": [top, left, bottom, right]}


def _channels(head: Layer) -> int:
    """Return how many channels a head makes: those of its last layer with weights."""
    *_, last = (layer for _, layer in head.leaves() if "weight" in layer.parameters())
    return last.parameters()["weight"].value.shape[-1]
