"""A workload: one training step or one inference, the same for every candidate."""

import functools
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from mbnp import models, weights
from mbnp.detection import anchors, matching, multibox
from mbnp.errors import MbnpError
from mbnp.layers import BatchNorm, Dropout
from mbnp.network import Network
from mbnp.ops import softmax_cross_entropy
from mbnp.optim import SGD

# Activations, at most, when a training step's outputs are compared: 1 GB in float64.
COMPARED_FLOATS = 1 << 27
SGD_OPTIONS: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


@dataclass(frozen=True)
class Workload:
    """A training step (work "training") or an inference (work "inference") on one batch of random images.

    Everything follows from these fields, so that candidates in different processes get the same numbers.
    A training step is train.step with SGD: Nesterov momentum and weight decay.
    """

    work: str
    model: str
    batch_size: int
    resolution: int
    threads: int
    width_mult: float = 1.0
    weights_seed: int = 0

    def __post_init__(self) -> None:
        if min(self.batch_size, self.resolution) < 1:
            sizes = f"{self.batch_size} and {self.resolution}"
            raise MbnpError(f"batch size and resolution must be at least 1, got {sizes}")

    def __str__(self) -> str:
        work = "training step" if self.work == "training" else "inference"
        images = "1 image" if self.batch_size == 1 else f"{self.batch_size} images"
        return f"{work}, {self.model}, {images} of {self.resolution} x {self.resolution}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """One image's (H, W, C)."""
        return self.resolution, self.resolution, 3

    def network(self, dtype: Any = np.float32) -> Network:
        """Return the network, its weights rounded to float32 whatever the dtype.

        Its dropouts drop nothing: each candidate would draw masks of its own.
        """
        net = self._of_file(dtype) if self.is_file() else self._of_name(dtype)
        for variable in net.variables().values():
            variable.value = variable.value.astype(np.float32)
        for _, layer in net.leaves():
            if isinstance(layer, Dropout):
                layer.rate = 0.0
        return net

    def is_file(self) -> bool:
        """Return whether the model is a checkpoint, or a folder with one, and not a name."""
        return is_file(self.model)

    def _of_name(self, dtype: Any) -> Network:
        options: dict[str, Any] = {"width_mult": self.width_mult, "seed": self.weights_seed}
        if "resolution" in models.options(self.model):
            options["resolution"] = self.resolution
        return vary(models.create(self.model, **options, dtype=dtype))

    def _of_file(self, dtype: Any) -> Network:
        net = weights.load(self.model)
        made = models.from_description(models.description(net), dtype)
        made.load_state(net.state())
        made.detection = net.detection
        return made

    def batch(self, dtype: Any = np.float32) -> tuple[np.ndarray, Any]:
        """Return images x (N, H, W, 3), as if normalised, and labels y (N,); a detector's are `matching.Targets`."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.batch_size, *self.shape), np.float32).astype(dtype, copy=False)
        labels = rng.integers(0, min(10, self.network().num_classes) if self.is_file() else 10, self.batch_size)
        if not self.detects():
            return x, labels
        # Of each image one object, of a tenth to three quarters of its sides.
        sides, places = rng.uniform(0.1, 0.75, (self.batch_size, 1)), rng.random((self.batch_size, 2))
        corners = places * (1 - sides)
        boxes = np.concatenate([corners, corners + sides], axis=1)[:, None]
        net = self.network(dtype)
        return x, matching.targets(labels[:, None], boxes, anchors.of(net), anchors.settings(net)["scales"])

    def detects(self) -> bool:
        return _detects(self.model)

    def loss(self) -> Any:
        """Return the module of the loss of a training step."""
        return multibox if self.detects() else softmax_cross_entropy

    def compared(self) -> int:
        """Return the number of images that outputs are compared on: all that the reference has memory for."""
        floats = sum(math.prod(output) for *_, output in self.network().walk(self.shape))
        return min(self.batch_size, max(2, COMPARED_FLOATS // floats))


@functools.cache
def _detects(model: str) -> bool:
    return (weights.load(model) if is_file(model) else models.create(model, width_mult=0.25)).detects()


def is_file(model: str) -> bool:
    """Return whether a model is named by the path of a checkpoint, or of a folder with one."""
    return model not in models.names() and os.path.exists(model)


def part(y: Any, count: int) -> Any:
    """Return the first labels of a batch, or the first targets."""
    return y[:count] if isinstance(y, np.ndarray) else type(y)(*(array[:count] for array in y))


def optimiser(net: Network) -> SGD:
    """Return the optimiser of a training step."""
    return SGD(net.parameters(), **SGD_OPTIONS)


def vary(net: Network, seed: int = 1) -> Network:
    """Give every BatchNorm arrays that a trained network may have, and return the network.

    With the zeros and ones of a new one, weights in the wrong place would go unseen. The variances are about what fresh
    weights make of a normalised input: larger ones would wash the image out, and all networks would agree.
    """
    rng = np.random.default_rng(seed)
    for _, layer in net.leaves():
        if isinstance(layer, BatchNorm):
            shape = layer.weight.value.shape
            layer.weight.value = rng.uniform(0.5, 1.5, shape)
            layer.bias.value = rng.normal(0, 0.2, shape)
            layer.running_mean.value = rng.normal(0, 0.1, shape)
            layer.running_var.value = rng.uniform(0.1, 0.3, shape)
    return net
