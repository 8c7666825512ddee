"""Training: one step, a whole run, and how good the result is.

history = train.fit(net, data, train.Recipe(epochs=20))
loss, accuracy, predictions = train.evaluate(net, data.test)
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mbnp import datasets, optim
from mbnp.backend import one_blas_thread
from mbnp.errors import DivergedError, MbnpError
from mbnp.network import Network
from mbnp.ops import softmax_cross_entropy as cross_entropy
from mbnp.recipe import Recipe


class Record(NamedTuple):
    """How training stands. Losses in nats, accuracies as shares of 1."""

    epoch: int  # from 1
    step: int  # of the whole run, from 1
    loss: float  # mean over the epoch's batches so far, each before its own update
    accuracy: float  # likewise
    lr: float  # of the last step
    images_per_second: float  # of the median batch, so that the compilation of kernels does not count
    seconds: float  # since the epoch began
    test_loss: float = math.nan  # until the epoch ends
    test_accuracy: float = math.nan


class Evaluation(NamedTuple):
    """Mean loss in nats, the share of right answers, and each picture's predicted class (N,) int64."""

    loss: float
    accuracy: float
    predictions: np.ndarray


def step(
    net: Network, opt: optim.Optimiser, x: np.ndarray, y: np.ndarray, label_smoothing: float = 0.0
) -> float:
    """One update from one batch; returns the mean loss before it.

    x (N, H, W, 3) normalised, in the network's dtype; y (N,) integers. Every BLAS of the process is held at
    one thread meanwhile. Raises DivergedError, the network as it was before, if the loss is NaN or infinite.
    """
    return _step(net, opt, x, y, label_smoothing)[0]


def _step(net, opt, x, y, label_smoothing) -> tuple[float, np.ndarray]:
    """The loss and the logits too, which give `fit` the accuracy without a second forward."""
    # What NumPy would warn of on the way to an infinite loss, the DivergedError says better.
    with one_blas_thread(), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        opt.zero_grad()
        statistics = {name: buffer.value.copy() for name, buffer in net.buffers().items()}
        logits = net.forward(x, train=True)
        loss = float(cross_entropy.forward(logits, y, label_smoothing))
        if not np.isfinite(loss):
            for name, buffer in net.buffers().items():
                buffer.value = statistics[name]
            what = f"the loss is {loss} at step {opt.steps + 1}: {_first_not_finite(net, x)}"
            raise DivergedError(f"{what}; try a lower learning rate")
        net.backward(cross_entropy.backward(logits, y, label_smoothing))
        opt.step()
    return loss, logits


def _first_not_finite(net: Network, x: np.ndarray) -> str:
    if not np.isfinite(x).all():
        return "its pictures are not finite"
    for name, y in net.activations(x).items():  # a weight that is not finite shows in what its layer puts out
        if not np.isfinite(y).all():
            return f"layer {name} is the first that is not finite"
    return "every layer is finite, but the logits are too far apart"


def fit(
    net: Network,
    data: datasets.Dataset,
    recipe: Recipe | None = None,
    on_batch: Callable[[Record], Any] = lambda record: None,
    on_epoch: Callable[[Record], Any] = lambda record: None,
) -> list[Record]:
    """Train on data.train, test on data.test after every epoch; returns one record an epoch.

    The network takes over the data's classes and resolution. It also takes over the data's normalisation, unless
    it has one (`net.preprocessing`): its weights were learned with that, and go on with it. Frozen parameters and
    statistics stay bit for bit. Each epoch leaves out the few pictures that do not fill a last batch, other ones
    every time. The same network, data and recipe end in the same weights. Raises DivergedError; `on_epoch` hears
    of an epoch only if all its losses are finite.
    """
    recipe = recipe or Recipe()
    batches = datasets.count_batches(len(data.train), recipe.batch_size, train=True)
    if net.num_classes != len(data.classes):
        raise MbnpError(
            f"the network has {net.num_classes} outputs and {data.name} {len(data.classes)} classes: "
            f"give it a new head with models.with_new_head(net, {len(data.classes)})"
        )
    if not net.trainable():
        raise MbnpError("every parameter of the network is frozen, so that there is nothing to train")
    if batches == 0:
        raise MbnpError(f"{len(data.train)} training pictures do not fill one batch of {recipe.batch_size}")
    net.output_shape(data.train.images.shape[1:])  # raises for pictures that the network does not take
    opt = recipe.optimiser(net)
    rates = recipe.rates(total=recipe.epochs * batches)
    rng = np.random.default_rng(recipe.seed)
    _take_over(net, data)
    history = []
    for epoch in range(1, recipe.epochs + 1):
        began = time.perf_counter()
        for record in _epoch(epoch, net, opt, rates, data, recipe, rng):
            on_batch(record)
        loss, accuracy, _ = evaluate(net, data.test)
        if not np.isfinite(loss):
            raise DivergedError(f"the test loss is {loss} after step {opt.steps}; try a lower learning rate")
        seconds = time.perf_counter() - began
        record = record._replace(test_loss=loss, test_accuracy=accuracy, seconds=seconds)
        history.append(record)
        on_epoch(record)
    return history


def _take_over(net: Network, data: datasets.Dataset) -> None:
    net.classes = list(data.classes)
    _, height, width, _ = data.train.images.shape
    if height == width:
        net.resolution = height
    if net.preprocessing is None:
        net.preprocessing = {"mean": [float(v) for v in data.mean], "std": [float(v) for v in data.std]}


def _epoch(epoch, net, opt, rates, data, recipe, rng) -> Iterator[Record]:
    """Once through the training pictures, a record after each batch."""
    augment = datasets.augment if recipe.augment else None
    options = {**net.preprocessing, "augment": augment, "dtype": net.dtype}
    total, right, seconds = 0.0, 0, []
    began = ended = time.perf_counter()
    for batch, (x, y) in enumerate(datasets.batches(data.train, recipe.batch_size, rng, **options), start=1):
        opt.set(**rates(opt.steps))
        loss, logits = _step(net, opt, x, y, recipe.label_smoothing)
        total += loss
        right += int(np.count_nonzero(logits.argmax(axis=1) == y))
        previous, ended = ended, time.perf_counter()
        seconds.append(ended - previous)
        speed = len(y) / statistics.median(seconds)
        accuracy = right / (batch * len(y))
        yield Record(epoch, opt.steps, total / batch, accuracy, opt.lr, speed, ended - began)


def evaluate(
    net: Network,
    split: datasets.Split,
    batch_size: int = 256,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Evaluation:
    """Loss and accuracy over every picture of a split; a last batch may be smaller.

    mean, std: how the pictures are normalised; None: as the network was trained (`net.preprocessing`).
    """
    scale = net.preprocessing if mean is None or std is None else {"mean": mean, "std": std}
    if scale is None:
        raise MbnpError("this network was not trained here: pass the mean and std that its pictures had")
    total, predictions = 0.0, []
    with one_blas_thread(), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for x, y in datasets.batches(split, batch_size, **scale, dtype=net.dtype):
            logits = net.forward(x)
            total += float(cross_entropy.forward(logits, y)) * len(y)
            predictions.append(logits.argmax(axis=1))
    predicted = np.concatenate(predictions)
    return Evaluation(total / len(split), float(np.mean(predicted == split.labels)), predicted)
