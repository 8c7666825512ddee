"""Which part of a network the fused kernels can run: the chain of convolution - BatchNorm - ReLU it begins with."""

from typing import Any, NamedTuple

import numpy as np

from mbnp.fused.kernels import whole
from mbnp.layers import AveragePool, BatchNorm, Conv, Depthwise, Flatten, GlobalAveragePool, Linear, Pointwise, ReLU
from mbnp.network import Layer, Sequential
from mbnp.ops import window

Shape = tuple[int, ...]


class Triple(NamedTuple):
    """A convolution, the BatchNorm after it, and the limits of the ReLU after that."""

    name: str
    conv: Conv | Depthwise | Pointwise
    bn: BatchNorm
    limits: np.ndarray  # (2,): what the activation clips to; infinite where there is none


def split(net: Sequential) -> tuple[list[Triple], list[tuple[str, Layer]]]:
    """The longest chain of triples `net` begins with, and the layers after it, by name.

    The chain is a first convolution and then pairs of a depthwise and a pointwise one: MobileNetV1's body.
    """
    layers: list[tuple[str, Any]] = net.flat()
    triples: list[Triple] = []
    channels = getattr(net, "channels", None)
    at = 0
    while at + 1 < len(layers) and type(layers[at + 1][1]) is BatchNorm:
        (name, conv), (_, bn) = layers[at], layers[at + 1]
        relu = layers[at + 2][1] if at + 2 < len(layers) else None
        wanted = Conv if not triples else (Pointwise, Depthwise)[len(triples) % 2]
        if type(conv) is not wanted or not _supported(conv):  # a subclass may compute something else
            break
        c_in, c_out = _channels(conv)
        if c_in != (channels or c_in) or c_out != bn.weight.value.size:
            break  # the layers themselves say what does not fit
        channels = c_out
        triples.append(Triple(name, conv, bn, limits_of(relu, bn)))
        at += 3 if type(relu) is ReLU else 2
    if triples and len(triples) % 2 == 0:  # a depthwise convolution without its pointwise one
        last = triples.pop()
        at = [name for name, _ in layers].index(last.name)
    return triples, layers[at:]


def head(tail: list[Layer], shape: Shape, dtype: Any) -> Any:
    """The linear layer, if `tail` averages over the whole map of `shape` (N, H, W, C) before it; else None."""
    pool, *middle, last = tail if len(tail) > 1 else (None, None)
    if type(pool) is GlobalAveragePool:
        plain = not middle
    else:
        whole_map = type(pool) is AveragePool and pool.size == shape[1:3] and pool.options["padding"] == 0
        plain = whole_map and [type(layer) for layer in middle] == [Flatten]
    return last if plain and type(last) is Linear and _fits(last, shape[-1], dtype) else None


def _fits(linear: Linear, channels: int, dtype: Any) -> bool:
    """Whether the layer has a bias, and weights for so many channels of that type; if not, it says so itself."""
    w, b = linear.weight.value, linear.bias
    return b is not None and len(w) == channels and w.dtype == b.value.dtype == dtype


def geometry(conv: Any, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Stride, rows of padding above and columns of it on the left, for an input of `shape` (N, H, W, C)."""
    stride = window.pair("stride", conv.options["stride"])
    (top, _), (left, _) = window.explicit_padding(
        conv.options["padding"], (shape[1], shape[2]), conv.weight.value.shape[:2], stride
    )
    return stride[0], top, left


class Picture(NamedTuple):
    """How the first convolution reads a padded picture: see `kernels/stem.py`."""

    offsets: np.ndarray  # (taps,) int64, of each tap from its window's corner
    shape: tuple[int, int]  # rows, and entries of a row

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]


def padded_picture(conv: Any, stride: int, rows: int, columns: int) -> Picture:
    """For so many rows and columns of outputs."""
    kernel, _, channels, _ = conv.weight.value.shape
    row = ((columns - 1) * stride + kernel) * channels
    offsets = np.arange(kernel)[:, None] * row + np.arange(kernel * channels)
    return Picture(offsets.ravel(), ((rows - 1) * stride + kernel, row))


def identity(channels: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """affine and limits, as `kernels` says at its top, of what is activated already."""
    affine = np.zeros((5, channels), dtype)
    affine[[1, 3]] = 1
    return affine, np.array([-np.inf, np.inf], dtype)


def stored(shape: Shape, dtype: Any) -> Shape:
    """The shape that something of `shape` is stored in: its channels are whole vectors."""
    return *shape[:-1], whole(shape[-1], dtype)


def output_shape(triple: Triple, shape: Shape) -> Shape:
    """What the convolution makes of a stored input."""
    return shape[0], *triple.conv.output_shape((*shape[1:-1], _channels(triple.conv)[0]))


def _channels(conv: Any) -> tuple[int, int]:
    """Of the input and of the output."""
    shape = conv.weight.value.shape
    return (shape[-1], shape[-1]) if isinstance(conv, Depthwise) else shape[-2:]


def fill(matrix: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """`stored`, with the matrix in its corner; what it has more rows and columns stays as it is, zero."""
    stored[: matrix.shape[0], : matrix.shape[1]] = matrix
    return stored


def limits_of(relu: Layer | None, bn: BatchNorm) -> np.ndarray:
    low, high = (0, np.inf if relu.max_value is None else relu.max_value) if type(relu) is ReLU else (-np.inf, np.inf)
    return np.array([low, high], bn.weight.value.dtype)


def _supported(conv: Any) -> bool:
    """Whether the kernels know this shape of convolution."""
    if isinstance(conv, Pointwise):
        return conv.bias is None
    kernel, stride = conv.weight.value.shape[:2], window.pair("stride", conv.options["stride"])
    square = kernel[0] == kernel[1] and stride[0] == stride[1]
    if isinstance(conv, Conv):
        return square and conv.weight.value.shape[2] <= 4  # pictures: their gradient is not computed
    return square and kernel[0] == 3 and stride[0] <= 2 and conv.bias is None and _padding_at_most_2(conv)


def _padding_at_most_2(conv: Any) -> bool:
    padding = conv.options["padding"]
    return padding == "same" or np.max(padding) <= 2
