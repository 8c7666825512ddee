"""What the engine makes of a network: its layers as a list of operations, each of which runs as one.

    conv        a standard or pointwise convolution or a linear layer, the BatchNorm and the activation after it
    depthwise   a depthwise convolution, likewise
    sum         a residual's two branches, and the ReLU after it
    average     the average over a feature map
    largest     max pooling
    sample      every stride-th pixel, and zeros for new channels
    activation  ReLU or hard-swish by itself: how what comes after it reads a feature map
    gate        a feature map times a factor for each image and channel
    rows        what the heads of a detector make, as a row for each anchor
    layer       anything else: a layer of the reference network, as it is

Layers may come in any order, with any number of channels. An operation reads feature maps by number: 0 is the batch of
images, and i + 1 what operation i makes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mbnp.backend.vectors import padded
from mbnp.errors import MbnpError
from mbnp.layers import (
    AveragePool,
    BatchNorm,
    Conv,
    Depthwise,
    Flatten,
    GlobalAveragePool,
    HardSigmoid,
    HardSwish,
    Linear,
    MaxPool,
    Pointwise,
    ReLU,
    Squeeze,
    Subsample,
)
from mbnp.network import Gate, Layer, Network, Pyramid, Residual, Sequential
from mbnp.ops import window

Shape = tuple[int, ...]

# No bounds: every comparison with NaN is false, so that kernels pass on infinities, too.
UNLIMITED = math.nan, math.nan
# The activations that kernels know, and the bounds to which each clips. Hard-swish is a function of its own, and
# hard-sigmoid the clip of a line.
ACTIVATIONS: dict[type[Layer], Callable[[Any], tuple[float, float]]] = {
    ReLU: lambda relu: (0, math.nan if relu.max_value is None else relu.max_value),
    HardSwish: lambda swish: UNLIMITED,
    HardSigmoid: lambda sigmoid: (0, 1),
}


class Operation(NamedTuple):
    """A part of a network that runs as one."""

    kind: str
    names: tuple[str, ...]  # the full names of the layers that it computes
    inputs: tuple[int, ...]  # feature maps
    shape: Shape  # of what it makes: (N, H, W, C)
    flat: bool = False  # where that stands for (N, C), H and W being 1
    layer: Any = None  # the convolution, linear layer, max pooling or subsampling, or of kind "layer" that layer
    bn: BatchNorm | None = None
    activation: Layer | None = None

    def bounds(self, dtype: Any) -> np.ndarray:
        """Return what the activation clips to: (2,), NaN where there is no bound."""
        clip = ACTIVATIONS[type(self.activation)](self.activation) if self.activation else UNLIMITED
        return np.array(clip, dtype)

    def swish(self) -> bool:
        return type(self.activation) is HardSwish

    def line(self, dtype: Any) -> tuple[Any, Any]:
        """Return slope and offset of what the bounds clip.

        The sixth is rounded up, so that -3 and 3 (without a bias) are outside of the bounds, where the slope is 0.
        """
        if type(self.activation) is not HardSigmoid:
            return 1, 0
        sixth = np.dtype(dtype).type(1 / 6)
        return (sixth if sixth > 1 / 6 else np.nextafter(sixth, 1)), 0.5

    def seen(self) -> Shape:
        """Return the shape of what it makes as layers have it: (N, H, W, C), flat (N, C), of rows (N, anchors, C)."""
        n, _, w, c = self.shape
        return (n, c) if self.flat else (n, w, c) if self.kind == "rows" else self.shape

    def layers(self) -> list[Layer]:
        return [layer for layer in (self.layer, self.bn) if layer]

    def learns(self) -> bool:
        return any(layer.trainable() for layer in self.layers())


def match(net: Network, shape: Shape) -> list[Operation]:
    """Return the operations of a pass over images of `shape` (N, H, W, C). MbnpError if a layer does not take them."""
    matcher = _Matcher(net.dtype)
    matcher.chain(net.flat(), 0, shape, False)
    return matcher.operations


class _Matcher:
    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.operations: list[Operation] = []

    def chain(
        self, layers: Sequence[tuple[str, Layer]], source: int, shape: Shape, flat: bool
    ) -> tuple[int, Shape, bool]:
        """Add the operations of a chain of layers on a feature map; return the map that it makes, and its shape."""
        at = 0
        while at < len(layers):
            rest = layers[at:]
            found = self._average(rest, source, shape, flat) or self._weighted(rest, source, shape, flat)
            found = found or self._residual(rest, source, shape, flat) or self._gate(rest, source, shape, flat)
            found = found or self._largest(rest, source, shape, flat) or self._pyramid(rest, source, shape, flat)
            found = found or self._sample(rest, source, shape, flat)
            found = found or self._activation(rest, source, shape, flat) or self._layer(rest, source, shape, flat)
            self.operations.append(found)
            source, shape, flat = len(self.operations), found.shape, found.flat
            at += self.taken
        return source, shape, flat

    def _made(self, layers: Sequence[tuple[str, Layer]], count: int, **fields: Any) -> Operation:
        self.taken = count
        return Operation(names=tuple(name for name, _ in layers[:count]), **fields)

    def _weighted(self, layers: Sequence, source: int, shape: Shape, flat: bool) -> Operation | None:
        """Match a layer with weights, and the BatchNorm and the activation after it."""
        conv, *after = (layer for _, layer in layers[:3])
        if not _supported(conv, shape, flat, self.dtype):
            return None
        channels = conv.weight.value.shape[-1]
        bn = after.pop(0) if after and type(after[0]) is BatchNorm and _fits(after[0], channels, self.dtype) else None
        known = ACTIVATIONS if bn is None else (ReLU, HardSwish)
        activation = after[0] if after and type(after[0]) in known else None
        out = conv.output_shape(shape[3:] if flat else shape[1:])
        kind = "depthwise" if type(conv) is Depthwise else "conv"
        return self._made(
            layers, 1 + (bn is not None) + (activation is not None), kind=kind, inputs=(source,), flat=flat,
            shape=(shape[0], 1, 1, *out) if flat else (shape[0], *out), layer=conv, bn=bn, activation=activation,
        )  # fmt: skip

    def _average(self, layers: Sequence, source: int, shape: Shape, flat: bool) -> Operation | None:
        """Match an average over the whole map, and a Flatten after it, which then does nothing."""
        pool, *after = (layer for _, layer in layers[:2])
        if flat:
            return None
        out = (shape[0], 1, 1, shape[3])
        if type(pool) in (GlobalAveragePool, Squeeze):
            flat = type(pool) is GlobalAveragePool
            return self._made(layers, 1, kind="average", inputs=(source,), shape=out, flat=flat)
        whole = type(pool) is AveragePool and pool.size == shape[1:3] and pool.options["padding"] == 0
        if not whole:
            return None
        flattened = bool(after) and type(after[0]) is Flatten
        return self._made(layers, 1 + flattened, kind="average", inputs=(source,), shape=out, flat=flattened)

    def _largest(self, layers: Sequence, source: int, shape: Shape, flat: bool) -> Operation | None:
        pool = layers[0][1]
        if type(pool) is not MaxPool or flat:
            return None
        stride = window.pair("stride", pool.options["stride"])
        if stride[0] != stride[1] or not _is_narrow(pool.options["padding"], shape, pool.size, stride):
            return None
        out = (shape[0], *pool.output_shape(shape[1:]))
        return self._made(layers, 1, kind="largest", inputs=(source,), shape=out, layer=pool)

    def _sample(self, layers: Sequence, source: int, shape: Shape, flat: bool) -> Operation | None:
        """Match a shortcut without parameters, if its channels fill vectors: part of one would overwrite the zeros."""
        sample = layers[0][1]
        if type(sample) is not Subsample or flat or padded(shape[3], self.dtype) != shape[3]:
            return None
        stride = window.pair("stride", sample.stride)
        if stride[0] != stride[1]:
            return None
        out = (shape[0], *sample.output_shape(shape[1:]))
        return self._made(layers, 1, kind="sample", inputs=(source,), shape=out, layer=sample)

    def _residual(self, layers: Sequence, source: int, shape: Shape, flat: bool) -> Operation | None:
        (name, residual), *after = layers[:2]
        if type(residual) is not Residual or flat:
            return None
        body, out, _ = self.chain(residual.flat(name), source, shape, flat)
        shortcut, other = source, shape
        if residual.shortcut:
            branch = _opened(f"{name}.shortcut", residual.shortcut)
            shortcut, other, _ = self.chain(branch, source, shape, flat)
        if out != other:
            raise MbnpError(f"{name} adds {other[1:]} to {out[1:]}")
        activation = after[0][1] if after and type(after[0][1]) is ReLU else None
        made = self._made(
            after, activation is not None, kind="sum", inputs=(body, shortcut), shape=out, activation=activation
        )
        self.taken += 1
        return made

    def _gate(self, layers: Sequence, source: int, shape: Shape, flat: bool) -> Operation | None:
        name, gate = layers[0]
        if type(gate) is not Gate or flat:
            return None
        gate.output_shape(shape[1:])  # raises unless there is a factor for each channel
        factors, *_ = self.chain(gate.flat(name), source, shape, False)
        self.taken = 1
        return Operation("gate", (), (source, factors), shape)

    def _pyramid(self, layers: Sequence, source: int, shape: Shape, flat: bool) -> Operation | None:
        """Match the stages and heads of a detector, which is the end of a network."""
        name, pyramid = layers[0]
        if type(pyramid) is not Pyramid or flat or len(layers) > 1:
            return None
        rows = pyramid.output_shape(shape[1:])  # raises if the heads do not fit one another
        heads = []
        for stage, boxes, scores in pyramid.branches(name):
            source, shape, _ = self.chain(_opened(*stage), source, shape, False)
            heads += [self.chain(_opened(*head), source, shape, False)[0] for head in (boxes, scores)]
        self.taken = 1
        return Operation("rows", (), tuple(heads), (shape[0], 1, *rows))

    def _activation(self, layers: Sequence, source: int, shape: Shape, flat: bool) -> Operation | None:
        """Match ReLU of a feature map that is clipped at most, or hard-swish of one without activation."""
        kind = type(layers[0][1])
        before = self.operations[source - 1].activation if source else None
        if type(before) is HardSwish or not (kind is ReLU or (kind is HardSwish and before is None)):
            return None
        return self._made(
            layers, 1, kind="activation", inputs=(source,), shape=shape, flat=flat, activation=layers[0][1]
        )

    def _layer(self, layers: Sequence, source: int, shape: Shape, flat: bool) -> Operation:
        name, layer = layers[0]
        out = layer.output_shape(shape[3:] if flat else shape[1:])
        self.taken = 1
        names = tuple(leaf for leaf, _ in layer.leaves(name))
        made = (shape[0], 1, 1, *out) if len(out) == 1 else (shape[0], *out)
        return Operation("layer", names, (source,), made, len(out) == 1, layer)


def _opened(name: str, layer: Layer) -> list[tuple[str, Layer]]:
    """Return a layer as a chain; a plain Sequential as that of its layers."""
    return layer.flat(name) if isinstance(layer, Sequential) and type(layer) is Sequential else [(name, layer)]


def _supported(conv: Any, shape: Shape, flat: bool, dtype: Any) -> bool:
    """Return whether the kernels know this layer, on an input of this shape; what does not fit says so itself."""
    kind = type(conv)  # a subclass may compute something else
    if kind not in (Conv, Depthwise, Pointwise, Linear) or (kind is Linear) != flat:
        return False
    w, b = conv.weight.value, conv.bias
    if conv.channels_in != shape[3] or w.dtype != dtype or (b is not None and b.value.dtype != dtype):
        return False
    if kind in (Pointwise, Linear):
        return True
    stride, kernel = window.pair("stride", conv.options["stride"]), w.shape[:2]
    if stride[0] != stride[1] or not _is_narrow(conv.options["padding"], shape, kernel, stride):
        return False
    return kind is Conv or (kernel[0] == kernel[1] and kernel[0] in (3, 5, 7) and stride[0] <= 2)


def _is_narrow(padding: Any, shape: Shape, kernel: Any, stride: Any) -> bool:
    """Return whether padding is narrower than the kernel, so that no window lies in it as a whole."""
    (top, bottom), (left, right) = window.explicit_padding(padding, (shape[1], shape[2]), kernel, stride)
    return max(top, bottom) < kernel[0] and max(left, right) < kernel[1]


def _fits(bn: BatchNorm, channels: int, dtype: Any) -> bool:
    return bn.weight.value.size == channels and bn.weight.value.dtype == dtype


def geometry(conv: Any, shape: Shape) -> tuple[int, int, int, int, int]:
    """Return rows and columns of the window, stride, and padding above and to the left, for an input of `shape`."""
    if type(conv) in (Pointwise, Linear):
        return 1, 1, 1, 0, 0
    if type(conv) is Subsample:
        return 1, 1, window.pair("stride", conv.stride)[0], 0, 0
    stride = window.pair("stride", conv.options["stride"])
    kernel = conv.size if type(conv) is MaxPool else conv.weight.value.shape[:2]
    (top, _), (left, _) = window.explicit_padding(conv.options["padding"], (shape[1], shape[2]), kernel, stride)
    return *kernel, stride[0], top, left


def channels_before(layer: Any) -> int:
    """Return how many channels of zeros a layer of windows puts before those that it takes."""
    return layer.before if type(layer) is Subsample else 0


def only_convolved(i: int, operations: Sequence[Operation]) -> bool:
    """Return whether all that read feature map i are convolutions, which take any number of channels."""
    return all(operation.kind == "conv" for operation in operations if i in operation.inputs)


def report(operations: Sequence[Operation]) -> str:
    """Return what runs as one, a line for each operation."""
    lines = []
    for operation in operations:
        what = "its own layer" if operation.kind == "layer" else operation.kind
        lines.append(f"{what:13}  {' + '.join(operation.names)}")
    return "\n".join(lines)
