"""What is timed: one training step or one inference, the same for every contender."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mbnp import cost, models
from mbnp.errors import MbnpError
from mbnp.layers import BatchNorm
from mbnp.network import Network
from mbnp.optim import SGD

COMPARED_BYTES = 1 << 30  # of float64 activations, at most, when a training step's outputs are compared
LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4


@dataclass(frozen=True)
class Job:
    """A training step (work "training") or an inference (work "inference") on one batch of random pictures.

    Everything follows from these fields, so that contenders in different processes get the same numbers.
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
        if self.batch_size < 1 or self.resolution < 1:
            raise MbnpError(
                f"batch size and resolution must be at least 1, got {self.batch_size} and {self.resolution}"
            )

    def __str__(self) -> str:
        work = "training step" if self.work == "training" else "inference"
        pictures = "1 picture" if self.batch_size == 1 else f"{self.batch_size} pictures"
        return f"{work}, {self.model}, {pictures} of {self.resolution} x {self.resolution}"

    def network(self, dtype: Any = np.float32) -> Network:
        """The network, its weights rounded to float32 whatever the dtype."""
        options: dict[str, Any] = {"width_mult": self.width_mult, "seed": self.weights_seed}
        if "resolution" in models.options(self.model):
            options["resolution"] = self.resolution
        net = vary(models.create(self.model, **options))
        if dtype == np.float32:
            return net
        same = models.create(self.model, **options, dtype=dtype)
        same.load_state(net.state())
        return same

    def batch(self, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
        """Pictures x (N, H, W, 3), as if normalised, and labels y (N,)."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.batch_size, self.resolution, self.resolution, 3), np.float32)
        return x.astype(dtype, copy=False), rng.integers(0, 10, self.batch_size)

    def compared(self) -> int:
        """How many of the pictures outputs are compared on: all that the reference has memory for."""
        net = models.create(self.model, width_mult=self.width_mult)
        floats = cost.of(net, (self.resolution, self.resolution, 3)).activation_bytes / 4
        return min(self.batch_size, max(2, int(COMPARED_BYTES / (8 * floats))))


def optimiser(net: Network) -> SGD:
    """The optimiser of a training step."""
    return SGD(net.parameters(), LR, MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)


def vary(net: Network, seed: int = 1) -> Network:
    """BatchNorms as a trained network may have them: with zeros and ones, mixed-up weights would go unseen.

    The variances are about what fresh weights make of a normalised input; with larger ones, the picture would be lost
    on its way through the layers, and every network would agree about the logits.
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
