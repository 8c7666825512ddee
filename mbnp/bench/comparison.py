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
Say = Callable[[str], object]


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


def compare(
    workload: Workload, candidates: Iterable[Candidate], rounds: int, say: Say = lambda line: None
) -> list[Result]:
    """Let every candidate compute, compare, and time those that agree: `rounds` turns each, in alternation."""
    results = [Result(candidate) for candidate in candidates]
    say("the reference")
    try:
        with Worker(Candidate("the reference", "", Reference), workload) as worker:
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


def memory(workload: Workload, candidates: Iterable[Candidate], say: Say = lambda line: None) -> list[Result]:
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
    exact = {name: outputs[f"float64.{name}"] for name in reference if f"float64.{name}" in outputs}
    if set(outputs) != {*reference, *(f"float64.{name}" for name in exact)}:
        return f"its outputs are {', '.join(sorted(outputs))} instead of {', '.join(sorted(reference))}"
    for name, expected in reference.items():
        if outputs[name].shape != expected.shape:
            return f"its {name} has shape {outputs[name].shape}, not {expected.shape}"
    largest: dict[str, float] = {}  # entry of each layer's gradients
    for name, expected in reference.items():
        layer = name.rpartition(".")[0] or name
        largest[layer] = max(largest.get(layer, 0.0), float(np.abs(expected).max()))
    gradients = [name for name in reference if name.startswith("grad.")]
    compared = [(name, outputs[name], name) for name in reference if name not in gradients]
    compared += [(f"{name} in float64", array, name) for name, array in exact.items()]
    for what, found, name in compared:
        error = np.abs(found - reference[name]).max() / largest[name.rpartition(".")[0] or name]
        if not error <= TOLERANCE:  # so that NaN is too far
            return f"its {what} is off by {error:.1e} of the largest entry, {TOLERANCE:.0e} is allowed"
    if gradients:
        found, truth = (
            np.concatenate([of[name].ravel() for name in gradients]) for of in (outputs, reference)
        )
        error = np.linalg.norm(found - truth) / np.linalg.norm(truth)
        if not error <= ROUGHLY:
            return f"its gradients in float32 are off by {error:.1e} of their length, {ROUGHLY} is allowed"
    return None
