"""Contenders taking turns, each in a process of its own, after their outputs were found to agree.

Alternating turns share the machine's drift fairly; separate processes and a pause between turns keep one's threads,
which go on spinning for a while, from slowing the next; and what a process has allocated before is its own.
"""

import dataclasses
import json
import os
import platform
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

import mbnp
from mbnp.bench.jobs import Job

PAUSE = 0.05  # seconds between turns
TURN = 0.1  # seconds that a turn should take, about
STEPS = 3  # in a turn, at least
TOLERANCE, ROUGHLY = 1e-4, 0.1  # see `difference`
PATIENCE = 600.0  # seconds for an answer: torch.compile takes its time

INSTALLED, TUNED = "as installed", "tuned"
# glibc keeps freed memory instead of handing it back to the system and faulting it in again, page by page.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}

Say = Callable[[str], object]


@dataclass(frozen=True)
class Contender:
    """Who takes part. `group` is whom its time is reported under: mbnp, products, PyTorch, ..."""

    name: str
    group: str
    contender: str  # module:Class, which worker.py loads
    options: Mapping[str, Any] = field(default_factory=dict)
    allocator: str = INSTALLED


@dataclass
class Result:
    """How one contender did; `refused` says why it was not timed, or not to the end."""

    contender: Contender
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


class Died(Exception):
    """A worker ended, or gave no answer. The message is the last line that it left on stderr."""


def can_tune_allocator() -> bool:
    """Whether ALLOCATOR means something to this system's C library."""
    return platform.libc_ver()[0] == "glibc"


def environment(allocator: str) -> dict[str, str]:
    """A worker's environment: this process's, with the allocator as it is installed or tuned."""
    env = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    paths = [str(Path(mbnp.__file__).parents[1]), env.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    env["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # or torch.compile leaves processes of its own behind
    return env | ALLOCATOR if allocator == TUNED else env


def race(
    job: Job, contenders: Iterable[Contender], rounds: int, say: Say = lambda line: None
) -> list[Result]:
    """Let every contender compute, compare, and time those that agree: `rounds` turns each, in alternation."""
    results = [Result(contender) for contender in contenders]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mbnp-bench-")))
        say("the reference")
        try:
            reference = _reference(job, folder / "reference.npz")
        except Died as error:
            for result in results:
                result.refused = f"not timed, because the reference failed: {error}"
            return results
        running: list[tuple[Result, Worker, int]] = []
        for i, result in enumerate(results):
            say(f"setting up {result.contender.name}")
            worker = stack.enter_context(Worker(result.contender))
            with _noted(result):
                steps = _admit(worker, job, folder / f"{i}.npz", reference)
                running.append((result, worker, steps))
        for turn in range(rounds):
            say(f"round {turn + 1} of {rounds}")
            for result, worker, steps in running:
                if result.refused is None:
                    time.sleep(PAUSE)
                    with _noted(result):
                        result.seconds += worker.ask({"run": steps})["seconds"]
    return results


def memory(job: Job, contenders: Iterable[Contender], say: Say = lambda line: None) -> list[Result]:
    """The peak memory of a few steps of each contender, one process after another."""
    results = []
    for contender in contenders:
        say(f"memory of {contender.name}")
        results.append(Result(contender))
        with Worker(contender) as worker, _noted(results[-1]):
            worker.start(job)
            worker.ask({"run": STEPS})
            results[-1].bytes = worker.ask({"peak": True})["bytes"]
    return results


@contextmanager
def _noted(result: Result) -> Iterator[None]:
    """A contender that dies is out, and the others go on."""
    try:
        yield
    except Died as error:
        result.refused = str(error)


def _reference(job: Job, path: Path) -> dict[str, np.ndarray]:
    with Worker(Contender("the reference", "", "mbnp.bench.ours:Reference")) as worker:
        worker.start(job, path)
        with np.load(path) as file:
            return dict(file)


def _admit(worker: "Worker", job: Job, path: Path, reference: dict[str, np.ndarray]) -> int:
    """Set the worker up, compare its outputs, warm it up; how many steps its turns shall have."""
    if worker.start(job, path)["outputs"]:
        with np.load(path) as file:
            problem = difference(dict(file), reference)
        if problem:
            raise Died(f"not timed, because {problem}")
    worker.ask({"run": 1})  # may still compile or allocate
    step = min(worker.ask({"run": STEPS})["seconds"])
    return max(STEPS, min(1000, round(TURN / step)))


def difference(outputs: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> str | None:
    """What differs too much, if anything does.

    Logits and loss may differ by TOLERANCE of the largest entry; in float64 each gradient, too, measured by the
    largest entry of all gradients of its layer, because that of a bias before a BatchNorm is nothing but rounding.
    In float32 a ReLU whose input is within rounding of zero opens here and shuts there, and moves gradients much
    further: all together, as one vector, they may differ by ROUGHLY of its length.
    """
    names = [name for name in reference if f"float64.{name}" in outputs]
    if set(outputs) != {*reference, *(f"float64.{name}" for name in names)}:
        return f"its outputs are {', '.join(sorted(outputs))} instead of {', '.join(sorted(reference))}"
    for name, expected in reference.items():
        if outputs[name].shape != expected.shape:
            return f"its {name} has shape {outputs[name].shape}, not {expected.shape}"
        problem = (
            None if name.startswith("grad.") else _far(name, outputs[name], expected, np.abs(expected).max())
        )
        if problem:
            return problem
    gradients = [name for name in reference if name.startswith("grad.")]
    if gradients:
        found, truth = (
            np.concatenate([of[name].ravel() for name in gradients]) for of in (outputs, reference)
        )
        error = np.linalg.norm(found - truth) / np.linalg.norm(truth)
        if not error <= ROUGHLY:
            return f"its gradients in float32 are off by {error:.1e} of their length, {ROUGHLY} is allowed"
    largest: dict[str, float] = {}
    for name in names:
        layer = name.rpartition(".")[0] or name
        largest[layer] = max(largest.get(layer, 0.0), float(np.abs(reference[name]).max()))
    for name in names:
        scale = largest[name.rpartition(".")[0] or name]
        problem = _far(f"{name} in float64", outputs[f"float64.{name}"], reference[name], scale)
        if problem:
            return problem
    return None


def _far(name: str, found: np.ndarray, expected: np.ndarray, scale: float) -> str | None:
    error = np.abs(found - expected).max() / scale
    if error <= TOLERANCE:
        return None
    return f"its {name} is off by {error:.1e} of the largest entry, {TOLERANCE:.0e} is allowed"  # or NaN


class Worker:
    """A process that runs `worker.py` for one contender. A context: the process is gone at its end."""

    def __init__(self, contender: Contender, patience: float = PATIENCE) -> None:
        self.contender, self.patience = contender, patience

    def __enter__(self) -> "Worker":
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # a pipe would fill up, unread
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mbnp.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment(self.contender.allocator),
        )
        self.requests, self.answers = cast(IO[str], self.process.stdin), cast(IO[str], self.process.stdout)
        # A thread reads, because waiting on a pipe with a time limit is not possible on every system.
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self.requests.close()  # what ends a worker that listens
        try:
            self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join()
        self.answers.close()
        self.errors.close()

    def start(self, job: Job, outputs: Path | None = None) -> dict[str, Any]:
        """Set the contender up; it leaves its outputs in the file `outputs`."""
        return self.ask(
            {
                "contender": self.contender.contender,
                "options": dict(self.contender.options),
                "job": dataclasses.asdict(job),
                "outputs": outputs and str(outputs),
            }
        )

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to a message. Raises Died."""
        try:
            self.requests.write(json.dumps(message) + "\n")
            self.requests.flush()
            line = self.lines.get(timeout=self.patience)
        except BrokenPipeError:
            line = None
        except queue.Empty:
            self.process.kill()
            raise Died(f"no answer in {self.patience:g} seconds") from None
        if line is None:
            self.process.wait()
            raise Died(f"it stopped: {self._last_error()}")
        return json.loads(line)

    def _read(self) -> None:
        for line in self.answers:
            self.lines.put(line)
        self.lines.put(None)

    def _last_error(self) -> str:
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors if line.strip()]
        return lines[-1] if lines else f"exit status {self.process.returncode}, and nothing on stderr"
