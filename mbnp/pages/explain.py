"""The page that opens a network up: an image's feature maps, how each is computed, and where the network looks.

A page cannot hold every channel of a large network. Each layer that mixes channels keeps those inputs that contribute
most to what is kept of its output, beginning at the logits of the most probable classes; the page says how many.
Numbers are stored as float16 with a scale for each feature map, so that three digits are right.
"""

import base64
import math
import time
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mbnp import datasets, explain, fused, pages
from mbnp.errors import MbnpError
from mbnp.network import Network
from mbnp.ops import softmax_cross_entropy, window
from mbnp.pages.network import MEASURES, Node, described, graph

CLASSES = 3  # for which the page says where the network looks; of one image
SHOWN = 10  # classes in the list of the most probable
# At most so many channels that a layer adds: the first that fits.
CHANNELS = (512, 256, 128, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)
BYTES = 10 << 20  # of an image's numbers before they are compressed
LARGE = 3 * 64 * 64  # numbers of an image, from which on it pays to load the kernels of the fast engine
SQUARES = 12  # of the occlusion, in each direction
LARGEST = 6e4  # what the largest number of a feature map is stored as, below float16's largest


def page(net: Network, images: np.ndarray, names: Sequence[str], title: str = "", channels: int = CHANNELS[0]) -> str:
    """Return the page for images (N, H, W, C) uint8 of the network's resolution, and a name for each.

    channels: at most so many that each layer adds to what is shown. The network must say how its images are normalised
    (`net.preprocessing`) and give one score for each class.
    """
    if net.preprocessing is None:
        raise MbnpError("the network does not say how its images were normalised, so no image can be shown to it")
    if len(images) != len(names) or not len(images):
        raise MbnpError(f"there must be a name for each image, got {len(images)} images and {len(names)} names")
    x = datasets.normalise(images, **net.preprocessing, dtype=net.dtype)
    nodes = graph(net, x.shape[1:])
    if len(nodes[-1].shape) != 1 or nodes[-1].shape[0] < 2:
        raise MbnpError(f"the network gives {nodes[-1].shape} for an image, not a score for each class")
    with np.errstate(over="ignore", invalid="ignore"):  # the page shows infinities and NaN as they are
        return _Page(net, nodes, x).render(
            images, names, title or f"What {net.arch.get('name', 'the network')} sees", channels
        )


class _Blob:
    """Arrays one after another, as bytes; what stands for an array in the page is [type, offset, shape]."""

    def __init__(self) -> None:
        self.content = bytearray()

    def add(self, array: np.ndarray, dtype: str = "f4") -> list[Any]:
        self.content += bytes(-len(self.content) % 4)
        at = len(self.content)
        self.content += np.ascontiguousarray(array, f"<{dtype}").tobytes()
        return [dtype, at, list(array.shape)]

    def add_maps(self, maps: np.ndarray) -> dict[str, Any]:
        """Add maps (..., H, W) as float16, each divided by a number that makes its largest entry LARGEST."""
        finite = np.where(np.isfinite(maps), np.abs(maps), 0).max(axis=(-2, -1), initial=0)
        scale = np.maximum(np.where(finite > 0, finite / LARGEST, 1), np.finfo(np.float32).tiny)
        with np.errstate(invalid="ignore"):
            return {"scale": self.add(scale), "values": self.add(maps / scale[..., None, None], "f2")}

    def text(self) -> str:
        return base64.b64encode(zlib.compress(bytes(self.content), 6)).decode("ascii")


class _Page:
    """What is computed for one page."""

    def __init__(self, net: Network, nodes: list[Node], x: np.ndarray) -> None:
        self.net, self.nodes, self.x = net, nodes, x
        activations = net.activations(x)
        self.outputs = [x, *(activations[node.name] for node in nodes[1:])]
        self.logits = self.outputs[-1]
        self.best = np.argsort(-self.logits, axis=1, kind="stable")

    def render(self, images: np.ndarray, names: Sequence[str], title: str, channels: int) -> str:
        kept, most = self.choose(channels)
        blob, entries = _Blob(), described(self.net, self.nodes)
        seconds = self.seconds()
        for i, (node, entry) in enumerate(zip(self.nodes, entries, strict=True)):
            entry |= {"channels": kept[i].tolist(), "ms": 1e3 * seconds[i], **self.settings(i, kept, blob)}
            entry["statistics"] = _statistics(self.outputs[i])
            if not _derived(node):
                entry["maps"] = blob.add_maps(_channels_first(self.outputs[i][..., kept[i]]))
        measures = [*MEASURES, {"key": "ms", "label": "measured time", "unit": "ms", "note": TIMED}]
        count = self.logits.shape[1]
        data = {
            "nodes": entries,
            "measures": measures,
            "classes": [self.net.classes[k] if self.net.classes else f"class {k}" for k in range(count)],
            "images": [self.image(n, images[n], name) for n, name in enumerate(names)],
            "look": self.look(blob),
        }
        height, width, _ = self.nodes[0].shape
        subtitle = f"an image of {height} x {width}, {len(self.nodes) - 1} layers, {count} classes"
        left_out = any(len(entry["channels"]) < entry["count"] for entry in entries[:-1])
        note = (
            f"Each layer that mixes channels brings in at most {most} of those that it reads: the ones that contribute "
            "most to what is shown of it. What the others add is given as one number."
        )
        values = {"title": title, "subtitle": subtitle, "data": _finite(data), "note": note if left_out else ""}
        return pages.render("network.html", **values, blob=blob.text(), roofline=None)

    def choose(self, most: int) -> tuple[list[np.ndarray], int]:
        """Return the channels of each node that the page holds, and how many a layer may add so that they fit."""
        strength = [np.abs(output).mean(axis=tuple(range(output.ndim - 1))) for output in self.outputs]
        shown = np.unique(self.best[:, :SHOWN])
        for limit in [n for n in CHANNELS if n <= most] or [most]:
            wanted: list[set[int]] = [set() for _ in self.nodes]
            wanted[-1] |= set(shown.tolist())
            wanted[0] |= set(range(self.nodes[0].shape[-1]))
            for i in reversed(range(1, len(self.nodes))):
                for at in self.nodes[i].inputs:
                    wanted[at] |= self._read(self.nodes[i], sorted(wanted[i]), self.nodes[at], strength[at], limit)
            if self._size(wanted) <= BYTES:
                break
        return [np.array(sorted(each), int) for each in wanted], limit

    def _read(self, node: Node, outputs: list[int], source: Node, strength: np.ndarray, most: int) -> set[int]:
        """Return the channels of `source` that the page needs for `outputs` of the node that reads it."""
        if node.kind in ("conv", "pointwise", "linear"):
            weight = np.abs(node.layer.variables()["weight"].value)[..., outputs]
            score = weight.reshape(-1, *weight.shape[-2:]).sum(axis=(0, 2)) * strength
            return set(np.argsort(-score, kind="stable")[:most].tolist())
        if node.kind == "flatten":
            height, width, count = source.shape
            first = getattr(node.layer, "order", None) == "CHW"
            return {k // (height * width) if first else k % count for k in outputs}
        before = {"pad": lambda: node.layer.channels[0], "subsample": lambda: node.layer.before}  # type: ignore[attr-defined]
        shift = before[node.kind]() if node.kind in before else 0
        return {k - shift for k in outputs if 0 <= k - shift < source.shape[-1]}

    def _size(self, kept: list[set[int]]) -> int:
        size = 0
        for node, channels in zip(self.nodes, kept, strict=True):
            size += 0 if _derived(node) else 2 * len(channels) * math.prod(node.shape[:-1])
            size += 2 * CLASSES * math.prod(node.shape[:-1]) if len(node.shape) == 3 else 0
            if node.kind in ("conv", "pointwise", "linear"):
                weight = node.layer.variables()["weight"].value
                size += 4 * len(kept[node.inputs[0]]) * len(channels) * math.prod(weight.shape[:-2])
        return size

    def seconds(self) -> list[float]:
        """Return how long each layer takes for one image, as a reference layer; the least of three times."""
        found = []
        for node in self.nodes:
            if node.kind in ("image", "sum", "gate"):
                found.append(0.0)
                continue
            x, times = self.outputs[node.inputs[0]][:1], []
            for _ in range(3):
                began = time.perf_counter()
                node.layer.forward(x)
                times.append(time.perf_counter() - began)
            found.append(min(times))
        return found

    def settings(self, i: int, kept: list[np.ndarray], blob: _Blob) -> dict[str, Any]:
        """Return what the page computes node i with: weights of the channels that it holds, strides, limits."""
        node, mine = self.nodes[i], kept[i]
        layer, variables = node.layer, node.layer.variables()
        found: dict[str, Any] = {}
        if node.kind in ("conv", "pointwise", "linear"):
            found["weight"] = blob.add(variables["weight"].value[..., kept[node.inputs[0]], :][..., mine])
        if node.kind == "depthwise":
            found["weight"] = blob.add(variables["weight"].value[..., mine])
        if node.kind == "batchnorm":
            names = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "variance": "running_var"}
            found |= {key: variables[name].value[mine].tolist() for key, name in names.items()} | {"eps": layer.eps}  # type: ignore[attr-defined]
        elif "bias" in variables:
            found["bias"] = variables["bias"].value[mine].tolist()
        if node.kind == "relu":
            found["most"] = layer.max_value  # type: ignore[attr-defined]
        if node.kind == "average-pool":
            found["count_padding"] = layer.count_padding  # type: ignore[attr-defined]
        config = layer.config() if node.kind not in ("image", "sum", "gate") else {}
        if "stride" in config:
            size = config.get("kernel", config.get("size", (1, 1)))
            stride = window.pair("stride", config["stride"])
            height, width = self.nodes[node.inputs[0]].shape[:2]
            margin = window.explicit_padding(config.get("padding", 0), (height, width), size, stride)
            found |= {"kernel": list(size), "stride": list(stride), "padding": [margin[0][0], margin[1][0]]}
        return found

    def image(self, n: int, image: np.ndarray, name: str) -> dict[str, Any]:
        picture = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
        probabilities = softmax_cross_entropy.softmax(self.logits[n : n + 1])[0]
        top = [
            {"class": int(k), "probability": float(probabilities[k]), "logit": float(self.logits[n, k])}
            for k in self.best[n, :SHOWN]
        ]
        return {"name": name, "source": pages.data_uri(picture), "top": top}

    def look(self, blob: _Blob) -> dict[str, Any]:
        """Return, for each image's most probable classes, where the network looks, by each method."""
        ranks = range(min(CLASSES, self.logits.shape[1]))
        spatial = {
            node.name: output
            for node, output in zip(self.nodes[1:], self.outputs[1:], strict=True)
            if len(node.shape) == 3 and max(node.shape[:2]) > 1
        }
        found: dict[str, Any] = {"classes": self.best[:, : len(ranks)].tolist(), "layers": list(spatial)}
        by_layer: dict[str, list[np.ndarray]] = {name: [] for name in spatial}
        every: dict[str, list[np.ndarray]] = {"saliency": [], "cam": [], "occlusion": []}
        large = self.x[0].size > LARGE and self.net.dtype == np.float32
        fast = fused.convert(self.net) if large else self.net
        side = max(1, -(-self.x.shape[1] // SQUARES))
        size = 2 * side
        drops = explain.occlusions(fast, self.x, size, side)
        for rank in ranks:
            classes = self.best[:, rank]
            gradients = self.net.gradients(self.x, np.eye(self.logits.shape[1], dtype=self.net.dtype)[classes])
            for name, maps in explain.grad_cams(spatial, gradients).items():
                by_layer[name].append(maps)
            every["saliency"].append(np.abs(gradients["input"]).max(axis=3))
            every["occlusion"].append(drops[np.arange(len(classes)), :, :, classes])
            try:
                every["cam"].append(explain.class_activation_map(self.net, self.x, classes))
            except MbnpError as error:
                found["no_cam"] = str(error)
        found["gradcam"] = {name: blob.add_maps(np.stack(maps, axis=1)) for name, maps in by_layer.items()}
        found["maps"] = {name: blob.add_maps(np.stack(maps, axis=1)) for name, maps in every.items() if maps}
        found["square"] = size
        return found


TIMED = "of the reference layer for one image, the least of three times, on the machine that made this page"


def _statistics(output: np.ndarray) -> dict[str, float]:
    """Return mean, spread, shares of zeros and dead channels, and the least number of a node's output."""
    return explain.statistics({"": output})[""]._asdict() | {"low": float(output.min())}


def _derived(node: Node) -> bool:
    """Return whether the page can compute the node's output from its input's, to the same digits."""
    return node.kind in ("relu", "dropout")


def _channels_first(maps: np.ndarray) -> np.ndarray:
    """Return (N, C, H, W) of (N, H, W, C), or (N, C, 1, 1) of (N, C)."""
    return maps.transpose(0, 3, 1, 2) if maps.ndim == 4 else maps[..., None, None]


def _finite(value: Any) -> Any:
    """Return the value with null for every number that is none: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
