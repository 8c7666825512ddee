"""The page of a network without an image: its layers from left to right, and what each costs by every measure.

`pages/explain.py` puts feature maps into the same page.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mbnp import cost, pages
from mbnp.network import Gate, Layer, Network, Pyramid, Residual, Sequential
from mbnp.pages import charts
from mbnp.pages.charts import Scale

if TYPE_CHECKING:  # what measures takes a while to import
    from mbnp.bench.machine import Peaks
    from mbnp.bench.profile import Profile

KINDS = {
    "image": "image",
    "conv": "standard convolution",
    "depthwise": "depthwise convolution",
    "pointwise": "pointwise convolution",
    "linear": "linear",
    "batchnorm": "BatchNorm",
    "relu": "ReLU",
    "hard-swish": "hard-swish",
    "hard-sigmoid": "hard-sigmoid",
    "max-pool": "max pooling",
    "average-pool": "average pooling",
    "global-average-pool": "global average",
    "squeeze": "global average",
    "sum": "residual sum",
    "gate": "gate",
}

COLOURS = {"standard": "green", "pointwise": "blue", "depthwise": "vermilion", "separable": "purple", "other": "quiet"}


class Node(NamedTuple):
    """A layer, or what joins the branches of a container, and the nodes whose outputs it reads."""

    name: str  # as in `net.activations`
    kind: str  # the layer's, or "image", "sum", "gate", "rows"
    layer: Layer
    inputs: tuple[int, ...]
    shape: tuple[int, ...]  # of one output

    @property
    def title(self) -> str:
        """The kind in words; ReLU says where it ends."""
        most = getattr(self.layer, "max_value", None)
        return KINDS.get(self.kind, self.kind) + (f"{most:g}" if most is not None else "")


def graph(net: Network, shape: tuple[int, int, int]) -> list[Node]:
    """Return the nodes of a network for an image of `shape` (H, W, C), in the order of computation.

    The first is the image, and the last makes the logits. A residual's node comes after both branches, body first; a
    gate's reads its input and then its factors, and a pyramid's all its heads.
    """
    nodes = [Node("image", "image", Layer(), (), shape)]

    def add(layer: Layer, name: str, at: int) -> int:
        inputs: tuple[int, ...] = (at,)
        kind = layer.kind
        if isinstance(layer, Pyramid):
            heads, last = list[int](), at
            for stage, boxes, scores in layer.branches(name):
                last = add(stage[1], stage[0], last)
                heads += [add(head, head_at, last) for head_at, head in (boxes, scores)]
            kind, inputs = "rows", tuple(heads)
        elif isinstance(layer, Sequential):
            last = at
            for child, inner in layer.layers.items():
                last = add(inner, f"{name}.{child}" if name else child, last)
            if isinstance(layer, Residual):
                kind, inputs = "sum", (last, add(layer.shortcut, f"{name}.shortcut", at) if layer.shortcut else at)
            elif isinstance(layer, Gate):
                kind, inputs = "gate", (at, last)
            else:
                return last
        nodes.append(Node(name, kind, layer, inputs, layer.output_shape(nodes[at].shape)))
        return len(nodes) - 1

    add(net, "", 0)
    return nodes


def described(net: Network, nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """Return what the page's script knows of each node: names, shapes, inputs, and what it costs."""
    rows = {row.name: row for row in cost.of(net, nodes[0].shape).rows}  # type: ignore[arg-type]
    found = []
    for node in nodes:
        row = rows.get(node.name)
        entry: dict[str, Any] = {**node._asdict(), "title": node.title, "count": node.shape[-1]}
        del entry["layer"]
        entry["macs"], entry["params"] = (row.macs, row.params) if row else (0, 0)
        entry["bytes"] = net.dtype.itemsize * math.prod(node.shape)
        found.append(entry)
    return found


MEASURES = [
    {"key": "macs", "label": "MACs", "unit": "", "note": "multiply-accumulates for one image"},
    {"key": "params", "label": "parameters", "unit": "", "note": "learnable numbers"},
    {"key": "bytes", "label": "bytes", "unit": "B", "note": "of the feature map that the layer writes, for one image"},
]


def page(net: Network, title: str, resolution: int | None = None) -> str:
    """Return the page of a network, for images of its own resolution or another: its layers, and their cost."""
    size = net.resolution if resolution is None else resolution
    nodes = graph(net, (size, size, net.channels))
    counted = cost.of(net, (size, size, net.channels))
    subtitle = f"images of {size} x {size}; {counted.params:,} parameters, {counted.macs:,} MACs"
    return _rendered(title, subtitle, described(net, nodes), list(MEASURES))


def bench_page(net: Network, title: str, subtitle: str, resolution: int, measured: "Profile", peaks: "Peaks") -> str:
    """Return the page of a network whose layers were measured: their time, and where they are on the roofline."""
    entries = described(net, graph(net, (resolution, resolution, net.channels)))
    seconds = {row.name.split(" + ")[0]: row.seconds for row in measured.rows}
    for entry in entries:
        entry["ms"] = 1e3 * seconds.get(entry["name"], 0.0)
    note = "of a training step; what runs as one stands at its first layer"
    timed = {"key": "ms", "label": "measured time", "unit": "ms", "note": note}
    return _rendered(title, subtitle, entries, [timed, *MEASURES], roofline(measured, peaks))


class Point(NamedTuple):
    """One direction of one layer on the roofline, in pixels of the chart."""

    x: float
    y: float
    colour: str
    backward: bool
    text: str


class Roofline(NamedTuple):
    """GFLOP/s by FLOPs a byte: the layers, and the slopes and the roof that the machine sets. Both axes logarithmic."""

    x: Scale
    y: Scale
    points: list[Point]
    roofs: list[tuple[str, str]]  # the points of a line, and its dash
    labels: list[tuple[float, float, str, str]]  # where, how it is anchored, text
    kinds: dict[str, str]  # the colour of each kind of layer


def roofline(measured: "Profile", peaks: "Peaks") -> Roofline | None:
    """Place the layers that multiply under the machine's limits, as `plots.roofline` does; None if there are none."""
    each = [(row, rate, k == 1) for row in measured.rows for k, rate in enumerate(row.rates)]
    rates = [(row, rate, backward) for row, rate, backward in each if rate.flops and rate.seconds]
    if not rates:
        return None
    intensities, speeds = [rate.intensity for _, rate, _ in rates], [rate.gflops for _, rate, _ in rates]
    slopes = {"last cache": peaks.cache, "memory": peaks.memory}
    x = charts.horizontal(
        "FLOPs for each byte",
        min(intensities) / 2,
        2 * max(*intensities, peaks.gflops / min(slopes.values())),
        log=True,
    )
    y = charts.vertical("GFLOP/s", min(speeds) / 2, 2 * max(*speeds, peaks.gflops), log=True)
    points = [
        Point(
            x(rate.intensity), y(rate.gflops), COLOURS[row.kind], backward,
            f"{row.name}, {row.kind}, {'backward' if backward else 'forward'}: {rate.gflops:.3g} GFLOP/s at "
            f"{rate.intensity:.3g} FLOPs a byte, {1e3 * rate.seconds:.3g} ms",
        )
        for row, rate, backward in rates
    ]  # fmt: skip
    roofs, labels = [], []
    for name, bandwidth in slopes.items():
        begin = max(x.low, y.low / bandwidth)
        corner = peaks.gflops / bandwidth
        line = ((begin, begin * bandwidth), (corner, peaks.gflops), (x.high, peaks.gflops))
        roofs.append((" ".join(f"{x(a)},{y(b)}" for a, b in line), "5 4" if name == "memory" else ""))
        if bandwidth == max(slopes.values()):  # above the higher slope, and below the lower one
            place = x(corner) - 8, y(peaks.gflops) + 4, "end"
        else:
            place = x(0.4 * corner) + 8, y(0.4 * peaks.gflops) + 10, "start"
        labels.append((*place, f"{name} {bandwidth:.3g} GB/s"))
    labels.append((x.end, y(peaks.gflops) - 6, "end", f"matrix product {peaks.gflops:.3g} GFLOP/s"))
    kinds = {row.kind: COLOURS[row.kind] for row, _, _ in rates}
    return Roofline(x, y, points, roofs, labels, kinds)


def _rendered(
    title: str,
    subtitle: str,
    entries: list[dict[str, Any]],
    measures: list[dict[str, str]],
    roofline: Roofline | None = None,
) -> str:
    data = {"nodes": entries, "measures": measures, "images": []}
    return pages.render("network.html", title=title, subtitle=subtitle, data=data, blob="", roofline=roofline)
