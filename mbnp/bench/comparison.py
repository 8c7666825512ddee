"""Candidates in alternation, each in a process of its own, after their outputs were found to agree.

Alternating turns spread the machine's drift over all of them; separate processes and a pause between turns keep one's
threads, which go on spinning for a while, from slowing the next; and what a process has allocated before is its own.
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil

from mbnp.bench.candidates import TUNED, Arrays, Candidate, Reference
from mbnp.bench.workload import Workload
from mbnp.parent import end_with_parent

PAUSE = 0.05  # seconds between turns
TURN = 0.1  # seconds that a turn should take, about
STEPS = 3  # in a turn, at least
TOLERANCE, ROUGHLY = 1e-4, 0.1  # see `difference`
PATIENCE = 600.0  # seconds for an answer: torch.compile takes its time

# glibc keeps freed memory instead of handing it back to the system and faulting it in again, page by page.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": 1 << 32, "MALLOC_TRIM_THRESHOLD_": 1 << 33, "MALLOC_TOP_PAD_": 1 << 28}

Say = Callable[[str], object]  # shows what is going on; str shows nothing


@dataclass
class Result:
    """The times or the memory of one candidate; `refused` says why it was not timed, or not to the end."""

    candidate: Candidate
    seconds: list[float] = field(default_factory=list)  # of every step of every turn
    loaded: list[float] = field(default_factory=list)  # the same beside a load
    bytes: int | None = None  # in `memory`: the peak above what imports took
    refused: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def slowdown(self) -> float:
        """Return how many times as long a step takes beside the load."""
        return statistics.median(self.loaded) / self.median

    @property
    def quartiles(self) -> tuple[float, float]:
        low, _, high = statistics.quantiles(self.seconds, n=4) if len(self.seconds) > 1 else self.seconds * 3
        return low, high


class Died(Exception):
    """A worker ended, or gave no answer. The message is the last line that it printed."""


class Worker(AbstractContextManager["Worker"]):
    """A process that runs one candidate. A context: the process is gone at its end.

    ask("outputs")     the candidate's outputs, by name
    ask("run", 5)      the seconds of each of five runs
    ask("peak")        the most memory since before the network was built, beyond what was in use then, in bytes;
                       None where the system does not tell
    """

    def __init__(self, candidate: Candidate, workload: Workload, patience: float = PATIENCE) -> None:
        self.patience = patience
        self.folder = tempfile.TemporaryDirectory(prefix="mbnp-bench-", ignore_cleanup_errors=True)
        self.printed = Path(self.folder.name) / "printed.txt"
        self.printed.touch()
        spawn = multiprocessing.get_context("spawn")
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs, self.printed, candidate, workload, os.getpid()))
        with environment(candidate.allocator):
            self.process.start()
        theirs.close()

    def __exit__(self, *_: object) -> None:
        self.connection.close()  # ends a worker that listens
        self.process.join(timeout=1)
        self.process.kill()
        self.process.join()
        self.folder.cleanup()

    def ask(self, *request: Any) -> Any:
        """Return the answer to a request. Raise Died, with the reason, if there is none."""
        try:
            self.connection.send(request)
            if self.connection.poll(self.patience):
                return self.connection.recv()
        except (EOFError, OSError):  # it closed its end
            self.process.join()
            lines = [line for line in self.printed.read_text(errors="replace").splitlines() if line.strip()]
            silent = f"exit status {self.process.exitcode}, and nothing printed"
            raise Died(f"it stopped: {lines[-1].strip() if lines else silent}") from None
        self.process.kill()
        raise Died(f"no answer in {self.patience:g} seconds")


class Load(AbstractContextManager["Load"]):
    """Processes that do nothing but compute, as other programs of the user might. They rest outside `applied` blocks.

    They end with this process, however it ends.
    """

    def __init__(self, count: int) -> None:
        watch = f"from mbnp.parent import end_with_parent\nend_with_parent({os.getpid()})"
        command = [sys.executable, "-c", f"{watch}\nprint(flush=True)\nwhile True: pass"]
        self._started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(count)]
        for process in self._started:
            assert process.stdout is not None
            process.stdout.readline()  # it watches its parent: not before may it be suspended
            process.stdout.close()
        self.processes = [psutil.Process(process.pid) for process in self._started]
        self._each(psutil.Process.suspend)

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.kill()
            process.wait()

    @contextmanager
    def applied(self) -> Iterator[None]:
        self._each(psutil.Process.resume)
        try:
            yield
        finally:
            self._each(psutil.Process.suspend)

    def _each(self, action: Callable[[psutil.Process], object]) -> None:
        for process in self.processes:
            action(process)


def compare(
    workload: Workload, candidates: Iterable[Candidate], rounds: int, say: Say = str, load: int = 0
) -> list[Result]:
    """Let every candidate compute, compare, and time those that agree: `rounds` turns each, in alternation.

    load: let each turn be followed by another one beside so many busy processes.
    """
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
        busy = stack.enter_context(Load(load))
        for turn in range(rounds):
            say(f"round {turn + 1} of {rounds}")
            for result, worker, steps in running:
                if result.refused is None:
                    time.sleep(PAUSE)
                    with _noted(result):
                        result.seconds += worker.ask("run", steps)
                        if load:
                            with busy.applied():
                                result.loaded += worker.ask("run", steps)
    return results


def memory(workload: Workload, candidates: Iterable[Candidate], say: Say = str) -> list[Result]:
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
        # A layer on which the loss does not depend has gradients of nothing but zeros.
        error = np.abs(outputs[name] - expected[name]).max() / (largest[name.rpartition(".")[0]] or 1.0)
        if not error <= TOLERANCE:  # so that NaN is too far
            what = f"{name.removeprefix('float64.')}{' in float64' if name in exact else ''}"
            return f"its {what} is off by {error:.1e} of the largest entry, {TOLERANCE:.0e} is allowed"
    if gradients:
        found, truth = (np.concatenate([a[n].ravel() for n in gradients]) for a in (outputs, reference))
        error = np.linalg.norm(found - truth) / np.linalg.norm(truth)
        if not error <= ROUGHLY:
            return f"its gradients in float32 are off by {error:.1e} of their length, {ROUGHLY} is allowed"
    return None


@contextmanager
def environment(allocator: str) -> Iterator[None]:
    """Let a process that is started within the block have the allocator as installed or tuned, and run no script."""
    before, main = dict(os.environ), sys.modules["__main__"]
    for name, value in ALLOCATOR.items():
        os.environ.pop(name, None)
        if allocator == TUNED:
            os.environ[name] = str(value)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # or torch.compile leaves processes of its own behind
    sys.modules["__main__"] = ModuleType("__main__")  # multiprocessing would run the user's script once more
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        os.environ.clear()
        os.environ.update(before)


def _serve(connection: Connection, printed: Path, candidate: Candidate, workload: Workload, parent: int) -> None:
    """Answer requests in the new process, until the connection is closed."""
    end_with_parent(parent)
    file = os.open(printed, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):  # libraries print what they like
        os.dup2(file, stream)
    candidate.prepare(workload)
    before = _memory("VmRSS")
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    candidate.build()
    with suppress(EOFError):
        while True:
            name, *steps = connection.recv()
            if name == "run":
                seconds = timeit.repeat(candidate.run, "import gc; gc.enable()", repeat=steps[0], number=1)
                connection.send(seconds)
            elif name == "outputs":
                connection.send(candidate.outputs())
            else:  # not getrusage's peak: that one begins with that of the process that started this one
                peak = _memory("VmHWM")
                connection.send(None if peak is None or before is None else peak - before)


def _memory(field: str) -> int | None:
    """Return a field of this process's status in bytes, if the system has it: Linux does."""
    with suppress(OSError, StopIteration), open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(field + ":"))
    return None
