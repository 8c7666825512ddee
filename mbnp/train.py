"""Training: one step, a whole run, and its evaluation.

history = train.fit(net, data, train.Recipe(epochs=20))
loss, accuracy, predictions = train.evaluate(net, data.test)

A run that is to be continued keeps a `Snapshot` of itself, and goes on from the last one to the very same numbers:

kept = []
train.fit(net, data, recipe, keep=kept.append)
train.fit(net, data, recipe, resume=kept[-1])
"""

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import psutil

from mbnp import datasets, optim, spec, tasks
from mbnp.backend import one_pool
from mbnp.errors import DivergedError, MbnpError
from mbnp.network import Network
from mbnp.ops import softmax_cross_entropy as cross_entropy
from mbnp.recipe import Recipe
from mbnp.tasks import Loss, Task


class Record(NamedTuple):
    """How far training is and how well it does. Losses in nats, accuracies from 0 to 1.

    A detector's test accuracy is its mean average precision at overlap 0.5 (mAP@0.5), and its training accuracy the
    share of the anchors on objects that name its class before the others; its losses are those of `detection.multibox`.
    """

    epoch: int  # from 1
    step: int  # of the whole run, from 1
    loss: float  # mean over the epoch's batches so far, each before its own update
    accuracy: float  # likewise
    lr: float  # of the last step
    images_per_second: float  # of the median batch, so that the compilation of kernels does not count
    seconds: float  # since the epoch began
    test_loss: float = math.nan  # until the epoch ends
    test_accuracy: float = math.nan


@dataclass
class Progress:
    """How far a run is, in plain values, which JSON can hold."""

    epoch: int = 1  # the one that runs or comes next, from 1
    batch: int = 0  # how many of its batches are done
    loss: float = 0.0  # the sum of theirs
    right: float = 0  # how many of their images were predicted rightly
    seconds: float = 0.0  # that they took
    order: Mapping[str, Any] = field(default_factory=dict)  # the generator as the epoch began
    generator: Mapping[str, Any] = field(default_factory=dict)  # as it is now
    dropout: Mapping[str, Any] = field(default_factory=dict)  # the network's generators, by name
    history: list[Record] = field(default_factory=list)  # of the epochs that are over
    phases: dict[str, float] = field(default_factory=dict)  # the epoch's seconds of each, where somebody watches
    measured: list[dict[str, Any]] = field(default_factory=list)  # what was found after each epoch, likewise


class Snapshot(NamedTuple):
    """Everything that the rest of a run depends on, between two of its steps."""

    network: dict[str, np.ndarray]  # net.state()
    optimiser: dict[str, np.ndarray]  # opt.state()
    progress: Progress


class Watch(Protocol):
    """Looks on while `fit` trains, and says what is to be kept of each epoch."""

    def tested(self, logits: np.ndarray, y: np.ndarray, /) -> Any:
        """Take the logits and labels of a batch of test images; the batches come in order, after each epoch."""

    def measure(self, net: Network, /) -> dict[str, Any]:
        """Return what to keep, in values that JSON can hold; the gradients are those of the epoch's last batch."""


class Evaluation(NamedTuple):
    """Mean loss in nats, accuracy from 0 to 1, and each image's predicted class (N,) int64.

    Of a detector: the mean of `detection.multibox`, mAP@0.5, and what was found in each image (`detection.Found`).
    """

    loss: float
    accuracy: float
    predictions: Any


def step(
    net: Network,
    opt: optim.Optimiser,
    x: np.ndarray,
    y: Any,
    label_smoothing: float = 0.0,
    loss: Loss | None = None,
    on_gradients: Callable[[Network], Any] = lambda net: None,
) -> float:
    """Update the parameters once, from one batch; return the mean loss before the update.

    x (N, H, W, 3) normalised, in the network's dtype; y (N,) integers. Raises DivergedError if the loss is NaN or
    infinite; the network is then as it was before.

    loss: another loss than cross-entropy; y is whatever it takes. The squared error, for instance:

        loss = types.SimpleNamespace(forward=lambda z, y: np.sum((z - y) ** 2), backward=lambda z, y: 2 * (z - y))
        train.step(net, opt, x, y, loss=loss)

    on_gradients: called once with `net`, when every gradient is there and before the update. Clipping, for instance:

        clip = lambda net: [np.clip(p.grad, -1, 1, out=p.grad) for p in net.parameters().values()]
        train.step(net, opt, x, y, on_gradients=clip)
    """
    if loss is not None and label_smoothing:
        raise MbnpError(f"label_smoothing={label_smoothing} is an option of cross-entropy: leave it out beside loss=")
    return _step(net, opt, x, y, label_smoothing, loss or cross_entropy, on_gradients)[0]


def _step(
    net: Network, opt: optim.Optimiser, x: np.ndarray, y: Any, label_smoothing: float, loss: Loss,
    on_gradients: Callable[[Network], Any] = lambda net: None, ended: Callable[[str], Any] = lambda phase: None,
) -> tuple[float, np.ndarray]:  # fmt: skip
    """Return the outputs, too, which give `fit` the accuracy without a second forward. ended(phase) is called."""
    criterion: Any = loss
    smoothing = (label_smoothing,) if loss is cross_entropy else ()
    net.check_input(x)
    shape = net.output_shape(x.shape[1:])  # raises for images that are too small
    if loss is cross_entropy:
        cross_entropy.check((len(x), *shape), y, label_smoothing)
    # What NumPy would warn of on the way to an infinite loss, the DivergedError says better.
    with one_pool(), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        before = np.concatenate([np.empty(0, net.dtype), *(buffer.value.ravel() for buffer in net.buffers().values())])
        drawn = {name: g.bit_generator.state for name, g in net.generators().items()}
        opt.zero_grad()
        ended("update")
        try:
            outputs = net.forward(x, train=True)
            value = float(criterion.forward(outputs, y, *smoothing))
            ended("forward")
            if np.isfinite(value):
                net.backward(criterion.backward(outputs, y, *smoothing))
                on_gradients(net)
                ended("backward")
        except BaseException:
            _restore(net, before, drawn)
            raise
        if not np.isfinite(value):
            _restore(net, before, drawn)
            what = f"the loss is {value} at step {opt.steps + 1}: {_first_not_finite(net, x)}"
            raise DivergedError(f"{what}; try a lower learning rate")
        opt.step()
        ended("update")
    return value, outputs


def _restore(net: Network, statistics: np.ndarray, drawn: dict[str, Any]) -> None:
    for buffer in net.buffers().values():
        before, statistics = np.split(statistics, [buffer.value.size])
        buffer.value = before.reshape(buffer.value.shape)
    for name, generator in net.generators().items():
        generator.bit_generator.state = drawn[name]


def _first_not_finite(net: Network, x: np.ndarray) -> str:
    if not np.isfinite(x).all():
        return "its images are not finite"
    for name, y in net.activations(x).items():  # a weight that is not finite shows in its layer's output
        if not np.isfinite(y).all():
            return f"layer {name} is the first that is not finite"
    return "every layer is finite, but the logits are too far apart"


def fit(
    net: Network,
    data: datasets.Dataset,
    recipe: Recipe | None = None,
    on_batch: Callable[[Record], Any] = lambda record: None,
    on_epoch: Callable[[Record], Any] = lambda record: None,
    keep: Callable[[Snapshot], Any] | None = None,
    every: int | None = None,
    resume: Snapshot | None = None,
    watch: Watch | None = None,
) -> list[Record]:
    """Train on data.train, test on data.test after every epoch; return one record an epoch.

    The network takes over the data's classes and resolution. It also takes over the data's normalisation, unless
    it has one (`net.preprocessing`): its weights were learned with that, and go on with it. Frozen parameters and
    statistics stay bit for bit. Each epoch leaves out the few images that do not fill a last batch, a different set
    each time. The same network, data and recipe end in the same weights. Raises DivergedError; `on_epoch` is called
    only for epochs whose losses are all finite.

    keep: called with a Snapshot before the first step, after each epoch (before `on_epoch`), and after every `every`
    steps. resume: go on from one, to bit for bit what the run would have come to that kept it: with a network of the
    same architecture, as frozen, the same data and recipe. What `net` holds is replaced.
    watch: what it measures is in the snapshots' `progress.measured`, a dict an epoch, with the epoch's number and, as
    `phases`, its seconds of data, forward, backward, update, test and other things.
    """
    recipe = recipe or Recipe()
    batches = check(net, data, recipe, every)
    opt = recipe.optimiser(net)
    rates = recipe.rates(total=recipe.epochs * batches)
    rng = np.random.default_rng(recipe.seed)
    at = Progress(generator=rng.bit_generator.state) if resume is None else _go_on(resume, net, opt, rng)
    _take_over(net, data)
    task = tasks.of(net)

    def kept() -> None:
        if keep is not None:
            at.generator = rng.bit_generator.state
            at.dropout = {name: g.bit_generator.state for name, g in net.generators().items()}
            keep(Snapshot(net.state(), opt.state(), copy.deepcopy(at)))

    if resume is None:
        kept()
    for epoch in range(at.epoch, recipe.epochs + 1):
        ended = (lambda phase: None) if watch is None else _clock(at.phases)
        began = time.perf_counter() - at.seconds
        for record in _epoch(at, net, task, opt, rates, data, recipe, rng, ended):
            on_batch(record)
            if every is not None and record.step % every == 0 and at.batch < batches:
                kept()
            ended("other")
        loss, accuracy, _ = (
            evaluate(net, data.test) if watch is None else evaluate(net, data.test, on_logits=watch.tested)
        )
        ended("test")
        if not np.isfinite(loss):
            raise DivergedError(f"the test loss is {loss} after step {opt.steps}; try a lower learning rate")
        seconds = time.perf_counter() - began
        record = record._replace(test_loss=loss, test_accuracy=accuracy, seconds=seconds)
        found = [] if watch is None else [{"epoch": epoch, "phases": at.phases, **watch.measure(net)}]
        at = Progress(epoch + 1, history=[*at.history, record], measured=[*at.measured, *found])
        kept()
        on_epoch(record)
    return at.history


def check(net: Network, data: datasets.Dataset, recipe: Recipe, every: int | None) -> int:
    """Raise MbnpError for what `fit` would refuse before its first step; return how many batches an epoch has."""
    batches = datasets.count_batches(len(data.train), recipe.batch_size, train=True)
    tasks.of(net).check(data, recipe.label_smoothing)
    if not net.trainable():
        raise MbnpError("every parameter of the network is frozen, so that there is nothing to train")
    if batches == 0:
        raise MbnpError(f"{len(data.train)} training images do not fill one batch of {recipe.batch_size}")
    if every is not None and every < 1:
        raise MbnpError(f"every must be at least 1 step, got {every}")
    shape = data.train.images.shape[1:]
    # These raise, too, for images that the network does not take, or that a test would not have the memory for.
    spec.check_flow(net, data.test.images.shape[1:])
    kept = sum(math.prod(y_shape) for *_, y_shape in net.walk(shape))
    if (needed := kept * recipe.batch_size * net.dtype.itemsize) > (there := psutil.virtual_memory().total):
        what = f"a step on {recipe.batch_size} images keeps up to {needed / 1e9:,.1f} GB of feature maps"
        raise MbnpError(f"{what}, and this machine has {there / 1e9:,.1f} GB: use a smaller batch_size")
    return batches


def _go_on(snapshot: Snapshot, net: Network, opt: optim.Optimiser, rng: np.random.Generator) -> Progress:
    """Let the network, the optimiser and the generator be as they were; return how far they are."""
    generators = net.generators()
    if snapshot.progress.dropout.keys() != generators.keys():
        raise MbnpError("the snapshot is of another network: its dropouts are not this one's")
    opt.load_state(snapshot.optimiser)  # first: if it does not fit, the network is as it was
    rng.bit_generator.state = snapshot.progress.generator
    net.load_state(snapshot.network)
    for name, state in snapshot.progress.dropout.items():
        generators[name].bit_generator.state = state
    return copy.deepcopy(snapshot.progress)


def _take_over(net: Network, data: datasets.Dataset) -> None:
    net.classes = list(data.classes)
    _, height, width, _ = data.train.images.shape
    if height == width:
        net.resolution = height
    if net.preprocessing is None:
        net.preprocessing = {"mean": [float(v) for v in data.mean], "std": [float(v) for v in data.std]}


def _clock(spent: dict[str, float]) -> Callable[[str], None]:
    """Return a function that adds the seconds since its last call to those of a phase."""
    last = time.perf_counter()

    def ended(phase: str) -> None:
        nonlocal last
        before, last = last, time.perf_counter()
        spent[phase] = spent.get(phase, 0.0) + last - before

    return ended


def _epoch(
    at: Progress,
    net: Network,
    task: Task,
    opt: optim.Optimiser,
    rates: optim.Schedule,
    data: datasets.Dataset,
    recipe: Recipe,
    rng: np.random.Generator,
    ended: Callable[[str], Any],
) -> Iterator[Record]:
    """Train on every image once, from where the epoch is; yield a record after each batch."""
    options: dict[str, Any] = {**(net.preprocessing or {}), "augment": recipe.augmentation(), "dtype": net.dtype}
    state = rng.bit_generator.state
    at.order = rng.bit_generator.state = at.order or state
    rest = datasets.batches(data.train, recipe.batch_size, rng, **options, first=at.batch)
    if at.batch:
        rng.bit_generator.state = state
    seconds = []
    began = now = time.perf_counter() - at.seconds
    for x, y in rest:
        targets = task.targets(y)
        ended("data")
        opt.set(**rates(opt.steps))
        loss, outputs = _step(net, opt, x, targets, recipe.label_smoothing, task.loss, ended=ended)
        at.loss += loss
        at.right += task.right(outputs, targets)
        at.batch += 1
        previous, now = now, time.perf_counter()
        at.seconds = now - began
        seconds.append(now - previous)
        speed = len(x) / statistics.median(seconds)
        accuracy = at.right / (at.batch * len(x))
        yield Record(at.epoch, opt.steps, at.loss / at.batch, accuracy, opt.lr, speed, at.seconds)


def evaluate(
    net: Network,
    split: datasets.Split,
    batch_size: int = 256,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    on_logits: Callable[[np.ndarray, np.ndarray], Any] = lambda logits, y: None,
) -> Evaluation:
    """Return loss and accuracy, or of a detector mAP@0.5, over every image of a split; a last batch may be smaller.

    mean, std: how the images are normalised; None: as the network was trained (`net.preprocessing`).
    on_logits: called with the logits and the labels of each batch, in order: with what `forward` returned, and what
        `datasets.batches` has beside the images.
    """
    scale: Any = net.preprocessing if mean is None or std is None else {"mean": mean, "std": std}
    if scale is None:
        raise MbnpError("this network does not say how its images were normalised: pass mean and std")
    total, predictions, task = 0.0, [], tasks.of(net)
    task.check_split(split)
    batch_size = spec.most_images(net, split.images.shape[1:], batch_size)
    with one_pool(), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for x, y in datasets.batches(split, batch_size, **scale, dtype=net.dtype):
            logits = net.forward(x)
            on_logits(logits, y)
            total += float(task.loss.forward(logits, task.targets(y))) * len(x)
            predictions.append(task.predict(logits))
    found = task.join(predictions)
    return Evaluation(total / len(split), task.score(found, split), found)


def probabilities(net: Network, images: np.ndarray) -> np.ndarray:
    """Return the probability of each class (N, classes) for images (N, H, W, C) uint8.

    They are normalised as the network was trained (`net.preprocessing`); MbnpError where that is not known. Of a
    network of one output it is the sigmoid of that, (N, 1): the probability of its one class. A detector has none:
    `detection.detect` has the objects that it finds.
    """
    if net.detection is not None:
        raise MbnpError("a detector finds objects and does not classify images: use mbnp detect")
    if net.preprocessing is None:
        raise MbnpError("the checkpoint does not say how its images were normalised")
    x = datasets.normalise(images, **net.preprocessing, dtype=net.dtype)
    with one_pool():
        logits = net.forward(x)
    return 0.5 + 0.5 * np.tanh(logits / 2) if net.num_classes == 1 else cross_entropy.softmax(logits)
