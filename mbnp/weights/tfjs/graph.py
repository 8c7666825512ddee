"""A GraphDef of TensorFlow's, as TensorFlow.js's converter writes it, as nodes of ONNX for that format's reader.

TensorFlow has channels last; what slides over a feature map gets a Transpose before and after, as in an ONNX file with
images of NHWC. The converter joins convolution, bias and activation to one node (_FusedConv2D), whose parts are nodes
of their own here. In the JSON, 64-bit numbers are text, and text is base64. Source: TensorFlow's graph.proto,
attr_value.proto and core/ops/nn_ops.cc.
"""

import base64
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mbnp.errors import MbnpError, short
from mbnp.network import Network
from mbnp.weights.onnx import build
from mbnp.weights.onnx.read import Graph, Node

OPSET = 13
MOST_INPUTS = 64  # of a node
TO_NCHW, TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]
SAME_NAME = {  # operations that ONNX has under another name, and otherwise alike
    "Add": "Add",
    "AddV2": "Add",
    "BiasAdd": "Add",
    "Identity": "Identity",
    "Maximum": "Max",
    "Minimum": "Min",
    "Mul": "Mul",
    "RealDiv": "Div",
    "Relu": "Relu",
    "Sigmoid": "Sigmoid",
    "Softmax": "Softmax",
    "StopGradient": "Identity",
    "Sub": "Sub",
}
POOLS = {"AvgPool": "AveragePool", "MaxPool": "MaxPool"}
MEANS = {"Max": "ReduceMax", "Mean": "ReduceMean", "Sum": "ReduceSum"}
PADS = ("Pad", "PadV2")
BATCHNORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative", "_FusedConv2D", "FusedDepthwiseConv2dNative")
PRODUCTS = ("MatMul", "_FusedMatMul")
OTHERS = ("Relu6", "Reshape", "Squeeze", *POOLS, *MEANS, *PADS, *BATCHNORMS, *CONVOLUTIONS, *PRODUCTS)
ACTIVATIONS = ("Relu", "Relu6")  # within a fused node
SOURCES = ("Const", "Placeholder")
CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def network(topology: dict[str, Any], arrays: dict[str, np.ndarray], say: Callable[[str], object]) -> Network:
    """Return the network of a GraphDef in JSON; MbnpError names the operations that mbnp does not have."""
    nodes = topology["node"]
    if not isinstance(nodes, list) or not nodes or not all(map(_is_node, nodes)):
        raise MbnpError("its modelTopology lists no nodes")
    _check_operations(nodes)
    images = [node for node in nodes if node["op"] == "Placeholder"]
    ends = _ends(nodes)
    for what, found in (("input", images), ("output", ends)):
        if len(found) != 1:
            listed = ", ".join(short(node["name"]) for node in found[:3])
            raise MbnpError(f"its graph has {len(found)} {what}s where mbnp takes one: {listed or 'none'}")
    constants = {node["name"]: arrays.get(node["name"]) for node in nodes if node["op"] == "Const"}
    if missing := [name for name, array in constants.items() if array is None]:
        raise MbnpError(f"its manifest has no {short(missing[0])}")
    return _Graph(nodes, constants, say).network(images[0], ends[0]["name"])


def _is_node(node: Any) -> bool:
    if not isinstance(node, dict) or not isinstance(node.get("attr", {}), dict):
        return False
    inputs = node.get("input", [])
    texts = isinstance(inputs, list) and all(isinstance(name, str) for name in inputs)
    return texts and len(inputs) <= MOST_INPUTS and all(isinstance(node.get(key), str) for key in ("name", "op"))


def _check_operations(nodes: list[dict[str, Any]]) -> None:
    unknown: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        if node["op"] not in (*SAME_NAME, *OTHERS, *SOURCES):
            unknown[node["op"]].append(node["name"])
    if unknown:
        where = ", ".join(f"{short(op)[1:-1]} ({short(names[0])})" for op, names in list(unknown.items())[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise MbnpError(f"mbnp does not have the operations {where}{more} of its graph")


def _ends(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the nodes whose output no other one takes."""
    used = {_source(name) for node in nodes for name in node.get("input", ())}
    return [node for node in nodes if node["name"] not in used and node["op"] not in SOURCES]


def _source(name: str) -> str:
    """Return the node of an input such as `conv:0`, or of `^conv`, which is only waited for."""
    return name.removeprefix("^").partition(":")[0]


def _path(name: str) -> list[str]:
    """Return the parts of a node's name but those that only say that a function was called."""
    return [part for part in name.split("/") if part not in CALLS]


def _sorted(nodes: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the nodes, each after those it takes; MbnpError for a circle or an input that is not there."""
    by_name = {node["name"]: node for node in nodes}
    if len(by_name) < len(nodes):
        raise MbnpError("two nodes of its graph have the same name")
    done: set[str] = set()
    for node in nodes:
        waiting, open_ = [node], {node["name"]}
        while waiting:
            now = waiting[-1]
            missing = [name for name in map(_source, now.get("input", ())) if name not in done]
            if not missing:
                waiting.pop()
                if now["name"] not in done:
                    done.add(now["name"])
                    yield now
                continue
            if missing[0] not in by_name or missing[0] in open_:
                raise MbnpError(f"its graph has no order in which node {short(now['name'])} can be computed")
            open_.add(missing[0])
            waiting.append(by_name[missing[0]])


class _Graph:
    """A graph of ONNX in the making."""

    def __init__(self, nodes: list[dict[str, Any]], constants: Mapping[str, Any], say: Callable[[str], object]) -> None:
        self.tensorflows, self.say = nodes, say
        self.constants: dict[str, np.ndarray] = dict(constants)
        self.nodes: list[Node] = []
        weighted = [_path(node["name"])[:-1] for node in nodes if node["op"] in (*CONVOLUTIONS, *PRODUCTS)]
        alike = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*weighted, strict=False))
        self.shared = len(list(alike))  # parts with which all of their names begin

    def network(self, images: dict[str, Any], output: str) -> Network:
        numbers = sum(array.size for array in self.constants.values())
        for node in _sorted(self.tensorflows):
            if node["op"] not in SOURCES:
                try:
                    self.add(_Reader(node))
                except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                    what = str(error) if isinstance(error, MbnpError) else f"is not as TensorFlow has it: {error!r}"
                    raise MbnpError(f"node {short(node['name'])} ({short(node['op'])[1:-1]}) {what}") from None
        dims = _Reader(images).dims()
        # The reader of ONNX takes images for NCHW unless the first node says otherwise.
        self.nodes.insert(
            0, Node("Transpose", "images", ("images of NHWC",), ("images of NCHW",), {"perm": TO_NCHW}, OPSET)
        )
        self.nodes.insert(1, _transposed("images of NCHW", images["name"], TO_NHWC))
        made = Graph(self.nodes, self.constants, "images of NHWC", dims, np.float32, output, {}, numbers)
        return build.from_graph(made, self.say)

    def put(self, op: str, node: "_Reader", inputs: tuple[str, ...], output: str, **attributes: Any) -> None:
        path = _path(node.name)[self.shared :]
        # Where TensorFlow's name of a node ends in what it computes, what is before names the layer.
        if path[1:] and re.sub(r"_\d+$", "", path[-1]) in (*SAME_NAME, *OTHERS):
            path.pop()
        self.nodes.append(Node(op, "/".join([*path, op]), inputs, (output,), attributes, OPSET))

    def constant(self, node: "_Reader", at: int) -> np.ndarray:
        """Return an input that does not depend on the images."""
        name = node.inputs[at]
        if name not in self.constants:
            raise MbnpError(f"takes {short(name)}, which is no constant of the file")
        return self.constants[name]

    def new_constant(self, node: "_Reader", what: str, value: Any) -> str:
        name = f"{node.name}: {what}"
        self.constants[name] = np.asarray(value)
        return name

    def add(self, node: "_Reader") -> None:
        """Add the nodes of ONNX that compute what one of TensorFlow's does."""
        op, x = node.op, node.inputs[0]
        if op in SAME_NAME:
            self.put(SAME_NAME[op], node, node.inputs, node.name)
        elif op == "Relu6":
            self.relu6(node, x, node.name)
        elif op in CONVOLUTIONS:
            self.conv(node, x)
        elif op in PRODUCTS:
            self.matmul(node, x)
        elif op in BATCHNORMS:
            if node.flag("is_training"):
                raise MbnpError("is exported for training")
            arrays = node.inputs[1:5]
            self.nchw(node, "BatchNormalization", (x, *arrays), node.name, epsilon=node.number("epsilon", 1e-4))
        elif op in POOLS:
            node.check_layout()
            window = {"kernel_shape": node.pair("ksize"), "strides": node.pair("strides")}
            self.nchw(node, POOLS[op], (x,), node.name, **window, **node.padding(allowed=("SAME", "VALID")))
        elif op in MEANS:
            axes = [int(axis) for axis in self.constant(node, 1).reshape(-1)]
            self.put(
                MEANS[op],
                node,
                (x, self.new_constant(node, "axes", axes)),
                node.name,
                axes=axes,
                keepdims=int(node.flag("keep_dims")),
            )
        elif op in PADS:
            pads = self.new_constant(node, "pads", self.constant(node, 1).T.reshape(-1))
            self.put("Pad", node, (x, pads, *node.inputs[2:]), node.name)
        elif op == "Reshape":
            self.put("Reshape", node, node.inputs, node.name, allowzero=1)
        else:
            axes = [int(axis) for axis in node.values("squeeze_dims")]
            along = (self.new_constant(node, "axes", axes),) if axes else ()
            self.put("Squeeze", node, (x, *along), node.name)

    def nchw(self, node: "_Reader", op: str, inputs: tuple[str, ...], output: str, **attributes: Any) -> None:
        """Add a node that has the channels before height and width, between two that move the axes."""
        before, after = f"{output}: before", f"{output}: after"
        self.nodes.append(_transposed(inputs[0], before, TO_NCHW))
        self.put(op, node, (before, *inputs[1:]), after, **attributes)
        self.nodes.append(_transposed(after, output, TO_NHWC))

    def relu6(self, node: "_Reader", x: str, output: str) -> None:
        self.put("Clip", node, (x,), output, min=0.0, max=6.0)

    def conv(self, node: "_Reader", x: str) -> None:
        node.check_layout()
        w, depthwise = self.constant(node, 1), "Depthwise" in node.op
        if w.ndim != 4 or (depthwise and w.shape[3] != 1):
            raise MbnpError(f"has weights {w.shape}; of a depthwise convolution mbnp has a multiplier of 1")
        if any(int(d) != 1 for d in node.values("dilations")):
            raise MbnpError("has dilations, which mbnp does not have")
        kernel = self.new_constant(node, "weights", w.transpose(2, 3, 0, 1) if depthwise else w.transpose(3, 2, 0, 1))
        window = {"strides": node.pair("strides"), "group": w.shape[2] if depthwise else 1}
        window |= {} if w.shape[:2] == (1, 1) and window["strides"] == [1, 1] else node.padding()
        parts = self.fused(node)
        made = f"{node.name}: convolved" if parts else node.name
        self.nchw(node, "Conv", (x, kernel), made, **window)
        self.finish(node, made, parts)

    def matmul(self, node: "_Reader", x: str) -> None:
        if node.flag("transpose_a"):
            raise MbnpError("has transpose_a; mbnp has x W")
        w = self.constant(node, 1)
        weights = self.new_constant(node, "weights", w.T if node.flag("transpose_b") else w)
        parts = self.fused(node)
        made = f"{node.name}: multiplied" if parts else node.name
        self.put("MatMul", node, (x, weights), made)
        self.finish(node, made, parts)

    def fused(self, node: "_Reader") -> list[str]:
        """Return what a fused node does after its product: a bias, an activation."""
        parts = [_text(part) for part in node.values("fused_ops", "s")] if "used" in node.op else []
        if (parts[1:] and parts[1] not in ACTIVATIONS) or parts[:1] not in ([], ["BiasAdd"]) or len(parts) > 2:
            raise MbnpError(
                f"has the fused_ops {short(parts)}; mbnp has BiasAdd, and {' or '.join(ACTIVATIONS)} after it"
            )
        return parts

    def finish(self, node: "_Reader", x: str, parts: list[str]) -> None:
        if not parts:
            return
        biased = node.name if len(parts) == 1 else f"{node.name}: biased"
        self.put("Add", node, (x, node.inputs[2]), biased)
        if parts[1:] == ["Relu6"]:
            self.relu6(node, biased, node.name)
        elif parts[1:]:
            self.put("Relu", node, (biased,), node.name)


def _transposed(x: str, y: str, order: list[int]) -> Node:
    return Node("Transpose", y, (x,), (y,), {"perm": order}, OPSET)


class _Reader:
    """One node of TensorFlow's, and its attributes as plain values."""

    def __init__(self, node: dict[str, Any]) -> None:
        self.name, self.op, self.attributes = node["name"], node["op"], node.get("attr", {})
        self.inputs = tuple(_source(name) for name in node.get("input", ()) if not name.startswith("^"))

    def get(self, name: str, kind: str, default: Any) -> Any:
        value = self.attributes.get(name)
        return default if value is None else value.get(kind, default)

    def flag(self, name: str) -> bool:
        # In FusedBatchNorm, what is not said is true; the converter says it.
        return self.get(name, "b", name == "is_training") is True

    def number(self, name: str, default: float) -> float:
        return float(self.get(name, "f", default))

    def text(self, name: str, default: str) -> str:
        value = self.get(name, "s", None)
        return default if value is None else _text(value)

    def values(self, name: str, kind: str = "i") -> list[Any]:
        return self.get(name, "list", {}).get(kind, [])

    def check_layout(self) -> None:
        if (layout := self.text("data_format", "NHWC")) != "NHWC":
            raise MbnpError(f"has the data_format {short(layout)}; mbnp reads NHWC")

    def pair(self, name: str) -> list[int]:
        """Return the numbers for height and width; those for images and channels must be 1."""
        n, h, w, c = (int(value) for value in self.values(name))
        if (n, c) != (1, 1) or min(h, w) < 1:
            raise MbnpError(f"has {name} {short([n, h, w, c])}")
        return [h, w]

    def padding(self, allowed: tuple[str, ...] = ("SAME", "VALID", "EXPLICIT")) -> dict[str, Any]:
        how = self.text("padding", "")
        if how not in allowed:
            raise MbnpError(f"has the padding {short(how)}")
        if how == "EXPLICIT":
            _, _, top, bottom, left, right, *_ = (int(n) for n in self.values("explicit_paddings"))
            return {"pads": [top, left, bottom, right]}
        return {"auto_pad": {"SAME": "SAME_UPPER", "VALID": "VALID"}[how]}

    def dims(self) -> tuple[int | None, ...]:
        """Return the shape of the images, (N, H, W, C), None where any size goes."""
        dims = self.get("shape", "shape", {}).get("dim", [])
        if len(dims) != 4:
            raise MbnpError(f"its input {short(self.name)} must be images: four axes")
        sizes = [int(dim.get("size", -1)) for dim in dims]
        return tuple(size if size > 0 else None for size in sizes)


def _text(value: Any) -> str:
    return base64.b64decode(value, validate=True).decode()
