"""Candidates in alternation, each in a process of its own, after their outputs were found to agree.

Alternating turns spread the machine's drift over all of them; separate processes and a pause between turns keep one's
threads, which go on spinning for a while, from slowing the next; and what a process has allocated before is its own.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np

from mbnp.bench.candidates import Candidate, Reference
from mbnp.bench.worker import Died, Worker
from mbnp.bench.workload import Workload

PAUSE = 0.05  # seconds between turns
TURN = 0.1  # seconds that a turn should take, about
STEPS = 3  # in a turn, at least
TOLERANCE, ROUGHLY = 1e-4, 0.1  # see `difference`

Arrays = Mapping[str, np.ndarray]
Candidates = Iterable[Candidate]
Say = Callable[[str], object]  # shows what is going on


def _quiet(line: str) -> None:
    pass


@dataclass
class Result:
    """The times or the memory of one candidate; `refused` says why it was not timed, or not to the end."""

    candidate: Candidate
    seconds: list[float] = field(default_factory=list)  # of every step of every turn
    bytes: int | None = None  # in `memory`: the peak above what imports took
    refused: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        low, _, high = statistics.quantiles(self.seconds, n=4) if len(self.seconds) > 1 else self.seconds * 3
        return low, high


def compare(workload: Workload, candidates: Candidates, rounds: int, say: Say = _quiet) -> list[Result]:
    """Let every candidate compute, compare, and time those that agree: `rounds` turns each, in alternation."""
    results = [Result(candidate) for candidate in candidates]
    say("the reference")
    try:
        with Worker(Reference("the reference"), workload) as worker:
            reference = worker.ask("outputs")
    except Died as error:
        for result in results:
            result.refused = f"not timed, because the reference failed: {error}"
        return results
    running: list[tuple[Result, Worker, int]] = []
    with ExitStack() as stack:
        for result in results:
            say(f"setting up {result.candidate.name}")
            worker = stack.enter_context(Worker(result.candidate, workload))
            with _noted(result):
                running.append((result, worker, _admit(worker, reference)))
        for turn in range(rounds):
            say(f"round {turn + 1} of {rounds}")
            for result, worker, steps in running:
                if result.refused is None:
                    time.sleep(PAUSE)
                    with _noted(result):
                        result.seconds += worker.ask("run", steps)
    return results


def memory(workload: Workload, candidates: Candidates, say: Say = _quiet) -> list[Result]:
    """Return the peak memory of a few steps of each candidate, one process after another."""
    results = []
    for candidate in candidates:
        say(f"memory of {candidate.name}")
        results.append(Result(candidate))
        with Worker(candidate, workload) as worker, _noted(results[-1]):
            worker.ask("run", STEPS)
            results[-1].bytes = worker.ask("peak")
    return results


@contextmanager
def _noted(result: Result) -> Iterator[None]:
    """Refuse a candidate that dies within the block; the others go on."""
    try:
        yield
    except Died as error:
        result.refused = str(error)


def _admit(worker: Worker, reference: Arrays) -> int:
    """Compare the worker's outputs and warm it up; return the number of steps of its turns."""
    outputs = worker.ask("outputs")
    problem = difference(outputs, reference) if outputs else None
    if problem:
        raise Died(f"not timed, because {problem}")
    worker.ask("run", 1)  # may still compile or allocate
    step = min(worker.ask("run", STEPS))
    return max(STEPS, min(1000, round(TURN / step)))


def difference(outputs: Arrays, reference: Arrays) -> str | None:
    """Return what differs too much, if anything does.

    Logits and loss may differ by TOLERANCE of the largest entry; in float64 each gradient, too, measured by the
    largest entry of all gradients of its layer, because that of a bias before a BatchNorm is nothing but rounding.
    In float32 a ReLU whose input is within rounding of zero opens in one library and shuts in another, and moves
    gradients much further: all together, as one vector, they may differ by ROUGHLY of its length.
    """
    exact = {f"float64.{name}": array for name, array in reference.items()}
    expected = {**reference, **(exact if outputs.keys() & exact.keys() else {})}
    if outputs.keys() != expected.keys():
        return f"its outputs are {', '.join(sorted(outputs))} instead of {', '.join(sorted(reference))}"
    largest: dict[str, float] = {}  # entry of each layer's gradients
    for name, array in expected.items():
        if outputs[name].shape != array.shape:
            return f"its {name} has shape {outputs[name].shape}, not {array.shape}"
        layer = name.rpartition(".")[0]
        largest[layer] = max(largest.get(layer, 0.0), float(np.abs(array).max()))
    gradients = [name for name in reference if name.startswith("grad.")]
    for name in (name for name in expected if name not in gradients):
        error = np.abs(outputs[name] - expected[name]).max() / largest[name.rpartition(".")[0]]
        if not error <= TOLERANCE:  # so that NaN is too far
            what = f"{name.removeprefix('float64.')}{' in float64' if name in exact else ''}"
            return f"its {what} is off by {error:.1e} of the largest entry, {TOLERANCE:.0e} is allowed"
    if gradients:
        found, truth = (np.concatenate([a[n].ravel() for n in gradients]) for a in (outputs, reference))
        error = np.linalg.norm(found - truth) / np.linalg.norm(truth)
        if not error <= ROUGHLY:
            return f"its gradients in float32 are off by {error:.1e} of their length, {ROUGHLY} is allowed"
    return None
