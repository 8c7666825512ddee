"""A tensor of the graph as layers of mbnp, while the graph is read."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from mbnp.errors import MbnpError
from mbnp.layers import Flatten
from mbnp.network import Layer
from mbnp.spec import MOST_NUMBERS
from mbnp.weights import layouts
from mbnp.weights.onnx.constants import Array
from mbnp.weights.onnx.read import Node

BATCH = -(1 << 40)  # stands for any number of images in shapes that the graph computes


class Sum(NamedTuple):
    """Two branches from one tensor, added up."""

    body: list["Entry"]
    shortcut: list["Entry"]


Entry = tuple[str, Layer | Sum]  # and the name that it would like to have


@dataclass
class Value:
    """A tensor: the layers that lead from `root` to it, and how the graph sees what they return.

    root: "" for the graph's input, or the name of a tensor that branches
    shape: of one image in mbnp, (H, W, C) or (C,)
    axes: the graph's, "NCHW", "NHWC" or "NC"; what mbnp has as (C,) may still have an H and a W of 1 there
    batch: how many images the graph is made for, or None for any number
    """

    root: str
    shape: tuple[int, ...]
    axes: str
    batch: int | None
    dtype: type
    entries: list[Entry] = field(default_factory=list)
    probabilities: bool = False  # whether a softmax was left out
    open: int = 0  # where it branches: the branches that are not joined yet
    depth: int = 0  # and the branches that it is within, with its own

    @property
    def flat(self) -> bool:
        """Return whether mbnp has it as (N, C)."""
        return len(self.shape) == 1

    @property
    def channels(self) -> int:
        return self.shape[-1]

    @property
    def last(self) -> Layer | Sum | None:
        return self.entries[-1][1] if self.entries else None

    def dims(self) -> list[int]:
        """Return the shape in the graph."""
        h, w, c = (1, 1, *self.shape) if self.flat else self.shape
        sizes = {"N": BATCH if self.batch is None else self.batch, "H": h, "W": w, "C": c}
        return [sizes[axis] for axis in self.axes]

    def branch(self, root: str) -> "Value":
        """Return the same tensor as a place to begin at."""
        return replace(self, root=root, entries=[])

    def add(self, node: Node, layer: Layer, weight: str = "") -> None:
        """Append a layer; `weight` is the name that the graph gives its weights."""
        shape = layer.output_shape(self.shape)
        if not 0 < math.prod(shape) <= MOST_NUMBERS:
            raise MbnpError(f"it makes a feature map of {shape}")
        self.entries.append((wanted_name(node, weight), layer))
        self.shape = shape

    def add_weighted(self, node: Node, kind: type[Layer], w: np.ndarray, b: Array, **options: Any) -> None:
        """Append a layer of class `kind` whose weights, `w` in mbnp's layout, are the node's second input."""
        w, b = numbers("weights", w, self.dtype), None if b is None else numbers("bias", b, self.dtype)
        self.add(node, layouts.layer(kind, w, b, self.dtype, **options), node.inputs[1])

    def add_sum(self, node: Node, a: "Value", b: "Value") -> None:
        """Append a + b, two values that begin here."""
        body, shortcut = (a, b) if a.entries else (b, a)
        self.entries.append((wanted_name(node), Sum(body.entries, shortcut.entries)))
        self.shape, self.axes = a.shape, a.axes

    def expect_nchw(self, feature_map: bool = True) -> None:
        """Raise MbnpError unless the graph has it as NCHW, and mbnp, where it asks for a feature map, as (H, W, C)."""
        if self.axes != "NCHW":
            raise MbnpError(f"its input has the axes {self.axes}, where it needs NCHW")
        if feature_map and self.flat:
            raise MbnpError("it works on a feature map, and its input is one number a channel")

    def flatten(self, node: Node) -> None:
        """Make it (N, C), its entries in the graph's order."""
        if not self.flat:
            self.add(node, Flatten(order=None if self.shape[:2] == (1, 1) else self.axes[1:]))
        self.axes = "NC"


def wanted_name(node: Node, weight: str = "") -> str:
    """Return a name for a node's layer: that of its weights, or the path in its own name.

    PyTorch's exporters write `conv1.0.weight`, and `/conv1/conv1.0/Conv` or `node_relu_3` for nodes.
    """
    if weight.endswith(".weight"):
        return weight.removesuffix(".weight")
    *path, kind = [part for part in node.name.removeprefix("node_").split("/") if part] or [node.op.lower()]
    if not path:
        return kind
    joined: list[str] = []
    for part in path:
        if joined and part.startswith(f"{joined[-1]}."):
            joined[-1] = part
        else:
            joined.append(part)
    if node.op not in ("BatchNormalization", "Conv", "Gemm", "MatMul"):
        joined.append(kind.lower())
    return ".".join(joined)


def one(pair: Any) -> Any:
    """Return one number for a pair of equal ones, as layers take either."""
    first, second = pair
    return first if first == second else (first, second)


def layer_padding(pads: list[int]) -> Any:
    """Return the padding that a layer takes from ONNX's top, left, bottom and right."""
    top, left, bottom, right = pads
    return top if len({*pads}) == 1 else ((top, bottom), (left, right))


def numbers(what: str, value: np.ndarray, dtype: type) -> np.ndarray:
    """Return `value` in the network's type; MbnpError unless all of it is finite."""
    with np.errstate(over="ignore"):
        value = value.astype(dtype)
    if not np.isfinite(value).all():
        raise MbnpError(f"its {what} holds NaN, infinity or what is too large for {np.dtype(dtype)}")
    return value
