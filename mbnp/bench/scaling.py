"""How the cost grows: time per picture over batch size, width, resolution and threads, one of them at a time."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

from mbnp import backend
from mbnp.bench.jobs import Job
from mbnp.bench.ours import Mbnp
from mbnp.errors import MbnpError

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WIDTHS = (0.25, 0.5, 0.75, 1.0)
RESOLUTIONS = (32, 64, 96, 128, 160, 192, 224)
RESOLUTION_MODEL, RESOLUTION_BATCH = "mobilenet-v1", 8
TURN = 0.05  # seconds, about, that one point is timed for before the next has its turn


class Point(NamedTuple):
    """Seconds for one picture, at one value of what is varied; NaN where BatchNorm cannot train."""

    value: float
    training: float
    inference: float


class Sweep(NamedTuple):
    """What is varied, what stays, and the measured points."""

    name: str
    fixed: str
    points: list[Point]


def sweeps(
    base: Job, rounds: int, engine: str = "fused", say: Callable[[str], object] = lambda line: None
) -> list[Sweep]:
    """Vary the batch size, width and threads of `base`, and the resolution of mobilenet-v1."""
    large = dataclasses.replace(base, model=RESOLUTION_MODEL, batch_size=RESOLUTION_BATCH)
    size = f"{base.resolution} x {base.resolution}"
    plan = [
        ("batch size", f"{base.model}, {size}", base, "batch_size", BATCHES),
        ("width", f"{base.model}, batch {base.batch_size}, {size}", base, "width_mult", WIDTHS),
        ("resolution", f"{large.model}, batch {large.batch_size}", large, "resolution", RESOLUTIONS),
        (
            "threads",
            f"{base.model}, batch {base.batch_size}, {size}",
            base,
            "threads",
            thread_counts(base.threads),
        ),
    ]
    found = []
    for name, fixed, job, varied, values in plan:
        say(f"varying {name}")
        jobs = [Job(**{**dataclasses.asdict(job), varied: value}) for value in values]
        points = [
            Point(v, *times) for v, times in zip(values, per_picture(jobs, rounds, engine), strict=True)
        ]
        found.append(Sweep(name, fixed, points))
    return found


def thread_counts(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    powers = [1 << i for i in range(most.bit_length()) if 1 << i < most]
    return [*powers, most]


def per_picture(jobs: list[Job], rounds: int, engine: str) -> list[tuple[float, float]]:
    """The median seconds for one picture of a training step and of an inference of each job, in alternating turns."""
    runs = [_runs(job, engine) for job in jobs]
    seconds: list[tuple[list[float], list[float]]] = [([], []) for _ in jobs]
    for turn in range(rounds + 1):
        for job, its_runs, its_seconds in zip(jobs, runs, seconds, strict=True):
            backend.set_num_threads(job.threads)
            for run, kept in zip(its_runs, its_seconds, strict=True):
                laps = _turn(run)
                kept.extend(laps if turn else [])  # the first turn compiles, and touches the memory
    return [
        (statistics.median(training) / job.batch_size, statistics.median(inference) / job.batch_size)
        for job, (training, inference) in zip(jobs, seconds, strict=True)
    ]


def _runs(job: Job, engine: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """A training step and an inference, by the same network: two would not fit in memory as easily."""
    ours = Mbnp(dataclasses.replace(job, work="training"), {"engine": engine}, lambda: None)
    return ours.run, lambda: ours.net.forward(ours.x)


def _turn(run: Callable[[], object]) -> list[float]:
    """The time of each of at least three calls; all NaN where the network cannot do it."""
    laps: list[float] = []
    while len(laps) < 3 or sum(laps) < TURN:
        began = time.perf_counter()
        try:
            run()
        except MbnpError:
            return [math.nan]
        laps.append(time.perf_counter() - began)
    return laps


def worst_above_minimum(sweep: Sweep, first: float, last: float) -> tuple[float, float]:
    """How much longer a picture takes than at best, at most, between two values: training, inference; 0.1 is 10 %."""
    inside = [p for p in sweep.points if first <= p.value <= last]
    training, inference = [p.training for p in inside], [p.inference for p in inside]
    return max(training) / min(training) - 1, max(inference) / min(inference) - 1
