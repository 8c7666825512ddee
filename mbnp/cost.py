"""The cost of a network: multiply-accumulates (MACs), FLOPs, parameters and bytes, layer by layer.

Symbols: H, W height and width of the **output**; K the kernel's width; Cin, Cout channels.

    standard convolution    H·W·K·K·Cin·Cout
    depthwise convolution   H·W·K·K·Cin
    pointwise convolution   H·W·Cin·Cout
    depthwise separable     the last two added; against the first it costs 1/Cout + 1/K² (Howard et al.,
                            "MobileNets", arXiv:1704.04861, section 3.1)

The article gives the same formulas with H and W of the input. That agrees at stride 1; at stride 2 it counts
four times too many, since a convolution multiplies once per pixel that it writes. It also calls the result
FLOPs, "per second": it is the number of MACs, a multiplication and the addition after it being one. FLOPs
here are 2 x MACs, a number of operations and not a rate.

Convolutions and linear layers are counted, without their biases, as in the paper.
"""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

from mbnp import tables
from mbnp.errors import MbnpError
from mbnp.network import Network


def standard_conv(h: int, w: int, k: int, c_in: int, c_out: int) -> int:
    """Return the MACs of a full convolution with an output of h x w pixels."""
    return h * w * k * k * c_in * c_out


def depthwise(h: int, w: int, k: int, c_in: int) -> int:
    """Return the MACs of a depthwise convolution: one k x k kernel for each channel."""
    return h * w * k * k * c_in


def pointwise(h: int, w: int, c_in: int, c_out: int) -> int:
    """Return the MACs of a 1x1 convolution."""
    return h * w * c_in * c_out


def separable(h: int, w: int, k: int, c_in: int, c_out: int) -> int:
    """Return the MACs of a depthwise and then a pointwise convolution."""
    return depthwise(h, w, k, c_in) + pointwise(h, w, c_in, c_out)


def separable_ratio(k: int, c_out: int) -> float:
    """Return separable / standard_conv = 1/c_out + 1/k², for any size of the feature map and any c_in."""
    return 1 / c_out + 1 / k**2


class Row(NamedTuple):
    """One layer. Shapes are those of one image, without the batch axis; share is of the network's MACs."""

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    params: int
    macs: int
    share: float

    @property
    def flops(self) -> int:
        return 2 * self.macs


@dataclass(frozen=True)
class Cost:
    """The cost of a network for one image.

    weight_bytes: of every stored number, running statistics included
    activation_bytes: of the outputs of all layers; a training step keeps about this much for each image
    """

    rows: tuple[Row, ...]
    weight_bytes: int
    activation_bytes: int

    @property
    def macs(self) -> int:
        return sum(row.macs for row in self.rows)

    @property
    def flops(self) -> int:
        return 2 * self.macs

    @property
    def params(self) -> int:
        """The number of learnable parameters."""
        return sum(row.params for row in self.rows)

    def shares(self) -> dict[str, float]:
        """Return the share of all MACs that each kind of layer takes, largest first."""
        kinds = dict.fromkeys(row.kind for row in self.rows if row.macs)
        total = {kind: sum(row.share for row in self.rows if row.kind == kind) for kind in kinds}
        return dict(sorted(total.items(), key=lambda item: -item[1]))

    def as_standard(self) -> int:
        """Return the MACs of the same network with a full convolution for each depthwise + pointwise pair.

        That has the kernel and stride of the depthwise one and the output channels of the pointwise one.
        """
        macs = self.macs
        counted = [row for row in self.rows if row.macs]
        for first, second in itertools.pairwise(counted):
            if (first.kind, second.kind) == ("Depthwise", "Pointwise"):
                macs += first.macs * second.output_shape[-1] - first.macs - second.macs
        return macs

    def table(self) -> str:
        """Return one line for each layer, then the totals, as plain text; what does not fit is left out."""
        head = ("layer", "kind", "output", "parameters", "MACs", "FLOPs", "share")
        total = Row("total", "", (), (), self.params, self.macs, 1.0)
        *rows, last = map(_cells, (*self.rows, total))
        return tables.table(head, rows, left=3, total=last, drop=("FLOPs", "share", "kind"))


def _cells(row: Row) -> list[str]:
    counts = [f"{number:,}" if number else "" for number in (row.params, row.macs, row.flops)]
    share = f"{100 * row.share:.2f} %" if row.macs else ""
    return [row.name, row.kind, "x".join(map(str, row.output_shape)), *counts, share]


def of(net: Network, shape: tuple[int, int, int] | None = None) -> Cost:
    """Count the network for one image of `shape` (H, W, C), by default of the network's own resolution.

    Raise MbnpError for what is no such shape, and for an image that the network does not take.
    """
    image = (net.resolution, net.resolution, net.channels) if shape is None else tuple(shape)
    if len(image) != 3 or min(image) < 1:
        raise MbnpError(f"the shape of an image is (height, width, channels), got {image}")
    walked = list(net.walk(image))
    total = max(sum(layer.macs(y_shape) for _, layer, _, y_shape in walked), 1)
    rows = []
    for name, layer, x_shape, y_shape in walked:
        params = sum(p.value.size for p in layer.parameters().values())
        macs = layer.macs(y_shape)
        rows.append(Row(name, type(layer).__name__, x_shape, y_shape, params, macs, macs / total))
    outputs = net.dtype.itemsize * sum(math.prod(row.output_shape) for row in rows)
    return Cost(tuple(rows), sum(array.nbytes for array in net.state().values()), outputs)
