"""A chain of Keras's layers, with their arrays, as a Network of mbnp's.

`_Build` walks along the chain and knows the shape of the data at each point: (H, W, C) for a map, (C,) after the
pooling. Every array is checked against it, so a chain whose layers do not fit one another ends in an error.
"""

import math
from typing import Any

import numpy as np

from mbnp.errors import MbnpError
from mbnp.layers import (
    AveragePool,
    BatchNorm,
    Conv,
    Depthwise,
    Flatten,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Pad,
    Pointwise,
    ReLU,
)
from mbnp.network import Layer, Network, Sequential
from mbnp.weights import files
from mbnp.weights.keras import pixels, settings
from mbnp.weights.keras.arrays import floats
from mbnp.weights.keras.graph import Node

RESOLUTION = 224  # keras.applications' default, where the file names no size

CONVOLUTIONS = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D")
NOTHING = {
    *("InputLayer", "Dropout", "SpatialDropout2D", "GaussianDropout", "AlphaDropout", "GaussianNoise"),
    *("ActivityRegularization", "RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation"),
    *("RandomContrast", "RandomBrightness"),
}  # what Keras runs in training only


def network(nodes: list[Node]) -> Network:
    """The network; its dtype is float64 if all its arrays are, else float32."""
    arrays = [array for node in nodes for array in node.arrays.values()]
    dtype = np.float64 if arrays and all(array.dtype == np.float64 for array in arrays) else np.float32
    build = _Build(*_input_shape(nodes), dtype)
    for node in nodes:
        build.add(node)
    return build.finish()


def _input_shape(nodes: list[Node]) -> tuple[int, int, int]:
    """(H, W, C) of the pictures."""
    for node in nodes:
        shape = node.config.get("batch_shape", node.config.get("batch_input_shape"))
        if shape is not None:
            if not isinstance(shape, list) or len(shape) != 4:
                raise MbnpError(f"its input has shape {repr(shape)[:60]}; mbnp takes pictures (N, H, W, C)")
            h, w, c = (settings.size(node, n) for n in shape[1:])
            if c is None:
                break
            return h or RESOLUTION, w or RESOLUTION, c
        if node.arrays:
            break
    first = next((node for node in nodes if "kernel" in node.arrays), None)
    if first is None or first.arrays["kernel"].ndim != 4:
        raise MbnpError("it does not say what pictures its network takes")
    return RESOLUTION, RESOLUTION, first.arrays["kernel"].shape[2]


class _Build:
    def __init__(self, h: int, w: int, channels: int, dtype: Any) -> None:
        self.shape: tuple[int, ...] = (h, w, channels)
        self.size = h, w
        self.resolution, self.channels, self.dtype = h, channels, dtype
        self.layers: dict[str, Layer] = {}
        self.scale, self.shift = np.ones(channels), np.zeros(channels)  # of pixels 0 to 255, before any layer
        self.scaled = False
        self.margin: Node | None = None  # a ZeroPadding2D that waits for its convolution
        self.closed: Node | None = None  # the closing softmax or sigmoid

    def add(self, node: Node) -> None:
        if node.kind in NOTHING:
            return
        if node.config.get("data_format", "channels_last") not in ("channels_last", None):
            raise MbnpError(f"{node} has channels first; mbnp reads networks with channels last")
        if node.kind in pixels.KINDS:
            self.scale_pixels(node)
            return
        handler = getattr(self, f"_{node.kind}", None) if node.kind.isalnum() else None
        if node.kind == "Lambda":
            raise MbnpError(f"{node} holds code of its author's, which mbnp does not run")
        if handler is None:
            raise MbnpError(f"{node} has no counterpart in mbnp")
        if self.closed and node.kind not in ("Flatten", "Reshape"):
            raise MbnpError(f"{node} comes after the closing {self.closed}; mbnp leaves that out")
        if self.margin and (node.kind not in CONVOLUTIONS or settings.padding(node) == "same"):
            self.pad()
        handler(node)

    def finish(self) -> Network:
        if self.margin:
            self.pad()
        if not any(layer.variables() for layer in self.layers.values()):
            raise MbnpError("its network has no weights")
        if len(self.shape) == 3:
            self.put("pool", GlobalAveragePool())
        net = Network(_as_mobilenet(self.layers) or self.layers, self.resolution, self.channels)
        net.preprocessing = self.preprocessing()
        files.check_square(net, self.size, self.shape)
        return net

    def preprocessing(self) -> dict[str, Any]:
        """x = scale * pixel + shift, as mean and spread on a scale of 0 to 1."""
        if not self.scaled:
            return {"mean": [0.5] * self.channels, "std": [0.5] * self.channels}
        if not (np.isfinite(self.scale).all() and np.isfinite(self.shift).all() and (self.scale > 0).all()):
            raise MbnpError("its layers that scale pixels turn them over, make them equal or infinite")
        std = 1 / (255 * self.scale)
        return {"mean": [float(m) for m in 0.0 - self.shift * std], "std": [float(s) for s in std]}

    def scale_pixels(self, node: Node) -> None:
        if self.layers or self.margin:
            raise MbnpError(f"{node} comes after other layers; mbnp reads it before them")
        scale, shift = pixels.scaling(node, self.channels)
        self.scale, self.shift = self.scale * scale, self.shift * scale + shift
        self.scaled = True

    def put(self, name: str, layer: Layer) -> None:
        name = "".join(c if c.isalnum() or c in "_-" else "_" for c in name[:80]) or "layer"
        if name in self.layers:  # two models inside this one may use the same names
            name = f"{name}_{len(self.layers)}"
        self.layers[name] = layer
        self.shape = layer.output_shape(self.shape)

    def weighted(self, name: str, layer: Layer, **arrays: np.ndarray) -> None:
        for variable, array in arrays.items():
            layer.variables()[variable].value = array
        self.put(name, layer)

    def pad(self) -> None:
        """The ZeroPadding2D that no convolution takes in becomes a layer."""
        node, self.margin = self.margin, None
        if node is not None:
            self.put(node.name, Pad(settings.margin(node)))

    def close(self, node: Node) -> None:
        if len(self.shape) == 3 and self.shape[:2] != (1, 1):
            raise MbnpError(f"the closing activation of {node} is of a map; mbnp reads classifiers")
        if node.config.get("activation") == "sigmoid" and self.shape[-1] > 1:
            raise MbnpError(
                f"{node} answers for every class by itself; mbnp reads one class a picture, a softmax"
            )
        self.closed = node

    # --- convolutions and Dense; c_in is the channels that come in ---

    def _Conv2D(self, node: Node) -> None:
        config, c_in = node.config, self.shape[-1]
        if settings.whole(node, "groups", 1) != 1:
            raise MbnpError(f"{node} has {config['groups']} groups; mbnp reads 1, and DepthwiseConv2D")
        kernel = floats(node, "kernel", (None, None, c_in, None))
        bias = self.bias(node, kernel.shape[-1])
        if "filters" in config and config["filters"] != kernel.shape[-1]:
            raise MbnpError(f"{node} says {repr(config['filters'])[:40]} filters and has {kernel.shape[-1]}")
        size, options = self.window(node, kernel)
        c_out = kernel.shape[-1]
        one = size == (1, 1) and options["stride"] == (1, 1) and options["padding"] in ("same", 0)
        if len(self.shape) == 1 and not one:
            raise MbnpError(f"{node} is a convolution after the pooling, of more than 1x1")
        if one:
            kind = Pointwise if len(self.shape) == 3 else Linear
            layer: Layer = kind(c_in, c_out, bias=bool(bias), dtype=self.dtype)
            kernel = kernel[0, 0]
        else:
            layer = Conv(c_in, c_out, size, **options, bias=bool(bias), dtype=self.dtype)
        self.weighted(node.name, layer, weight=kernel, **bias)
        self.activation(node)

    def _DepthwiseConv2D(self, node: Node) -> None:
        self.depthwise(node, "kernel", node.name, self.bias(node, self.shape[-1]))
        self.activation(node)

    def _SeparableConv2D(self, node: Node) -> None:
        self.depthwise(node, "depthwise_kernel", f"{node.name}_depthwise", {})
        c_in = self.shape[-1]
        kernel = floats(node, "pointwise_kernel", (1, 1, c_in, None))[0, 0]
        bias = self.bias(node, kernel.shape[-1])
        layer = Pointwise(c_in, kernel.shape[-1], bias=bool(bias), dtype=self.dtype)
        self.weighted(f"{node.name}_pointwise", layer, weight=kernel, **bias)
        self.activation(node)

    def depthwise(self, node: Node, variable: str, name: str, bias: dict[str, np.ndarray]) -> None:
        channels = self.shape[-1]
        if len(self.shape) != 3:
            raise MbnpError(f"{node} comes after the pooling")
        if settings.whole(node, "depth_multiplier", 1) != 1:
            raise MbnpError(
                f"{node} has a depth_multiplier of {node.config['depth_multiplier']}; mbnp reads 1"
            )
        kernel = floats(node, variable, (None, None, channels, 1))[..., 0]
        size, options = self.window(node, kernel)
        layer = Depthwise(channels, size, **options, bias=bool(bias), dtype=self.dtype)
        self.weighted(name, layer, weight=kernel, **bias)

    def _Dense(self, node: Node) -> None:
        kernel = floats(node, "kernel", (self.shape[-1], None))
        c_in, c_out = kernel.shape
        bias = self.bias(node, c_out)
        kind = Linear if len(self.shape) == 1 else Pointwise
        layer = kind(c_in, c_out, bias=bool(bias), dtype=self.dtype)
        self.weighted(node.name, layer, weight=kernel, **bias)
        if "units" in node.config and node.config["units"] != c_out:
            raise MbnpError(f"{node} says {repr(node.config['units'])[:40]} units and has {c_out}")
        self.activation(node)

    def bias(self, node: Node, c_out: int) -> dict[str, np.ndarray]:
        return {"bias": floats(node, "bias", (c_out,))} if "bias" in node.arrays else {}

    def window(self, node: Node, kernel: np.ndarray) -> tuple[tuple[int, int], dict[str, Any]]:
        """Kernel size, stride and padding of a convolution, with the ZeroPadding2D before it."""
        size = kernel.shape[:2]
        if node.config.get("kernel_size") is not None and settings.pair(node, "kernel_size", 1) != size:
            raise MbnpError(f"{node} says its kernel is {node.config['kernel_size']} and has {size}")
        if settings.pair(node, "dilation_rate", 1) != (1, 1):
            raise MbnpError(f"{node} is dilated, which mbnp cannot")
        padding = settings.padding(node)
        if self.margin:
            padding, self.margin = settings.margin(self.margin), None
        return size, {"stride": settings.pair(node, "strides", 1), "padding": padding}

    # --- BatchNorm, activations ---

    def _BatchNormalization(self, node: Node) -> None:
        channels, last = self.shape[-1], len(self.shape)
        axis = node.config.get("axis", -1)
        if axis not in (-1, last, [-1], [last]) or node.config.get("renorm"):
            raise MbnpError(
                f"{node} normalises over axis {repr(axis)[:40]} or renormalises; mbnp reads axis -1"
            )
        eps, momentum = settings.scalar(node, "epsilon", 1e-3), settings.scalar(node, "momentum", 0.99)
        if not (eps >= 0 and 0 <= momentum <= 1):
            raise MbnpError(f"{node} has epsilon {eps} and momentum {momentum}")
        names = {
            "weight": "gamma",
            "bias": "beta",
            "running_mean": "moving_mean",
            "running_var": "moving_variance",
        }
        arrays = {
            ours: floats(node, name, (channels,)) for ours, name in names.items() if name in node.arrays
        }
        if arrays["running_var"].min() < 0:
            raise MbnpError(f"{node} has a negative variance")
        layer = BatchNorm(channels, eps, round(1 - momentum, 12), self.dtype)
        self.weighted(node.name, layer, **arrays)

    def _ReLU(self, node: Node) -> None:
        for slope in ("negative_slope", "threshold"):
            if settings.scalar(node, slope, 0.0):
                raise MbnpError(f"{node} has a {slope}, which mbnp's ReLU has not")
        most = node.config.get("max_value")
        if most is not None and not (most := settings.scalar(node, "max_value", 6.0)) > 0:
            raise MbnpError(f"{node} has max_value {most}")
        self.put(node.name, ReLU(most))

    def _Activation(self, node: Node) -> None:
        self.activation(node, node.name)

    def _Softmax(self, node: Node) -> None:
        if node.config.get("axis", -1) not in (-1, len(self.shape), [-1]):
            raise MbnpError(f"{node} is not over the classes")
        self.close(node)

    def activation(self, node: Node, name: str = "") -> None:
        """What the layer's `activation` says: a name, or a description of a layer or function."""
        what = node.config.get("activation")
        if isinstance(what, dict):
            inner = what.get("config")
            if what.get("class_name") == "ReLU" and isinstance(inner, dict):
                return self._ReLU(Node("ReLU", name or f"{node.name}_relu", inner))
            what = inner.get("name") if isinstance(inner, dict) else inner
        if what in ("relu", "relu6"):
            self.put(name or f"{node.name}_relu", ReLU(6.0 if what == "relu6" else None))
        elif what in ("softmax", "sigmoid"):
            self.close(node)
        elif what not in (None, "linear"):
            raise MbnpError(
                f"{node} has the activation {repr(what)[:40]}; mbnp reads relu, relu6, softmax, sigmoid"
            )
        return None

    # --- pooling and shape ---

    def _GlobalAveragePooling2D(self, node: Node) -> None:
        self.put(node.name, GlobalAveragePool())

    def _AveragePooling2D(self, node: Node) -> None:
        self.pool(node, AveragePool, count_padding=False)

    def _MaxPooling2D(self, node: Node) -> None:
        self.pool(node, MaxPool)

    def pool(self, node: Node, kind: Any, **options: Any) -> None:
        size = settings.pair(node, "pool_size", 2)
        stride = size if node.config.get("strides") is None else settings.pair(node, "strides", 2)
        self.put(node.name, kind(size, stride, settings.padding(node), **options))

    def _ZeroPadding2D(self, node: Node) -> None:
        settings.margin(node)
        self.margin = node

    def _Flatten(self, node: Node) -> None:
        if len(self.shape) == 3:
            hint = f"this network takes pictures of {self.resolution} pixels"
            self.put(node.name, Flatten(hint, None if self.shape[:2] == (1, 1) else "HWC"))

    def _Reshape(self, node: Node) -> None:
        # To a row, or the (1, 1, C) that keras.applications makes of (C,) before its classifier.
        target, c = node.config.get("target_shape"), self.shape[-1]
        if target in ([math.prod(self.shape)], [-1]):
            self._Flatten(node)
        elif target not in ([1, 1, c], [1, 1, -1]) or math.prod(self.shape) != c:
            raise MbnpError(f"{node} makes {repr(target)[:40]} of {self.shape}, which mbnp cannot")


def _as_mobilenet(layers: dict[str, Layer]) -> dict[str, Layer] | None:
    """The names of `models.mobilenet_v1`, if the layers are a MobileNet's: stem, separable blocks, pooling, head."""
    names, kinds = list(layers), [type(layer) for layer in layers.values()]
    stem, block = [Conv, BatchNorm, ReLU], [Depthwise, BatchNorm, ReLU, Pointwise, BatchNorm, ReLU]
    blocks, at = [], len(stem)
    while kinds[at : at + len(block)] == block:
        blocks.append(names[at : at + len(block)])
        at += len(block)
    if kinds[: len(stem)] != stem or not blocks or kinds[at : at + 1] != [GlobalAveragePool]:
        return None
    features = [Sequential([layers[name] for name in part]) for part in (names[: len(stem)], *blocks)]
    head = names[at + 1 :]
    rest = {"classifier": layers[head[0]]} if kinds[at + 1 :] == [Linear] else {n: layers[n] for n in head}
    if {"features", "pool"} & rest.keys():
        return None
    return {"features": Sequential(features), "pool": layers[names[at]], **rest}
