"""The time of every layer: the real step runs, with a stopwatch on each part of it.

A part is what runs as one: a stage of the fast engine (convolution, BatchNorm, ReLU), a block of its inference
(depthwise and pointwise in one pass), or a layer of `layers.py`. FLOPs are those of convolutions and linear layers,
2 x MACs forward and as many again for each of dx and dw; bytes are the least that a part must move: each array it
reads or writes, once.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mbnp import cost, train
from mbnp.bench.jobs import Job, optimiser
from mbnp.fused import FusedNetwork
from mbnp.fused.chain import split
from mbnp.fused.normalise import FusedResidual, Normalise
from mbnp.network import Layer, Network

KINDS = {"Depthwise": "depthwise", "Pointwise": "pointwise", "Conv": "standard", "Separable": "separable"}


class Rate(NamedTuple):
    """One direction of one part: how long it takes, and what it does in that time."""

    seconds: float
    flops: int
    bytes: int

    @property
    def gflops(self) -> float:
        """GFLOP/s."""
        return self.flops / self.seconds / 1e9

    @property
    def bandwidth(self) -> float:
        """GB/s."""
        return self.bytes / self.seconds / 1e9

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.flops / self.bytes


class Row(NamedTuple):
    """One part as measured; inference has no backward."""

    name: str
    kind: str  # depthwise, pointwise, standard, separable, or other
    output: tuple[int, ...]
    forward: Rate
    backward: Rate | None

    @property
    def seconds(self) -> float:
        return self.forward.seconds + (self.backward.seconds if self.backward else 0)


class Measured(NamedTuple):
    """All parts of a step, and what is in none of them: the loss, sums of branches, Python. Seconds, medians each."""

    rows: list[Row]
    optimiser: float  # 0 in inference
    rest: float

    @property
    def total(self) -> float:
        """Of all together: shares of it add up, which shares of the whole steps' median would not."""
        return sum(row.seconds for row in self.rows) + self.optimiser + self.rest


@dataclass
class _Part:
    """The methods of which objects make up a part, forward and backward, and its work there."""

    name: str
    kind: str
    output: tuple[int, ...]
    flops: tuple[int, int]
    bytes: tuple[int, int]
    forward: list[tuple[Any, str]] = field(default_factory=list)
    backward: list[tuple[Any, str]] = field(default_factory=list)


def training(net: Network, job: Job, steps: int) -> Measured:
    """The median time of each part over `steps` training steps of `net`, readable or fused."""
    x, y = job.batch(net.dtype)
    opt = optimiser(net)
    train.step(net, opt, x, y)  # compiles, and makes the buffers that parts are found by
    parts = _training_parts(net, x.shape)
    clocks = {("optimiser", "step"): [(opt, "step"), (opt, "zero_grad")]}
    return _measure(parts, clocks, lambda: train.step(net, opt, x, y), steps)


def inference(net: Network, job: Job, steps: int) -> Measured:
    """The median time of each part over `steps` inferences of `net`, readable or fused."""
    x, _ = job.batch(net.dtype)
    net.forward(x)
    return _measure(_inference_parts(net, x.shape), {}, lambda: net.forward(x), steps)


def _measure(parts: list[_Part], clocks: dict, run: Callable[[], object], steps: int) -> Measured:
    for part in parts:
        clocks[part.name, "forward"], clocks[part.name, "backward"] = part.forward, part.backward
    laps: dict[Any, list[float]] = defaultdict(list)
    with _stopwatch(clocks) as watch:
        for _ in range(2):
            run()
        for _ in range(steps):
            watch.clear()
            began = time.perf_counter()
            run()
            laps["rest"].append(time.perf_counter() - began - sum(watch.values()))
            for key in clocks:
                laps[key].append(watch[key])
    median = {key: statistics.median(times) for key, times in laps.items()}
    # A layer that a kernel of its neighbours has taken over is never called: it has no time of its own.
    rows = [_row(part, median) for part in parts if median[part.name, "forward"]]
    return Measured(rows, median.get(("optimiser", "step"), 0.0), median["rest"])


def _row(part: _Part, median: dict) -> Row:
    forward, backward = (
        Rate(median[part.name, direction], part.flops[i], part.bytes[i])
        for i, direction in enumerate(("forward", "backward"))
    )
    return Row(part.name, part.kind, part.output, forward, backward if part.backward else None)


@contextmanager
def _stopwatch(clocks: dict[Any, list[tuple[Any, str]]]) -> Iterator[dict[Any, float]]:
    """Within the block, the seconds that the methods of each key take add up in the mapping."""
    watch: dict[Any, float] = defaultdict(float)

    def timed(key: Any, method: Callable) -> Callable:
        def run(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*args, **options)
            finally:
                watch[key] += time.perf_counter() - began

        return run

    with ExitStack() as undo:
        for key, methods in clocks.items():
            for owner, name in methods:
                # An attribute of the object hides its class's method, and the class stays as it is.
                setattr(owner, name, timed(key, getattr(owner, name)))
                undo.callback(delattr, owner, name)
        yield watch


def _training_parts(net: Network, shape: tuple[int, ...]) -> list[_Part]:
    rows = _costs(net, shape)
    parts: list[_Part] = []
    triples = net._triples if isinstance(net, FusedNetwork) else []
    plan = net._plans[shape] if isinstance(net, FusedNetwork) and triples else None
    for triple, stage in zip(triples, plan.stages if plan else [], strict=True):
        part = _part(triple.name, [rows[triple.name]], shape[0], net.dtype.itemsize, first=not parts)
        # BatchNorm's backward reads the output again, which its own kernel would, too.
        part.bytes = part.bytes[0], part.bytes[1] + shape[0] * net.dtype.itemsize * _size(part.output)
        part.forward = [(stage, "forward"), (stage, "normalise")]
        part.backward = [(stage, "finish_gradient"), (stage, "backward")]
        parts.append(part)
    if plan and plan.complete:
        its = [rows[name] for name, _ in split(net)[1]]  # the average and the linear layer
        part = _part(" + ".join(row.name for row in its), its, shape[0], net.dtype.itemsize)
        part.kind, part.forward, part.backward = "other", [(plan.end, "forward")], [(plan.end, "backward")]
        parts.append(part)
    return parts + _layer_parts(net, shape, rows, backward=True)


def _inference_parts(net: Network, shape: tuple[int, ...]) -> list[_Part]:
    rows = _costs(net, shape)
    parts = []
    for block in net._inference.blocks if isinstance(net, FusedNetwork) and net._inference else []:
        its = [rows[triple.name] for triple in block.triples]
        name = " + ".join([its[0].name, *(row.name.rpartition(".")[2] for row in its[1:])])
        part = _part(name, its, shape[0], net.dtype.itemsize)
        part.forward = [(block, "run")]
        parts.append(part)
    return parts + _layer_parts(net, shape, rows, backward=False)


def _costs(net: Network, shape: tuple[int, ...]) -> dict[str, cost.Row]:
    _, h, w, c = shape
    return {row.name: row for row in cost.of(net, (h, w, c)).rows}


def _layer_parts(
    net: Network, shape: tuple[int, ...], rows: dict[str, cost.Row], backward: bool
) -> list[_Part]:
    """A part for each layer that runs by itself, outside the fused chain."""
    names = _names(net)
    parts = []
    for owner in net._tail if isinstance(net, FusedNetwork) else net.layers.values():
        for layer in _leaves(owner):
            row = rows.get(names[_identity(layer)].pop(0))
            if row is None:  # a shortcut's layer, which has no cost: in the rest
                continue
            part = _part(row.name, [row], shape[0], net.dtype.itemsize)
            part.forward, part.backward = [(layer, "forward")], [(layer, "backward")] if backward else []
            parts.append(part)
    return parts


def _leaves(owner: Layer) -> Iterator[Layer]:
    """What runs inside `owner`, one after another."""
    if isinstance(owner, FusedResidual):
        for inner in [*owner.body, owner.last, *([owner.shortcut] if owner.shortcut else [])]:
            yield from _leaves(inner)
    else:
        yield from (layer for _, layer in owner.leaves())


def _names(net: Network) -> dict[Any, list[str]]:
    """The names of layers by what tells them apart; several names, in order, where nothing does."""
    names: dict[Any, list[str]] = defaultdict(list)
    after = split(net)[1] if isinstance(net, FusedNetwork) else net.layers.items()
    for name, layer in after:
        for inner, leaf in layer.leaves(name):
            names[_identity(leaf)].append(inner)
    return names


def _identity(layer: Any) -> Any:
    """The engine runs copies of layers, which share parameters: the first of those, or the type where it has none."""
    layer = layer.bn if isinstance(layer, Normalise) else layer
    return next((id(v) for v in layer.variables().values()), type(layer))


def _part(name: str, rows: list[cost.Row], n: int, itemsize: int, first: bool = False) -> _Part:
    """A part that computes `rows`, one after another, for n pictures; the first one's dx is needed by nobody."""
    flops, params = n * sum(row.flops for row in rows), sum(row.params for row in rows)
    x, y = n * _size(rows[0].input_shape), n * _size(rows[-1].output_shape)
    kind = KINDS.get(rows[0].kind if len(rows) == 1 else "Separable", "other")
    return _Part(
        name,
        kind,
        rows[-1].output_shape,
        (flops, flops * (1 if first else 2)),
        (itemsize * (x + y + params), itemsize * (x * (1 if first else 2) + y + 2 * params)),
    )


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))
