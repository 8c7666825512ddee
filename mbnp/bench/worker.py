"""A candidate in a process of its own, which answers requests through a pipe."""

import multiprocessing
import os
import sys
import tempfile
import timeit
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

from mbnp.bench.candidates import TUNED, Candidate
from mbnp.bench.workload import Workload

PATIENCE = 600.0  # seconds for an answer: torch.compile takes its time

# glibc keeps freed memory instead of handing it back to the system and faulting it in again, page by page.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": 1 << 32, "MALLOC_TRIM_THRESHOLD_": 1 << 33, "MALLOC_TOP_PAD_": 1 << 28}


class Died(Exception):
    """A worker ended, or gave no answer. The message is the last line that it printed."""


class Worker:
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
        self.process = spawn.Process(target=_serve, args=(theirs, self.printed, candidate, workload))
        with environment(candidate.allocator):
            self.process.start()
        theirs.close()

    def __enter__(self) -> "Worker":
        return self

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


def _serve(connection: Connection, printed: Path, candidate: Candidate, workload: Workload) -> None:
    """Answer requests in the new process, until the connection is closed."""
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
                connection.send(
                    timeit.repeat(candidate.run, "import gc; gc.enable()", repeat=steps[0], number=1)
                )
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
