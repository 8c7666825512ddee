"""What a report says of a network beyond its curves, measured after each epoch of training.

watch = statistics.Watch(data)
train.fit(net, data, recipe, keep=kept.append, watch=watch)
kept[-1].progress.measured      a dict an epoch: "weights", "gradients", "zeros" and "dead", in the order of `layers`
watch.outcome                   what the network said of each test image, after the last epoch
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from mbnp import backend, datasets, tasks, train
from mbnp.datasets import Dataset, Split
from mbnp.detection.detect import Found
from mbnp.layers import HardSwish, ReLU
from mbnp.network import Layer, Network
from mbnp.ops import softmax_cross_entropy as cross_entropy
from mbnp.pages import detections

MOST = 16  # images that are looked at for dead activations, whatever an epoch takes
PIXELS = 2**16  # of them at a time: every feature map is in memory


class Outcome(NamedTuple):
    """The class that was predicted for each test image (N,), and its probability."""

    predictions: np.ndarray
    confidence: np.ndarray


class Detections:
    """What a detector found in each test image, and its measures; they are worked out when they are first asked for."""

    def __init__(self, net: Network, outputs: list[np.ndarray], data: Dataset) -> None:
        self._net, self._outputs, self._data = net, outputs, data

    @functools.cached_property
    def found(self) -> list[Found]:
        task = tasks.of(self._net)
        return task.join([task.predict(some) for some in self._outputs])

    @functools.cached_property
    def scores(self) -> detections.Scores:
        return detections.scores(self.found, self._data.test, self._data.classes)


class LayerNames(NamedTuple):
    """The names of a layer with weights, and of the activation between it and the next one, if there is one."""

    name: str
    activation: str | None


class Watch:
    """Measures for `train.fit`, at the end of each epoch; an epoch of training takes fifty times as long, or longer."""

    def __init__(self, data: Dataset) -> None:
        self.data, self.images = data, sample(data)
        self.outcome: Outcome | Detections | None = None
        self._batches: list[tuple[np.ndarray, np.ndarray]] = []
        self._outputs: list[np.ndarray] = []  # of a detector

    def tested(self, logits: np.ndarray, y: Any) -> None:
        """Keep what was predicted for a batch of test images, and how surely."""
        if logits.ndim == 3:
            self._outputs.append(logits)
        else:
            self._batches.append((logits.argmax(axis=1), cross_entropy.softmax(logits).max(axis=1)))

    def measure(self, net: Network) -> dict[str, Any]:
        """Return the norms of each layer's weights and gradients, and the shares of its activations that are dead."""
        self._finish(net)
        here = dict(net.leaves())
        names = layers(net)
        zeros, dead = silent(net, self.images)
        return {
            "weights": [_norm([p.value for p in here[row.name].parameters().values()]) for row in names],
            "gradients": [_norm([p.grad for p in here[row.name].parameters().values()]) for row in names],
            "zeros": [row.activation and zeros[row.activation] for row in names],
            "dead": [row.activation and dead[row.activation] for row in names],
        }

    def look(self, net: Network, split: Split) -> None:
        """Test a network that `fit` has not just tested."""
        self._batches, self._outputs = [], []
        train.evaluate(net, split, on_logits=self.tested)
        self._finish(net)

    def _finish(self, net: Network) -> None:
        if net.detection is not None:
            self.outcome, self._outputs = Detections(net, self._outputs, self.data), []
            return
        predictions, confidence = (np.concatenate(parts) for parts in zip(*self._batches, strict=True))
        self.outcome, self._batches = Outcome(predictions, confidence), []


def sample(data: Dataset) -> np.ndarray:
    """Return a few test images, always the same and the fewer the shorter an epoch is."""
    count = min(len(data.test), MOST, max(1, len(data.train) // 400))
    return data.test.images[np.linspace(0, len(data.test) - 1, count).astype(int)]


def layers(net: Network) -> list[LayerNames]:
    """Return the layers that multiply by weights, in order, each with the activation that follows it."""
    found: list[LayerNames] = []
    for name, layer in net.leaves():
        if "weight" in layer.parameters() and not layer.buffers():
            found.append(LayerNames(name, None))
        elif found and found[-1].activation is None and _cuts_off(layer):
            found[-1] = LayerNames(found[-1].name, name)
    return found


def silent(net: Network, images: np.ndarray) -> tuple[dict[str, float], dict[str, float]]:
    """Return, by the name of each activation that cuts off, the share of its outputs that are 0 on these images, and
    the share of its channels that are 0 everywhere on all of them.

    The reference layers are run in NumPy, so that nothing has to be compiled for this.
    """
    chosen = {name for name, layer in net.leaves() if _cuts_off(layer)}
    zeros: dict[str, list[float]] = {name: [] for name in chosen}
    alive: dict[str, np.ndarray] = {}
    at_once = max(1, PIXELS // (images.shape[1] * images.shape[2]))
    with backend.use("numpy"), backend.one_pool(), np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, len(images), at_once):
            some = images[first : first + at_once]
            x = datasets.normalise(some, **(net.preprocessing or {}), dtype=net.dtype)
            for name, y in net.activations(x).items():
                if name in chosen:
                    on = y != 0
                    zeros[name].append(len(some) * (1 - float(on.mean())))
                    alive[name] = alive.get(name, np.bool_(False)) | on.any(axis=tuple(range(y.ndim - 1)))
    shares = {name: _short(sum(parts) / len(images)) for name, parts in zeros.items()}
    return shares, {name: _short(1 - float(alive[name].mean())) for name in chosen}


def _cuts_off(layer: Layer) -> bool:
    return isinstance(layer, ReLU | HardSwish)


def _norm(arrays: list[np.ndarray]) -> float:
    return _short(float(np.sqrt(sum(np.sum(np.square(array, dtype=np.float64)) for array in arrays))))


def _short(value: float) -> float:
    return float(f"{value:.6g}")
