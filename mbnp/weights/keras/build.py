"""A sequence of Keras's layers, with their arrays, as a Network of mbnp's.

`_Build` walks along the sequence and knows the shape of the data at each point: (H, W, C) for a feature map, (C,)
after the pooling. Every array is checked against it, so layers that do not fit one another end in an error.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mbnp import layers
from mbnp.errors import MbnpError, short
from mbnp.network import Gate, Layer, Network, Residual, Sequential
from mbnp.weights import layouts
from mbnp.weights.files import check_square
from mbnp.weights.keras import pixels
from mbnp.weights.keras.layer import WEIGHTS, KerasLayer, flat

RESOLUTION = 224  # keras.applications' default, where the file names no size
LARGEST_RESOLUTION = 10_000

# Keras's layers with kernels, and mbnp's class for each of them.
KERNELS: dict[str, dict[str, type[Layer]]] = {
    "Conv2D": {"kernel": layers.Conv},
    "DepthwiseConv2D": {"kernel": layers.Depthwise},
    "SeparableConv2D": {"depthwise_kernel": layers.Depthwise, "pointwise_kernel": layers.Pointwise},
    "Dense": {"kernel": layers.Linear},
}
STEM, BLOCK = "conv batchnorm relu", "depthwise batchnorm relu pointwise batchnorm relu"  # of MobileNetV1
GLOBAL = ("GlobalAveragePooling2D", "GlobalMaxPooling2D")
ON_FEATURE_MAPS = ("ZeroPadding2D", "MaxPooling2D", "AveragePooling2D", *GLOBAL)
# Layers that do nothing in inference; the tests run each of them with training=False.
IDENTITIES = (
    *("Identity", "Dropout", "SpatialDropout2D", "GaussianDropout", "AlphaDropout", "GaussianNoise"),
    *("ActivityRegularization", "RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation", "RandomContrast"),
    *("RandomBrightness", "RandomHue", "RandomSaturation", "RandomSharpness", "RandomShear", "RandomGrayscale"),
    *("RandomInvert", "RandomErasing", "RandomPerspective", "RandomPosterization", "RandomColorDegeneration"),
    *("RandomColorJitter", "RandomElasticTransform", "RandomGaussianBlur", "RandAugment", "AugMix", "MixUp", "CutMix"),
    *("Equalization", "Solarization"),
)
ACT_IN_INFERENCE = ("AutoContrast", "ContrastLimitedAdaptiveHistogramEqualization")
SIZES = ("Resizing", "CenterCrop", "RandomCrop")


def network(sequence: list[KerasLayer], say: Callable[[str], object]) -> Network:
    """Return the network; its dtype is float64 if all its arrays are, else float32."""
    dtypes = {array.dtype for layer in flat(sequence) for array in layer.arrays.values()}
    build = _Build(_input_shape(sequence), np.float64 if dtypes == {np.dtype(np.float64)} else np.float32, say)
    build.run(sequence)
    return build.finish()


def _input_shape(sequence: list[KerasLayer]) -> tuple[int, int, int]:
    """Return (H, W, C) of the images."""
    for layer in sequence:
        shape = layer.config.get("batch_shape", layer.config.get("batch_input_shape"))
        if shape is not None:
            if not isinstance(shape, list) or len(shape) != 4:
                raise MbnpError(f"its input has shape {short(shape)}; mbnp takes images (N, H, W, C)")
            for n in shape[1:]:
                if n is not None and (type(n) is not int or not 1 <= n <= LARGEST_RESOLUTION):
                    raise MbnpError(f"{layer} has a side of {short(n)}, not 1 to {LARGEST_RESOLUTION} pixels")
            _, h, w, c = shape
            if c is None:
                break
            return h or RESOLUTION, w or RESOLUTION, c
        if layer.arrays:
            break
    first = next((layer for layer in flat(sequence) if "kernel" in layer.arrays), None)
    if first is None or first.arrays["kernel"].ndim != 4:
        raise MbnpError("it does not say what images its network takes")
    return RESOLUTION, RESOLUTION, first.arrays["kernel"].shape[2]


class _Build:
    def __init__(self, shape: tuple[int, ...], dtype: Any, say: Callable[[str], object]) -> None:
        self.shape, self.say = shape, say
        (*self.size, self.channels), self.dtype = shape, dtype
        self.layers: dict[str, Layer] = {}
        # Of pixels 0 to 255, before any layer.
        self.scale, self.shift = np.ones(self.channels), np.zeros(self.channels)
        self.scaled = False
        self.inside: list[str] = []  # the kinds of layers that join the branches we are in
        self.margin: KerasLayer | None = None  # a ZeroPadding2D that waits for its convolution
        self.closed: KerasLayer | None = None  # the closing softmax or sigmoid

    def run(self, sequence: list[KerasLayer]) -> None:
        """Add all layers, those of a hard-sigmoid as one."""
        at = 0
        while at < len(sequence):
            hard = _is_hard_sigmoid(sequence[at : at + 3])
            if hard:
                self.put(sequence[at + 1].name, layers.HardSigmoid())
            else:
                self.add(sequence[at])
            at += 3 if hard else 1

    def join(self, layer: KerasLayer) -> None:
        """Add a sum of two branches, or a tensor times what a branch makes of it: a gate, or hard-swish."""
        self.pad()
        made = [self.branch(layer.kind, branch) for branch in layer.branches]
        made.sort(key=lambda pair: -len(pair[0]))  # the body, or the gate, first
        (body, shape), (other, other_shape) = made
        if layer.kind == "Add":
            if not body or shape != other_shape:
                raise MbnpError(f"{layer} adds a tensor to itself, or {shape} to {other_shape}")
            self.put(layer.name, Residual(body, Sequential(other) if other else None))
        elif other or not body:
            raise MbnpError(f"{layer} multiplies two tensors that are both computed; mbnp reads x * gate(x)")
        elif [type(one) for one in body.values()] == [layers.HardSigmoid]:
            self.put(layer.name, layers.HardSwish())
        else:
            self.put(layer.name, Gate(body))

    def branch(self, kind: str, sequence: list[KerasLayer]) -> tuple[dict[str, Layer], tuple[int, ...]]:
        """Return the layers of a branch that begins here, and the shape that they make."""
        outer, shape = self.layers, self.shape
        self.layers = {}
        self.inside.append(kind)
        self.run(sequence)
        self.pad()
        self.inside.pop()
        found, made = self.layers, self.shape
        self.layers, self.shape = outer, shape
        if self.closed:
            raise MbnpError(f"the closing {self.closed} is in a branch; mbnp leaves out one at the end")
        return found, made

    def add(self, layer: KerasLayer) -> None:
        if layer.branches:
            self.join(layer)
            return
        if layer.kind == "InputLayer" or layer.kind in IDENTITIES:
            return
        if layer.config.get("data_format", "channels_last") not in ("channels_last", None):
            raise MbnpError(f"{layer} has channels first; mbnp reads networks with channels last")
        if layer.kind in pixels.KINDS:
            self.scale_pixels(layer)
            return
        if layer.kind in SIZES:
            self.resize(layer)
            return
        handler = self.weighted if layer.kind in KERNELS else getattr(self, f"_{layer.kind}", None)
        if layer.kind == "Lambda":
            raise MbnpError(f"{layer} holds code of its author's, which mbnp does not run")
        if layer.kind in ACT_IN_INFERENCE:
            raise MbnpError(f"{layer} changes images in inference, too, and has no counterpart in mbnp")
        if handler is None or not layer.kind.isalnum():
            raise MbnpError(f"{layer} has no counterpart in mbnp")
        if self.closed and layer.kind not in ("Flatten", "Reshape"):
            raise MbnpError(f"{layer} comes after the closing {self.closed}; mbnp leaves that out")
        if len(self.shape) == 1 and layer.kind in ON_FEATURE_MAPS:
            raise MbnpError(f"{layer} comes after the pooling")
        if self.margin and ("Conv2D" not in layer.kind or layer.padding() == "same"):
            self.pad()
        handler(layer)

    def finish(self) -> Network:
        self.pad()
        if not any(layer.variables() for layer in self.layers.values()):
            raise MbnpError("its network has no weights")
        if len(self.shape) == 3:
            self.put("pool", layers.GlobalAveragePool())
        net = Network(_as_mobilenet(self.layers) or self.layers, self.size[0], self.channels)
        net.preprocessing = self.preprocessing()
        check_square(net, tuple(self.size), self.shape)
        return net

    def preprocessing(self) -> dict[str, Any]:
        """Return x = scale * pixel + shift as mean and standard deviation on a scale of 0 to 1."""
        if not self.scaled:
            return {"mean": [0.5] * self.channels, "std": [0.5] * self.channels}
        if not (np.isfinite(self.scale).all() and np.isfinite(self.shift).all() and (self.scale > 0).all()):
            raise MbnpError("its layers that scale pixels turn them over, make them equal or infinite")
        std = 1 / (255 * self.scale)
        return {"mean": (0.0 - self.shift * std).tolist(), "std": std.tolist()}

    def scale_pixels(self, layer: KerasLayer) -> None:
        if self.layers or self.margin or self.inside:
            raise MbnpError(f"{layer} comes after other layers; mbnp reads it before them")
        scale, shift = pixels.scaling(layer, self.channels)
        self.scale, self.shift = self.scale * scale, self.shift * scale + shift
        self.scaled = True

    def resize(self, layer: KerasLayer) -> None:
        """Let the network take images of the size that a layer at its beginning brings them to."""
        size = layer.pair("height", 0)[0], layer.pair("width", 0)[0]
        if self.layers or self.margin or self.inside:
            raise MbnpError(f"{layer} comes after other layers; mbnp reads it before them")
        if size == self.shape[:2]:
            return
        if layer.kind == "RandomCrop":
            raise MbnpError(f"{layer} gets images of {self.shape[:2]}: in inference, Keras's versions differ on that")
        if layer.config.get("pad_to_aspect_ratio"):
            raise MbnpError(f"{layer} pads images to their shape, which mbnp does not")
        self.size, self.shape = list(size), (*size, self.channels)
        self.say(f"{layer} is left to mbnp predict, which resizes the shorter side and crops the middle")

    def put(self, name: str, layer: Layer) -> None:
        name = "".join(c if c.isalnum() or c in "_-" else "_" for c in name[:80]) or "layer"
        if name in self.layers:  # two models inside this one may use the same names
            name = f"{name}_{len(self.layers)}"
        self.layers[name] = layer
        self.shape = layer.output_shape(self.shape)

    def pad(self) -> None:
        """Add the ZeroPadding2D that no convolution takes in as a layer."""
        layer, self.margin = self.margin, None
        if layer is not None:
            self.put(layer.name, layers.Pad(layer.margin()))

    def close(self, layer: KerasLayer) -> None:
        if len(self.shape) == 3 and self.shape[:2] != (1, 1):
            raise MbnpError(f"the closing activation of {layer} is of a feature map; mbnp reads classifiers")
        if layer.config.get("activation") == "sigmoid" and self.shape[-1] > 1:
            self.say(f"{layer} answers for every class by itself; the probabilities of mbnp predict add up to 1")
        self.closed = layer

    # --- convolutions and Dense ---

    def weighted(self, layer: KerasLayer) -> None:
        for key in ("groups", "depth_multiplier", "dilation_rate"):
            if layer.config.get(key, 1) not in (1, [1, 1]):
                raise MbnpError(f"{layer} has {key} {short(layer.config[key])}; mbnp reads 1")
        for variable, stored in KERNELS[layer.kind].items():
            self.kernel(layer, variable, stored)
        self.activation(layer)

    def kernel(self, layer: KerasLayer, variable: str, stored: type[Layer]) -> None:
        """Add a layer of the class `stored` with the weights in `variable`; a matrix becomes Linear or Pointwise."""
        w = layer.floats(variable, layouts.axes(stored)["keras"], self.shape[-1])
        flat, size, options = len(self.shape) == 1, w.shape[:2], {}
        if stored in (layers.Conv, layers.Depthwise):
            options = self.window(layer, size)
            if stored is layers.Conv and size == options["stride"] == (1, 1) and options["padding"] in ("same", 0):
                stored, options = layers.Pointwise, {}
        if flat and options:
            raise MbnpError(f"{layer} comes after the pooling")
        w = layouts.convert(w, stored, "keras", "mbnp")
        b, c_out = None, w.shape[-1]
        if variable != "depthwise_kernel":  # which has no bias before the pointwise one
            b = layer.floats("bias", "c", c_out) if "bias" in layer.arrays else None
            for key in {"filters", "units"} & layer.config.keys():
                if layer.config[key] != c_out:
                    raise MbnpError(f"{layer} says {short(layer.config[key])} {key} and has {c_out}")
        if w.ndim == 2:
            stored = layers.Linear if flat else layers.Pointwise
        name = f"{layer.name}_{variable}".removesuffix("_kernel")
        self.put(name, layouts.layer(stored, w, b, self.dtype, **options))

    def window(self, layer: KerasLayer, size: tuple[int, ...]) -> dict[str, Any]:
        """Return stride and padding of a convolution, with the ZeroPadding2D before it."""
        if layer.config.get("kernel_size") is not None and layer.pair("kernel_size", 1) != size:
            raise MbnpError(f"{layer} says its kernel is {layer.config['kernel_size']} and has {size}")
        padding = layer.padding()
        if self.margin:
            padding, self.margin = self.margin.margin(), None
        return {"stride": layer.pair("strides", 1), "padding": padding}

    # --- BatchNorm, activations ---

    def _BatchNormalization(self, layer: KerasLayer) -> None:
        channels, last = self.shape[-1], len(self.shape)
        axis = layer.config.get("axis", -1)
        if axis not in (-1, last, [-1], [last]) or layer.config.get("renorm"):
            raise MbnpError(f"{layer} normalises axis {short(axis)} or renormalises; mbnp reads axis -1")
        eps, momentum = layer.scalar("epsilon", 1e-3), layer.scalar("momentum", 0.99)
        if not (eps >= 0 and 0 <= momentum <= 1):
            raise MbnpError(f"{layer} has epsilon {eps} and momentum {momentum}")
        bn = layers.BatchNorm(channels, eps, round(1 - momentum, 12), self.dtype)
        for name, variable in zip(WEIGHTS[layer.kind], bn.variables().values(), strict=True):
            if name in layer.arrays:
                variable.value = layer.floats(name, "c", channels)
        if bn.running_var.value.min() < 0:
            raise MbnpError(f"{layer} has a negative variance")
        self.put(layer.name, bn)

    def _ReLU(self, layer: KerasLayer) -> None:
        for slope in ("negative_slope", "threshold"):
            if layer.scalar(slope, 0.0):
                raise MbnpError(f"{layer} has a {slope}, which mbnp's ReLU has not")
        most = layer.config.get("max_value")
        if most is not None and not (most := layer.scalar("max_value", 6.0)) > 0:
            raise MbnpError(f"{layer} has max_value {most}")
        self.put(layer.name, layers.ReLU(most))

    def _Softmax(self, layer: KerasLayer) -> None:
        if layer.config.get("axis", -1) not in (-1, len(self.shape), [-1]):
            raise MbnpError(f"{layer} is not over the classes")
        self.close(layer)

    def activation(self, layer: KerasLayer) -> None:
        """Add the layer's `activation`: a name, or a description of a layer or function."""
        what, name = layer.config.get("activation"), f"{layer.name}_relu"
        if layer.kind == "Activation":
            name = layer.name
        if isinstance(what, dict):
            inner = what.get("config")
            if what.get("class_name") == "ReLU" and isinstance(inner, dict):
                self._ReLU(KerasLayer("ReLU", name, inner))
                return
            what = inner.get("name") if isinstance(inner, dict) else inner
        if what in ("relu", "relu6"):
            self.put(name, layers.ReLU(6.0 if what == "relu6" else None))
        elif what in ("hard_silu", "hard_swish"):
            self.put(name, layers.HardSwish())
        elif what in ("softmax", "sigmoid"):
            self.close(layer)
        elif what not in (None, "linear"):
            raise MbnpError(
                f"{layer} has the activation {short(what)}; mbnp reads relu, relu6, hard_silu, softmax, sigmoid"
            )

    _Activation = activation

    # --- pooling and shape ---

    def _GlobalAveragePooling2D(self, layer: KerasLayer) -> None:
        self.put(layer.name, layers.Squeeze() if "Multiply" in self.inside[-1:] else layers.GlobalAveragePool())

    def _GlobalMaxPooling2D(self, layer: KerasLayer) -> None:
        self.put(layer.name, layers.MaxPool((self.shape[0], self.shape[1])))
        self._Flatten(KerasLayer("Flatten", f"{layer.name}_flat", {}))

    def _AveragePooling2D(self, layer: KerasLayer) -> None:
        average = layer.kind == "AveragePooling2D"
        size = layer.pair("pool_size", 2)
        stride = size if layer.config.get("strides") is None else layer.pair("strides", 2)
        options = {"size": size, "stride": stride, "padding": layer.padding()}
        pool = layers.AveragePool(**options, count_padding=False) if average else layers.MaxPool(**options)
        self.put(layer.name, pool)

    _MaxPooling2D = _AveragePooling2D

    def _ZeroPadding2D(self, layer: KerasLayer) -> None:
        layer.margin()
        self.margin = layer

    def _Flatten(self, layer: KerasLayer) -> None:
        if len(self.shape) == 3:
            hint = f"this network takes images of {self.size[0]} pixels"
            self.put(layer.name, layers.Flatten(hint, None if self.shape[:2] == (1, 1) else "HWC"))

    def _Reshape(self, layer: KerasLayer) -> None:
        # To a row, or the (1, 1, C) that keras.applications makes of (C,) before its classifier.
        target, c = layer.config.get("target_shape"), self.shape[-1]
        if target in ([math.prod(self.shape)], [-1]):
            self._Flatten(layer)
        elif target not in ([1, 1, c], [1, 1, -1]) or math.prod(self.shape) != c:
            raise MbnpError(f"{layer} makes {short(target)} of {self.shape}, which mbnp cannot")


def _is_hard_sigmoid(three: list[KerasLayer]) -> bool:
    """Return whether layers are keras.applications' relu6(x + 3) * (1 / 6)."""
    if [layer.kind for layer in three[:2]] != ["Add", "ReLU"] or len(three) < 3:
        return False
    first, relu, last = three
    constants = [[o for o in layer.operands if type(o) in (int, float)] for layer in (first, last)]
    by = {"Multiply": 1 / 6, "TrueDivide": 6.0, "Divide": 6.0}.get(last.kind)
    if first.branches or last.branches or by is None or [len(c) for c in constants] != [1, 1]:
        return False
    (plus,), (factor,) = constants
    return plus == 3 and relu.config.get("max_value") == 6 and math.isclose(factor, by, rel_tol=1e-6)


def _as_mobilenet(found: dict[str, Layer]) -> dict[str, Layer] | None:
    """Return the layers under `models.mobilenet_v1`'s names if they are stem, separable blocks, pooling, classifier."""
    names, kinds = list(found), [layer.kind for layer in found.values()]
    stem, block = STEM.split(), BLOCK.split()
    end = kinds.index("global-average-pool") if "global-average-pool" in kinds else 0
    blocks = (end - len(stem)) // len(block)
    if blocks < 1 or kinds[:end] != stem + blocks * block:
        return None
    cuts = [0, *range(len(stem), end + 1, len(block))]
    features = [Sequential([found[name] for name in names[a:b]]) for a, b in itertools.pairwise(cuts)]
    rest = {name: found[name] for name in names[end + 1 :]}
    if kinds[end + 1 :] == ["linear"]:
        rest = {"classifier": found[names[-1]]}
    if {"features", "pool"} & rest.keys():
        return None
    return {"features": Sequential(features), "pool": found[names[end]], **rest}
