"""Measure the time for one image over batch size, width, resolution and threads, one of them at a time."""

import itertools
import math
import statistics
import timeit
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from mbnp import backend
from mbnp.bench.candidates import Mbnp
from mbnp.bench.comparison import Say
from mbnp.bench.workload import Workload
from mbnp.errors import MbnpError

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WIDTHS = (0.25, 0.5, 0.75, 1.0)
RESOLUTIONS = (32, 64, 96, 128, 160, 192, 224)
RESOLUTION_MODEL, RESOLUTION_BATCH = "mobilenet-v1", 8
TURN = 0.05  # seconds, about, that one point is timed for before the next has its turn


class Point(NamedTuple):
    """Seconds for one image, at one value of what is varied; NaN where BatchNorm cannot train."""

    value: float
    training: float
    inference: float


class Sweep(NamedTuple):
    """The name of what is varied, what stays the same, and the measured points."""

    name: str
    fixed: str
    points: list[Point]


def sweeps(base: Workload, rounds: int, engine: str = "fused", say: Say = str) -> list[Sweep]:
    """Vary the batch size, width and threads of `base`, and the resolution of mobilenet-v1."""
    large = replace(base, model=RESOLUTION_MODEL, batch_size=RESOLUTION_BATCH)
    size = f"{base.resolution} x {base.resolution}"
    batch = f"{base.model}, batch {base.batch_size}"
    plan: list[tuple[str, str, Workload, str, Sequence[Any]]] = [
        ("batch size", f"{base.model}, {size}", base, "batch_size", BATCHES),
        ("width", f"{batch}, {size}", base, "width_mult", WIDTHS),
        ("resolution", f"{large.model}, batch {large.batch_size}", large, "resolution", RESOLUTIONS),
        ("threads", f"{batch}, {size}", base, "threads", thread_counts(base.threads)),
    ]
    found = []
    for name, fixed, workload, varied, values in plan:
        say(f"varying {name}")
        varying = [replace(workload, work="training", **{varied: value}) for value in values]
        times = per_image(varying, rounds, engine)
        found.append(Sweep(name, fixed, [Point(v, *t) for v, t in zip(values, times, strict=True)]))
    return found


def thread_counts(most: int) -> list[int]:
    """Return 1, 2, 4, ... and `most`."""
    return [*(1 << i for i in range(most.bit_length()) if 1 << i < most), most]


def per_image(workloads: list[Workload], rounds: int, engine: str) -> list[tuple[float, float]]:
    """Return the median seconds for one image of a training step and of an inference, in alternating turns."""
    runs: list[tuple[Workload, Callable[[], object]]] = []
    for workload in workloads:
        ours = Mbnp("mbnp", engine)
        ours.prepare(workload)
        ours.build()  # one network for both: two would not fit in memory as easily
        runs += [(workload, ours.run), (workload, ours.infer)]
    turns = [[_turn(*run) for run in runs] for _ in range(rounds + 1)]
    kept = zip(*turns[1:], strict=True)  # the first turn compiles, and touches the memory
    medians = [statistics.median(itertools.chain(*laps)) for laps in kept]
    times = [median / workload.batch_size for median, (workload, _) in zip(medians, runs, strict=True)]
    return list(zip(times[::2], times[1::2], strict=True))


def _turn(workload: Workload, run: Callable[[], object]) -> list[float]:
    """Return the time of each of at least three calls; NaN where the network cannot do it."""
    backend.set_num_threads(workload.threads)
    laps: list[float] = []
    with suppress(MbnpError):
        while len(laps) < 3 or sum(laps) < TURN:
            laps.append(timeit.timeit(run, number=1))
        return laps
    return [math.nan]


def worst_above_minimum(sweep: Sweep, first: float, last: float) -> tuple[float, float]:
    """Return how far the slowest point between two values is above the fastest: 0.1 is 10 %.

    The first number is training's, the second inference's.
    """
    _, training, inference = zip(*(p for p in sweep.points if first <= p.value <= last), strict=True)
    return max(training) / min(training) - 1, max(inference) / min(inference) - 1
