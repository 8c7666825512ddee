"""A whole network: a chain of layers, and what files and commands say of it.

What it is made of can be had from here, too: the interface of layers (`layer.py`) and their containers
(`containers.py`).
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from mbnp import renamed, tables
from mbnp.containers import Gate, Pyramid, Residual, Sequential
from mbnp.errors import MbnpError, refuse_mask
from mbnp.layer import Layer, Skipped

__all__ = ["Gate", "Layer", "Network", "Pyramid", "Residual", "Sequential", "Skipped"]

__getattr__ = renamed.module_names(
    __name__, {name: f"mbnp.parameter:{name}" for name in ("Variable", "Parameter", "Buffer")}
)


class Network(Sequential):
    """A whole network: images in, logits out, with what a checkpoint needs to build it again.

    needs_dx: set to True, backward returns the gradient of the images, even through frozen layers at the start.
    """

    needs_dx = False

    def __init__(self, layers: Mapping[str, Layer], resolution: int, channels: int = 3) -> None:
        super().__init__(layers)
        self.resolution = resolution  # of the images it is meant for; forward takes what the layers allow
        self.channels = channels
        self.arch: dict[str, Any] = {}  # what builds it again, for `models.from_description`
        self.built_as: list[Any] | None = None  # the layers that `arch` builds, as spec.py describes them
        self.classes: list[str] | None = None  # the names of the classes, where they are known
        # {"mean": [...], "std": [...]} of x, on a scale of 0 to 1, and "order": "rgb" (where not given) or "bgr".
        self.preprocessing: dict[str, Any] | None = None
        # Of a detector: {"anchors": [[[width, height], ...], ...] for each stage, in shares of the image's, "scales":
        # [x, y, width, height], "scores": "softmax" or "sigmoid", "resize": "stretch" or "pad"}; see mbnp/detection.
        self.detection: dict[str, Any] | None = None

    def __str__(self) -> str:
        """List layers, output shapes and parameters, for images of the network's own resolution."""
        walked: list[tuple[str, Layer, tuple]]
        try:
            walk = self.walk((self.resolution, self.resolution, self.channels))
            walked = [(name, layer, shape) for name, layer, _, shape in walk]
        except MbnpError:  # layers that do not take images of this resolution
            walked = [(name, layer, ()) for name, layer in self.leaves()]
        rows = []
        for name, layer, shape in walked:
            count = sum(p.value.size for p in layer.parameters().values())
            rows.append((name, type(layer).__name__, "x".join(map(str, shape)), f"{count:,}" if count else ""))
        total = sum(p.value.size for p in self.parameters().values())
        name = self.arch.get("name", type(self).__name__)
        title = f"{name}, images of {self.resolution} x {self.resolution}; {total:,} parameters"
        return f"{title}\n{tables.table(('layer', 'kind', 'output', 'parameters'), rows, left=3)}"

    @property
    def num_classes(self) -> int:
        """The number of logits: the outputs of the last layer with weights. A detector's first logit is background."""
        if self.detects():
            return self.output_shape((self.resolution, self.resolution, self.channels))[-1] - 5
        *_, last = (layer for _, layer in self.leaves() if "weight" in layer.variables())
        return last.variables()["weight"].value.shape[-1]

    @property
    def dtype(self) -> np.dtype:
        """The type of its parameters; float32 where it has none."""
        values = (v.value.dtype for _, layer in self.leaves() for v in layer.variables().values())
        return next(values, np.dtype(np.float32))

    def detects(self) -> bool:
        """Return whether this is a detector: its last layer is a Pyramid."""
        return bool(self.layers) and isinstance(list(self.layers.values())[-1], Pyramid)

    def grids(self) -> list[tuple[int, int]]:
        """Return rows and columns of each feature map on which a detector has heads, at its own resolution."""
        *body, pyramid = self.layers.values()
        shape: tuple[int, ...] = (self.resolution, self.resolution, self.channels)
        for layer in body:
            shape = layer.output_shape(shape)
        assert isinstance(pyramid, Pyramid)
        return [(h, w) for (_, (h, w, _)), _ in pyramid.head_shapes(shape)]

    def freeze_until(self, name: str) -> None:
        """Freeze every parameter up to the end of the layer or block `name`, and unfreeze all later ones.

        What is frozen does not learn, the statistics of its BatchNorms stay, and backward costs nothing there.
        The name is a block's (`conv2_5`, `features.7`) or a layer's (`conv2_5.3`); MbnpError for one that is unknown.
        """
        leaves = list(self.leaves())
        inside = [i for i, (leaf, _) in enumerate(leaves) if f"{leaf}.".startswith(f"{name}.")]
        if not inside:
            blocks = dict.fromkeys(leaf.rpartition(".")[0] or leaf for leaf, layer in leaves if layer.parameters())
            raise MbnpError(f"no layer is named {name!r}: choose one of {', '.join(blocks)}, or a layer inside one")
        for i, (_, layer) in enumerate(leaves):
            for p in layer.parameters().values():
                p.frozen = i <= inside[-1]

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        """Return the logits (N, classes) of normalised images x (N, H, W, 3) in the network's dtype.

        A detector returns (N, anchors, 4 + 1 + classes): a box's offsets, and the logits of background and the classes.
        """
        self.check_input(x)
        return super().forward(x, train)

    def gradients(self, x: np.ndarray, dlogits: np.ndarray) -> dict[str, np.ndarray]:
        """Return the gradient of sum(logits * dlogits) with respect to every layer's output in inference.

        The names are those of `activations`; "input" is the gradient of the images x (N, H, W, 3), so that no layer may
        have this name. BatchNorm uses its running statistics, and dropout does nothing. dlogits has the logits' shape
        (N, classes) and dtype: for the gradient of one logit it is 1 there, and 0 elsewhere. All of it happens in a
        copy: the network and the gradients of its parameters stay as they are.
        """
        self.check_input(x)
        if "input" in self.layers:
            raise MbnpError("a layer is named 'input', as the gradient of the images would be: rename the layer")
        net, found = copy.deepcopy(self), dict[str, np.ndarray]()
        names = [name for name, _ in net.parts() if name]
        for name, layer in net.parts():
            layer.still()
            _record_dy(layer, name, found)
        net.needs_dx = True
        _check_dlogits(dlogits, net.forward(x, train=True))
        dx = net.backward(dlogits.copy())
        assert dx is not None  # since needs_dx is true
        return {name: found[name] for name in names if name in found} | {"input": dx}

    def check_input(self, x: np.ndarray) -> None:
        """Raise an MbnpError that names what is wrong with x, if anything is."""
        if not isinstance(x, np.ndarray):
            raise MbnpError(f"x must be a NumPy array (N, H, W, {self.channels}), got {type(x).__name__}")
        refuse_mask("x", x)
        if x.ndim == 4 and x.shape[3] != self.channels and x.shape[1] == self.channels:
            raise MbnpError(f"x has shape {x.shape}, channels first; pass x.transpose(0, 2, 3, 1)")
        if x.ndim != 4 or x.shape[3] != self.channels:
            raise MbnpError(f"x must have shape (N, H, W, {self.channels}), got {x.shape}")
        if len(x) == 0:
            raise MbnpError(f"x holds no images: its shape is {x.shape}")
        if x.dtype != self.dtype:
            raise MbnpError(f"x is {x.dtype} and the network {self.dtype}; pass x.astype(net.dtype)")


def _record_dy(layer: Layer, name: str, found: dict[str, np.ndarray]) -> None:
    """Make the layer's backward keep dy, the gradient of its output, in `found`."""
    backward = layer.backward

    def recorded(dy: np.ndarray) -> np.ndarray:
        found[name] = dy
        return backward(dy)

    layer.backward = recorded  # type: ignore[method-assign]


def _check_dlogits(dlogits: np.ndarray, logits: np.ndarray) -> None:
    got = dlogits.shape if isinstance(dlogits, np.ndarray) else f"a {type(dlogits).__name__}"
    if got != logits.shape:
        raise MbnpError(f"dlogits must be a NumPy array of the logits' shape {logits.shape}, got {got}")
    refuse_mask("dlogits", dlogits)
    if dlogits.dtype != logits.dtype:
        raise MbnpError(f"dlogits is {dlogits.dtype} and the logits are {logits.dtype}; pass dlogits.astype(net.dtype)")
