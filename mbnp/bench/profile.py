"""The time of every layer, measured on the real step: steps of the engine or methods of layers, while it runs.

A row is what runs as one: a step of the fast engine (`FusedNetwork.timed`), or a layer of the reference network. FLOPs
are those of convolutions and linear layers, 2 x MACs forward and as many again for each of dx and dw; bytes are the
least that a row must move: each array that it reads or writes, once.

The step by itself may be faster than its rows together: in inference each thread takes images of its own through all
rows, and only where rows are timed do all threads run one after another.
"""

import math
import statistics
import time
import timeit
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from mbnp import backend, cost, train
from mbnp.bench.workload import Workload, optimiser
from mbnp.fused import match
from mbnp.fused.network import FusedNetwork
from mbnp.network import Network

KINDS = {"Depthwise": "depthwise", "Pointwise": "pointwise", "Conv": "standard"}
# Computed on the way, where another layer is in the same step.
INCLUDED = ("BatchNorm", "ReLU", "HardSwish", "HardSigmoid")

Names = tuple[str, ...]  # of the layers that run as one
Laps = dict[Hashable, float]  # seconds by (names, whether backward), and of "optimiser" and "rest"


class Rate(NamedTuple):
    """One direction of one row: how long it takes, and what it does in that time."""

    seconds: float
    flops: int
    bytes: int

    @property
    def gflops(self) -> float:  # NaN where the clock saw no time pass
        return self.flops / self.seconds / 1e9 if self.seconds else math.nan

    @property
    def bandwidth(self) -> float:  # GB/s
        return self.bytes / self.seconds / 1e9 if self.seconds else math.nan

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
    """All rows of a step, and what is in none of them: the loss, what no layer names, Python. Median seconds each."""

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
    if isinstance(net, FusedNetwork) and backend.current() != "numba":
        net = net.reference  # which is what runs
    x, y = workload.batch(net.dtype)
    training, opt = workload.work == "training", optimiser(net)

    def run() -> object:
        return train.step(net, opt, x, y, loss=workload.loss()) if training else net.forward(x)

    run()  # compiles
    laps = [_lap(net, opt, run) for _ in range(steps + 2)][2:]  # two to warm up
    median = {key: statistics.median(lap.get(key, 0.0) for lap in laps) for key in laps[0]}
    costs = {row.name: row for row in cost.of(net, workload.shape).rows}
    fused = isinstance(net, FusedNetwork)
    sums = {op.names for op in match.match(net, x.shape) if op.kind == "sum"} if fused else set()
    rows: list[Row] = []
    for names in dict.fromkeys(key[0] for key in laps[0] if isinstance(key, tuple)):
        times = median.get((names, False), 0.0), median.get((names, True), 0.0)
        first = fused and not rows  # the engine computes no gradient of the images
        rows.append(_row([costs[name] for name in names], times, len(x), x.itemsize, first, names in sums))
    return Profile([row for row in rows if row.seconds], median["optimiser"], median["rest"])


def _lap(net: Network, opt: Any, run: Callable[[], object]) -> Laps:
    """Return the seconds of each row in one run, in the order of forward; those that are in no row are "rest"."""
    spent: Laps = {"optimiser": 0.0}
    with ExitStack() as stack:
        for method in ("step", "zero_grad"):
            stack.enter_context(_timed(opt, method, "optimiser", spent))
        if isinstance(net, FusedNetwork):
            steps = stack.enter_context(net.timed())
        else:
            steps = {}
            for name, layer in net.leaves():
                for method in ("forward", "backward"):
                    stack.enter_context(_timed(layer, method, ((name,), method == "backward"), spent))
        total = timeit.timeit(run, number=1)
    for names, timing in steps.items():
        if names:  # what joins layers has none
            spent[names, False], spent[names, True] = timing
    return {**spent, "rest": total - sum(spent.values())}


def _row(
    layers: list[cost.Row], times: tuple[float, float], n: int, itemsize: int, first: bool, adds: bool = False
) -> Row:
    """Return the row of a step that computes `layers` on n images.

    The `first` one has no gradient of its input; one that `adds` has two inputs.
    """
    named = [layer for layer in layers if layer.kind not in INCLUDED] or layers[:1]
    name = " + ".join([named[0].name, *(layer.name.rpartition(".")[2] for layer in named[1:])])
    kind = KINDS.get(named[0].kind, "other")
    if len(named) > 1:
        kind = "separable" if kind == "depthwise" else "other"
    flops, params = n * sum(layer.flops for layer in named), sum(layer.params for layer in named)
    x, y = n * math.prod(named[0].input_shape) * (1 + adds), n * math.prod(named[-1].output_shape)
    inputs = 1 if first else 2  # x is read, and its gradient written
    normalised = "BatchNorm" in [layer.kind for layer in layers[1:]]
    outputs = 2 if normalised else 1  # dy, and y for BatchNorm's backward
    forward = Rate(times[0], flops, itemsize * (x + y + params))
    moved = inputs * x + outputs * y + 2 * params
    if adds:  # dy, the output, which says where it was clipped, and the gradient of each input
        moved = 2 * y + x
    backward = Rate(times[1], inputs * flops, itemsize * moved)
    return Row(name, kind, named[-1].output_shape, forward, backward if times[1] else None)


@contextmanager
def _timed(owner: Any, name: str, key: Hashable, spent: Laps) -> Iterator[None]:
    """Add the seconds of each call of a method of this object to spent[key], within the block."""
    method = getattr(owner, name)

    def run(*args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        result = method(*args, **options)
        spent[key] = spent.get(key, 0.0) + time.perf_counter() - began
        return result

    setattr(owner, name, run)  # it hides the class's method, and the class stays as it is
    try:
        yield
    finally:
        delattr(owner, name)
