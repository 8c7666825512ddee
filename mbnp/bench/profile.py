"""The time of every layer, measured on the real step: methods are timed in place while it runs.

A row is what runs as one: a step of the fast engine (`FusedNetwork.steps`), or a layer of the reference network. FLOPs
are those of convolutions and linear layers, 2 x MACs forward and as many again for each of dx and dw; bytes are the
least that a row must move: each array that it reads or writes, once.
"""

import math
import statistics
import time
import timeit
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from mbnp import cost, train
from mbnp.bench.workload import Workload, optimiser
from mbnp.fused.network import FusedNetwork, layer_step
from mbnp.network import Network

KINDS = {"Depthwise": "depthwise", "Pointwise": "pointwise", "Conv": "standard"}
INCLUDED = ("BatchNorm", "ReLU")  # computed on the way, where another layer is in the same step

Calls = Sequence[tuple[Any, str]]  # (object, name of the method)


class Rate(NamedTuple):
    """One direction of one row: how long it takes, and what it does in that time."""

    seconds: float
    flops: int
    bytes: int

    @property
    def gflops(self) -> float:
        return self.flops / self.seconds / 1e9

    @property
    def bandwidth(self) -> float:  # GB/s
        return self.bytes / self.seconds / 1e9

    @property
    def intensity(self) -> float:  # FLOPs a byte
        return self.flops / self.bytes


class Row(NamedTuple):
    """One measured row; backward is None in inference, and where nothing goes back."""

    name: str
    kind: str  # depthwise, pointwise, standard, separable, or other
    output: tuple[int, ...]
    forward: Rate
    backward: Rate | None

    @property
    def rates(self) -> list[Rate]:
        return [self.forward, self.backward] if self.backward else [self.forward]

    @property
    def seconds(self) -> float:
        return sum(rate.seconds for rate in self.rates)


class Profile(NamedTuple):
    """All rows of a step, and what is in none of them: the loss, sums of branches, Python. Median seconds each."""

    rows: list[Row]
    optimiser: float  # 0 in inference
    rest: float

    @property
    def total(self) -> float:
        """Seconds of all together: shares of it add up to 1, which shares of the whole step's median would not."""
        return sum(row.seconds for row in self.rows) + self.optimiser + self.rest

    def shares(self) -> dict[str, tuple[float, float, Rate]]:
        """Return each kind's share of all FLOPs and of the step's time, and its rows added up; most FLOPs first."""
        found = {row.kind: Rate(0.0, 0, 0) for row in self.rows}
        for row in self.rows:
            found[row.kind] = Rate(*map(sum, zip(found[row.kind], *row.rates, strict=True)))
        total = sum(rate.flops for rate in found.values()) or 1
        ordered = sorted(found.items(), key=lambda item: -item[1].flops)
        return {kind: (rate.flops / total, rate.seconds / self.total, rate) for kind, rate in ordered}


def measure(net: Network, workload: Workload, steps: int) -> Profile:
    """Return the median time of each row over `steps` runs of the workload by `net`, reference or fused."""
    x, y = workload.batch(net.dtype)
    training, opt = workload.work == "training", optimiser(net)

    def run() -> object:
        return train.step(net, opt, x, y) if training else net.forward(x)

    run()  # compiles
    if isinstance(net, FusedNetwork):
        net_steps = net.steps(x.shape, training)
    else:
        net_steps = [layer_step([name], layer, training) for name, layer in net.leaves()]
    calls: dict[Any, Calls] = {"optimiser": ((opt, "step"), (opt, "zero_grad"))}
    for layers, forward, backward in net_steps:
        calls[layers, "forward"], calls[layers, "backward"] = forward, backward
    spent: dict[Any, float] = defaultdict(float)  # seconds within the methods of each key
    laps: list[dict[Any, float]] = []
    with ExitStack() as undo:
        for key, owner, name in [(key, *call) for key, methods in calls.items() for call in methods]:
            # An attribute of the object hides its class's method, and the class stays as it is.
            setattr(owner, name, _timed(getattr(owner, name), key, spent))
            undo.callback(delattr, owner, name)
        for _ in range(steps + 2):  # two to warm up
            spent.clear()
            total = timeit.timeit(run, number=1)
            laps.append({**spent, "rest": total - sum(spent.values())})
    median = {key: statistics.median(lap.get(key, 0.0) for lap in laps[2:]) for key in (*calls, "rest")}
    costs = {row.name: row for row in cost.of(net, workload.shape).rows}
    rows: list[Row] = []
    for layers, *_ in net_steps:
        times = median[layers, "forward"], median[layers, "backward"]
        first = not rows and len(layers) > 1  # the engine's, which computes no gradient of the images
        if times[0]:
            rows.append(_row([costs[name] for name in layers], times, len(x), x.itemsize, first))
    return Profile(rows, median["optimiser"], median["rest"])


def _row(layers: list[cost.Row], times: tuple[float, float], n: int, itemsize: int, first: bool) -> Row:
    """Return the row of a step that computes `layers` on n images; the `first` one has no gradient of its input."""
    named = [layer for layer in layers if layer.kind not in INCLUDED] or layers[:1]
    name = " + ".join([named[0].name, *(layer.name.rpartition(".")[2] for layer in named[1:])])
    kind = KINDS.get(named[0].kind, "other")
    if len(named) > 1:
        kind = "separable" if kind == "depthwise" else "other"
    flops, params = n * sum(layer.flops for layer in named), sum(layer.params for layer in named)
    x, y = n * math.prod(named[0].input_shape), n * math.prod(named[-1].output_shape)
    inputs = 1 if first else 2  # x is read, and its gradient written
    normalised = "BatchNorm" in [layer.kind for layer in layers[1:]]
    outputs = 2 if normalised else 1  # dy, and y for BatchNorm's backward
    forward = Rate(times[0], flops, itemsize * (x + y + params))
    backward = Rate(times[1], inputs * flops, itemsize * (inputs * x + outputs * y + 2 * params))
    return Row(name, kind, named[-1].output_shape, forward, backward if times[1] else None)


def _timed(method: Callable, key: Any, spent: dict[Any, float]) -> Callable:
    """Return `method` as it is, but that each call adds its seconds to spent[key]."""

    def run(*args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        result = method(*args, **options)
        spent[key] += time.perf_counter() - began
        return result

    return run
