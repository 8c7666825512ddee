"""The page of a network without an image: its layers from left to right, and what each costs by every measure.

`pages/explain.py` puts feature maps into the same page.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from mbnp import cost, pages
from mbnp.bench.machine import Peaks
from mbnp.bench.profile import Profile
from mbnp.network import Gate, Layer, Network, Residual, Sequential

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


class Node(NamedTuple):
    """A layer, or what joins the branches of a container, and the nodes whose outputs it reads."""

    name: str  # as in `net.activations`
    kind: str  # the layer's, or "image", "sum", "gate"
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
    gate's reads its input and then its factors.
    """
    nodes = [Node("image", "image", Layer(), (), shape)]

    def add(layer: Layer, name: str, at: int) -> int:
        inputs: tuple[int, ...] = (at,)
        kind = layer.kind
        if isinstance(layer, Sequential):
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


def bench_page(net: Network, title: str, subtitle: str, resolution: int, measured: Profile, peaks: Peaks) -> str:
    """Return the page of a network whose layers were measured: their time, and where they are on the roofline."""
    entries = described(net, graph(net, (resolution, resolution, net.channels)))
    seconds = {row.name.split(" + ")[0]: row.seconds for row in measured.rows}
    for entry in entries:
        entry["ms"] = 1e3 * seconds.get(entry["name"], 0.0)
    points = [
        {
            "name": row.name,
            "kind": row.kind,
            "backward": k == 1,
            "intensity": rate.intensity,
            "gflops": rate.gflops,
            "ms": 1e3 * rate.seconds,
        }
        for row in measured.rows
        for k, rate in enumerate(row.rates)
        if rate.flops and rate.seconds
    ]
    roofline = {"gflops": peaks.gflops, "cache": peaks.cache, "memory": peaks.memory, "points": points}
    note = "of a training step; what runs as one stands at its first layer"
    timed = {"key": "ms", "label": "measured time", "unit": "ms", "note": note}
    return _rendered(title, subtitle, entries, [timed, *MEASURES], roofline)


def _rendered(
    title: str, subtitle: str, entries: list[dict[str, Any]], measures: list[dict[str, str]], roofline: Any = None
) -> str:
    data = {"nodes": entries, "measures": measures, "images": [], "roofline": roofline}
    return pages.render("network.html", title=title, subtitle=subtitle, data=data, blob="")
