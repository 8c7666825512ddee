"""What a network costs: multiply-accumulates, FLOPs, parameters and bytes, layer by layer.

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

Counted are convolutions and linear layers, without their biases, as the paper counts.
"""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

from mbnp.errors import MbnpError
from mbnp.network import Network


def standard_conv(h: int, w: int, k: int, c_in: int, c_out: int) -> int:
    """MACs of a full convolution with an output of h x w pixels."""
    return h * w * k * k * c_in * c_out


def depthwise(h: int, w: int, k: int, c_in: int) -> int:
    """MACs of a depthwise convolution: one k x k kernel a channel."""
    return h * w * k * k * c_in


def pointwise(h: int, w: int, c_in: int, c_out: int) -> int:
    """MACs of a 1x1 convolution."""
    return h * w * c_in * c_out


def separable(h: int, w: int, k: int, c_in: int, c_out: int) -> int:
    """MACs of a depthwise and then a pointwise convolution."""
    return depthwise(h, w, k, c_in) + pointwise(h, w, c_in, c_out)


def separable_ratio(k: int, c_out: int) -> float:
    """separable / standard_conv = 1/c_out + 1/k², whatever the size of the map and c_in."""
    return 1 / c_out + 1 / k**2


class Row(NamedTuple):
    """One layer. Shapes are those of one picture, without the batch axis; share is of the network's MACs."""

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
    """The cost of a network for one picture.

    weight_bytes: every stored number, running statistics included
    activation_bytes: the outputs of all layers; a training step keeps about this much per picture
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
        """Learnable numbers."""
        return sum(row.params for row in self.rows)

    def shares(self) -> dict[str, float]:
        """The share of all MACs that each kind of layer takes, largest first."""
        kinds = dict.fromkeys(row.kind for row in self.rows if row.macs)
        total = {kind: sum(row.share for row in self.rows if row.kind == kind) for kind in kinds}
        return dict(sorted(total.items(), key=lambda item: -item[1]))

    def as_standard(self) -> int:
        """MACs of the same network with a full convolution for each depthwise + pointwise pair.

        It has the kernel and stride of the depthwise one and the output channels of the pointwise one.
        """
        macs = self.macs
        counted = [row for row in self.rows if row.macs]
        for first, second in itertools.pairwise(counted):
            if (first.kind, second.kind) == ("Depthwise", "Pointwise"):
                macs += first.macs * second.output_shape[-1] - first.macs - second.macs
        return macs

    def table(self) -> str:
        """One line a layer, then the totals, as plain text."""
        header = ("layer", "kind", "output", "parameters", "MACs", "FLOPs", "share")
        lines = [header]
        lines += [
            (r.name, r.kind, _size(r.output_shape), _count(r.params), *_work(r.macs, r.share))
            for r in self.rows
        ]
        lines += [("total", "", "", f"{self.params:,}", *_work(self.macs, 1.0))]
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        text = ["  ".join(_pad(cell, i, widths[i]) for i, cell in enumerate(line)).rstrip() for line in lines]
        rule = "-" * len(text[0])
        return "\n".join([text[0], rule, *text[1:-1], rule, text[-1]])


def of(net: Network, shape: tuple[int, int, int] | None = None) -> Cost:
    """Count the network for one picture of `shape` (H, W, C); None: of the network's own resolution."""
    picture = (net.resolution, net.resolution, net.channels) if shape is None else tuple(shape)
    if len(picture) != 3 or min(picture) < 1:
        raise MbnpError(f"the shape of a picture is (height, width, channels), got {picture}")
    walked = list(net.walk(picture))
    total = sum(layer.macs(y_shape) for _, layer, _, y_shape in walked)
    itemsize = net.dtype.itemsize
    rows = []
    for name, layer, x_shape, y_shape in walked:
        params = sum(p.value.size for p in layer.parameters().values())
        macs = layer.macs(y_shape)
        rows.append(Row(name, type(layer).__name__, x_shape, y_shape, params, macs, macs / max(total, 1)))
    return Cost(
        rows=tuple(rows),
        weight_bytes=sum(array.nbytes for array in net.state().values()),
        activation_bytes=itemsize * sum(math.prod(row.output_shape) for row in rows),
    )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _work(macs: int, share: float) -> tuple[str, str, str]:
    return _count(macs), _count(2 * macs), f"{100 * share:.2f} %" if macs else ""


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def _pad(cell: str, column: int, width: int) -> str:
    return cell.ljust(width) if column < 3 else cell.rjust(width)
