"""A tensor of the graph as layers of mbnp, while the graph is read."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from mbnp.errors import MbnpError
from mbnp.layers import BatchNorm, Flatten, GlobalAveragePool, HardSigmoid, HardSwish, Linear, Pointwise, ReLU, Squeeze
from mbnp.network import Layer
from mbnp.parameter import Parameter
from mbnp.spec import MOST_NUMBERS
from mbnp.weights import layouts
from mbnp.weights.onnx.constants import Array
from mbnp.weights.onnx.read import Node

BATCH = -(1 << 40)  # stands for any number of images in shapes that the graph computes


class Sum(NamedTuple):
    """Two branches from one tensor, added up."""

    body: list["Entry"]
    shortcut: list["Entry"]


class Product(NamedTuple):
    """A tensor times what a branch makes of it: one factor for each channel."""

    body: list["Entry"]


class Affine(NamedTuple):
    """x * scale + shift for each channel, in float64, until `Value.settle` gives it to the layers beside it."""

    scale: np.ndarray
    shift: np.ndarray

    def is_all(self, scale: float, shift: float) -> bool:
        """Return whether it is the same for all channels, but for rounding."""
        near = np.isclose(self.scale, scale, rtol=1e-5, atol=0) & np.isclose(self.shift, shift, rtol=1e-5, atol=1e-5)
        return bool(near.all())


@dataclass
class Pixels:
    """The arithmetic before all layers: pixel * scale + shift, numbers or one for each channel."""

    scale: Any = 1.0
    shift: Any = 0.0


Entry = tuple[str, Layer | Sum | Product | Affine]  # and the name that it would like to have


@dataclass
class Value:
    """A tensor: the layers that lead from `root` to it, and how the graph sees what they return.

    root: "" for the graph's input, or the name of a tensor that branches
    shape: of one image in mbnp, (H, W, C) or (C,)
    axes: the graph's, "NCHW", "NHWC" or "NC", with P for H and W in one; what mbnp has as (C,) may still have an H and
        a W of 1 there
    batch: how many images the graph is made for, or None for any number
    """

    root: str
    shape: tuple[int, ...]
    axes: str
    batch: int | None
    dtype: type
    entries: list[Entry] = field(default_factory=list)
    probabilities: bool = False  # whether a softmax or sigmoid was left out
    most: float | None = None  # what it is clipped to from above, while no ReLU has taken that in
    scale: float = 1.0  # of a sum that is on its way to be a mean
    averaged: frozenset[str] = frozenset()  # H or W, of a mean that is taken in two steps
    pixels: Pixels = field(default_factory=Pixels)  # of the graph's input, which all values share
    open: int = 0  # where it branches: the branches that are not joined yet
    depth: int = 0  # and the branches that it is within, with its own

    @property
    def at_start(self) -> bool:
        """Return whether it is the graph's input, before all layers."""
        return not self.entries and self.root == ""

    @property
    def flat(self) -> bool:
        """Return whether mbnp has it as (N, C)."""
        return len(self.shape) == 1

    @property
    def channels(self) -> int:
        return self.shape[-1]

    @property
    def last(self) -> Layer | Sum | Product | Affine | None:
        return self.entries[-1][1] if self.entries else None

    def dims(self) -> list[int]:
        """Return the shape in the graph."""
        h, w, c = (1, 1, *self.shape) if self.flat else self.shape
        sizes = {"N": BATCH if self.batch is None else self.batch, "H": h, "W": w, "C": c, "P": h * w}
        sizes |= dict.fromkeys(self.averaged, 1)
        return [sizes[axis] for axis in self.axes]

    def branch(self, root: str) -> "Value":
        """Return the same tensor as a place to begin at."""
        return replace(self, root=root, entries=[])

    def check(self, op: str, keeps: bool = False) -> None:
        """Raise MbnpError if an operation comes before what the last ones began is at its end.

        keeps: whether it moves values and changes none.
        """
        if self.most is not None and op not in ("Clip", "Max", "Min", "Relu"):
            raise MbnpError(f"it comes after a clip to None and {self.most}; mbnp has ReLU, from 0 up to a max_value")
        if self.averaged and op not in ("ReduceMean", "ReduceSum"):
            raise MbnpError(f"it comes after a mean over {min(self.averaged)} alone; mbnp has it over H and W")
        if self.scale != 1 and not keeps and op not in ("Div", "Mul", "ReduceSum"):
            raise MbnpError("it comes after a sum over pixels which no division makes a mean")

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

    def affine(self, node: Node, scale: Any, shift: Any) -> None:
        """Compute x * scale + shift, numbers or one for each channel; constants after one another are one."""
        scale, shift = (np.broadcast_to(np.asarray(a, np.float64), self.channels) for a in (scale, shift))
        name, before = str(node), self.last
        if isinstance(before, Affine):
            name = self.entries.pop()[0]
            scale, shift = before.scale * scale, before.shift * scale + shift
        self.entries.append((name, Affine(scale, shift)))
        if self.last.is_all(1, 0):  # type: ignore[union-attr]
            self.entries.pop()

    def factor(self) -> float:
        """Take the scaling by one number off the end, and return it."""
        self._as_hard_sigmoid()
        if not isinstance(self.last, Affine) or not self.last.is_all(self.last.scale.flat[0], 0):
            return 1.0
        return float(self.entries.pop()[1].scale.flat[0])  # type: ignore[union-attr]

    def bounded(self) -> None:
        """Let a ReLU of an affine be what it is of a hard-sigmoid: min(max(x + 3, 0), 6) is 6 of it."""
        match [entry for _, entry in self.entries[-2:]]:
            case [Affine() as inner, ReLU(max_value=float(most))] if inner.is_all(most / 6, most / 2):
                (name, _) = self.entries.pop()
                self.entries[-1] = (name, HardSigmoid())
                scale = np.full(self.channels, most)
                self.entries.append((name, Affine(scale, 0 * scale)))

    def settle(self) -> None:
        """Give constants that were added and multiplied to the layers before them; MbnpError where those have none."""
        self._as_hard_sigmoid()
        match [entry for _, entry in self.entries[-2:]]:
            case [HardSigmoid(), Affine() as outer] if (most := outer.scale.flat[0]) > 0 and outer.is_all(most, 0):
                self._insert(most / 6, most / 2, ReLU(float(most)))
        for at in range(max(len(self.entries) - 2, 0), len(self.entries)):
            name, entry = self.entries[at]
            if isinstance(entry, Affine):
                layer: Any = self.entries[at - 1][1] if at else None
                if not isinstance(layer, BatchNorm) and not layouts.axes(type(layer)):
                    what = _ADDS if (entry.scale == 1).all() else _SCALES
                    raise MbnpError(f"{name} is before it, which {what}")
                _fold(layer, entry, self.dtype)
                del self.entries[at]
                return

    def _as_hard_sigmoid(self) -> None:
        """Let min(max(x, 0), 6) / 6 be the hard-sigmoid of x - 3."""
        match [entry for _, entry in self.entries[-2:]]:
            case [ReLU(max_value=float(most)), Affine() as outer] if outer.is_all(1 / most, 0):
                self._insert(6 / most, -3.0, HardSigmoid())

    def _insert(self, scale: float, shift: float, layer: Layer) -> None:
        """Put an affine and `layer` in the place of the last two entries."""
        (name, _), _ = self.entries[-2:]
        del self.entries[-2:]
        made = Affine(np.full(self.channels, scale), np.full(self.channels, shift))
        if self.entries and isinstance(before := self.last, Affine):
            self.entries.pop()
            made = Affine(before.scale * scale, before.shift * scale + shift)
        self.entries += [] if made.is_all(1, 0) else [(name, made)]
        self.entries.append((name, layer))

    def add_product(self, node: Node, body: list[Entry]) -> None:
        """Append x * s(x), where `body` makes of x, which is this value, factors s: hard-swish, or a gate."""
        if [type(entry) for _, entry in body] == [HardSigmoid]:
            self.entries.append((wanted_name(node), HardSwish()))
        else:
            self.entries.append((wanted_name(node), Product(_as_gate(body))))

    def expect_nchw(self, feature_map: bool = True) -> None:
        """Raise MbnpError unless the graph has it as NCHW, and mbnp, where it asks for a feature map, as (H, W, C)."""
        if self.axes != "NCHW":
            raise MbnpError(f"its input has the axes {self.axes}, where it needs NCHW")
        if feature_map and self.flat:
            raise MbnpError("it works on a feature map, and its input is one number a channel")

    def flatten(self, node: Node) -> None:
        """Make it (N, C), its entries in the graph's order."""
        if not self.flat:
            order = self.axes[1:].replace("P", "HW")
            self.add(node, Flatten(order=None if self.shape[:2] == (1, 1) else order))
        self.axes = "NC"


_ADDS = "adds a constant after a layer without a bias"
_SCALES = "scales by a constant, which mbnp has for pixels only, before all layers, and after weights"


def _fold(layer: Any, affine: Affine, dtype: type) -> None:
    """Let `layer`, which has weights, compute the affine of its output, too."""
    if not (affine.scale == 1).all():
        layer.weight.value = numbers("weights", layer.weight.value * affine.scale, dtype)
    if layer.bias is None:
        layer.bias = Parameter(numbers("constant", affine.shift, dtype))
    else:
        layer.bias.value = numbers("constant", layer.bias.value * affine.scale + affine.shift, dtype)


def _as_gate(body: list[Entry]) -> list[Entry]:
    """Return the layers of a gate with 1x1 convolutions of one pixel for linear layers, where all of them may be."""
    plain = (Linear, ReLU, HardSigmoid, HardSwish, BatchNorm)
    kinds = [type(entry) for _, entry in body]
    if kinds[:1] != [GlobalAveragePool] or not all(kind in plain for kind in kinds[1:]):
        return body
    made: list[Entry] = [(body[0][0], Squeeze())]
    for name, layer in body[1:]:
        if isinstance(layer, Linear):
            b = None if layer.bias is None else layer.bias.value
            layer = layouts.layer(Pointwise, layer.weight.value, b, layer.weight.value.dtype)
        made.append((name, layer))
    return made


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
