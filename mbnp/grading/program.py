"""A reader's program in a process of its own, with limits on time, memory and output.

    with Program() as program:
        program.load(source)
        y = program.function("convolve")(x=x, w=w, b=b, stride=1, padding=0)

A function called in this way returns, raises and changes its arguments as it does in its own process. Where that ends,
or a limit is exceeded, StoppedError says why, and what is called next runs in a new process. `child.py` is its other
end.
"""

import copy
import importlib
import json
import os
import pickle
import queue
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil

from mbnp.errors import MbnpError
from mbnp.grading import child
from mbnp.grading.compare import DroppedError, StoppedError
from mbnp.grading.exercise import UnusableError
from mbnp.grading.source import Source, brief

SECONDS = 20.0  # more than this for one exercise, or for the file, is an endless loop; compiling does not count
COMPILING = 600.0  # unless it never ends
STARTING = 60.0  # Python and NumPy, from a slow disk
# Bytes, beyond what Python and NumPy have; Numba's and PyTorch's threads, one for each processor, reserve some.
MEMORY = min((2 << 30) + (os.cpu_count() or 1) * (32 << 20), psutil.virtual_memory().total // 2)
SLACK = 256 << 20  # beyond that, where the system did not see it
PRINTED = 20_000  # bytes that are kept
FLOOD = 200_000_000  # bytes that are too many
STARTS = 4  # processes for loading a file
LOOK = 0.05  # seconds between two looks at the process

START = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from mbnp.grading import child
from mbnp.parent import end_with_parent
end_with_parent(int(sys.argv[2]))
child.main()"""

LOOP = "is there a loop without an end?"


class Program:
    """A reader's program. Leaving the context ends its process and all that this one started.

    dropped: says, while it runs, whether somebody still waits for it; if not, DroppedError is raised
    """

    def __init__(self, dropped: Callable[[], bool] = lambda: False) -> None:
        self.dropped = dropped
        self.source = Source(Path(), "")
        self.only: Sequence[str] | None = None
        self.problems: list[child.Problem] = []  # what does not run in the file
        self.names: set[str] = set()  # its functions
        self.seconds = 0.0  # what the reader's own program took
        self._left = 0.0  # of the time for the call that came back last
        self._printed = ""
        self._skipped: list[int] = []
        self._statement: tuple[int, int, list[str]] = (0, 0, [])  # the one that runs: its index, line and names
        self._process: _Process | None = _Process()  # Python starts while the caller reads the file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def load(self, source: Source, only: Sequence[str] | None = None) -> None:
        """Run a program. only: no more of it than what these names need.

        A statement that ends the process, or does not end itself, is skipped the next time.
        """
        self.source, self.only = source, only
        first: list[child.Problem] = []
        for left in (SECONDS, *[SECONDS / 4] * (STARTS - 1)):
            try:
                names, problems = self._load(left)
                self.names, self.problems = set(names), sorted([*first, *problems])
                return
            except StoppedError as error:
                index, line, names = self._statement
                first.append((error.line or line, str(error), names))
                self._skipped.append(index)
        raise MbnpError(self.where(first[0]))

    def where(self, problem: child.Problem) -> str:
        """Describe a problem in one line, with its place."""
        line, what, _ = problem
        return f"{self.source.path}, {self.source.where(line)}: {what}" if line else f"{self.source.path}: {what}"

    def function(self, name: str) -> Callable:
        """Return a function that calls one of the program's, by names. All its calls together have SECONDS."""
        left = [SECONDS]

        def call(**arguments: Any) -> Any:
            try:
                if self._process is None:
                    self._load(SECONDS)
                assert self._process is not None
                self._process.ask("call", name, pickle.dumps(arguments))
                answer = self._wait(left[0])
                left[0] = self._left
            except StoppedError as error:
                at = self.source.where(error.line) if error.line else ""
                raise StoppedError(f"{error} ({at})" if at else str(error)) from None
            return self._result(answer, arguments)

        return call

    def inside(self, name: str, check: Callable, *arguments: Any, limit: float = SECONDS) -> Any:
        """Return what check(function, *arguments) returns in the process, in so many seconds.

        check: a function of one of our modules
        """
        if self._process is None:
            self._load(SECONDS)
        assert self._process is not None
        own = self.seconds
        try:
            self._process.ask("inside", name, pickle.dumps((check, arguments)))
            return self._result(self._wait(limit), {})
        finally:
            self.seconds = own

    def done(self) -> str:
        """End an exercise: return what was printed since the last. A process that it left unclean is replaced."""
        if self._process is not None:
            with suppress(StoppedError):
                self._process.ask("done")
                _, clean = self._wait(SECONDS)
                self._printed = self._process.printed.take()
                if not clean:
                    self._end()
        printed, self._printed = self._printed, ""
        return printed

    # --- one process ---

    def _load(self, left: float) -> tuple[list[str], list[child.Problem]]:
        if self._process is None:
            self._process = _Process()
        source = self.source
        self._statement = (0, 0, [])
        only = list(self.only) if self.only is not None else None
        self._process.load(str(source.path.resolve()), source.text, only, self._skipped)
        self._wait(STARTING, until="begin")
        _, names, problems = self._wait(left, until="loaded")
        self._process.printed.take()
        return names, problems

    def _end(self) -> None:
        if self._process is not None:
            self._process.end()
            self._printed += self._process.printed.take(wait=0.3)
            self._process = None

    def _wait(self, left: float, until: str = "") -> child.Answer:
        """Return the next answer, or the one that is called `until`. Raise StoppedError if none comes in time."""
        process = self._process
        assert process is not None
        compiling, begun, last = 0.0, 0.0, time.monotonic()
        own, limit = until != "begin", left if until else SECONDS
        try:
            while True:
                answer = process.next_answer()
                if self.dropped():
                    raise DroppedError
                now = time.monotonic()
                if begun:
                    compiling += now - last
                else:
                    left -= now - last
                self.seconds += (now - last) * own
                last = now
                if answer is None:
                    process.check()
                    if left <= 0 or compiling > COMPILING:
                        did = "end" if until else "return"
                        raise StoppedError(f"it did not {did} within {limit:g} seconds: {LOOP}", process.line())
                elif answer[0] == "compiling":
                    begun = float(answer[1])
                elif answer[0] == "statement":
                    self._statement = answer[1:]
                elif not until or answer[0] == until:
                    self._left = left
                    return answer
        except StoppedError:
            self._end()
            raise

    # --- answers ---

    def _result(self, answer: child.Answer, arguments: dict[str, Any]) -> Any:
        """Do what the function did: change the arguments, and return or raise."""
        kind, *what = answer
        if kind == "returned":
            value, touched = what
            for name, changed in touched.items():
                _change(arguments[name], changed)
            return value
        if kind == "problem":
            raise UnusableError(what[0])
        (module, name, ordinary), parts, message, line, text = what
        at = f" ({self.source.where(line)}: {text})" if line else ""
        if name == "MemoryError":
            raise UnusableError(f"it needs too much memory: does a list or an array grow without an end?{at}")
        error = _exception(module, name, ordinary, parts, message)
        error.where = at  # type: ignore[attr-defined]
        raise error


def _change(mine: Any, theirs: Any) -> None:
    """Write into an argument what the function wrote into its copy."""
    if isinstance(mine, np.ndarray) and isinstance(theirs, np.ndarray) and mine.shape == theirs.shape:
        mine[...] = theirs
    elif isinstance(mine, list) and isinstance(theirs, list):
        mine[:] = copy.deepcopy(theirs)
    elif isinstance(mine, dict) and isinstance(theirs, dict):
        mine.clear()
        mine.update(theirs)


def _exception(module: str, name: str, ordinary: bool, parts: Sequence[Any], message: str) -> BaseException:
    """Return an exception like that of the other process: of the same class, where that is Python's or NumPy's."""
    if name in ("SystemExit", "RecursionError", "NotImplementedError"):
        return {"SystemExit": SystemExit, "RecursionError": RecursionError}.get(name, NotImplementedError)(message)
    if ordinary and module.split(".")[0] in ("builtins", "numpy"):
        with suppress(Exception):
            error = getattr(importlib.import_module(module), name)(*parts)
            if str(error).splitlines()[:1] == [message][: bool(message)]:
                return error
    return type(name, (Exception,), {"__str__": lambda self: message})()


# --- the process ---


class _Process:
    """One process of `child.main`, the threads that read what it answers and prints, and its family."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="mbnp-grade-", ignore_cleanup_errors=True)
        path = json.dumps([os.path.abspath(place) for place in sys.path])
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", START, path, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is ours, and all that it starts can be ended together
        )
        self.mark = secrets.token_bytes(16)
        self.printed = _Printed(self.process.stderr, self.mark)
        self.answers: queue.Queue[child.Answer | None] = queue.Queue()
        self.filename = ""
        self.base = 0
        self.looks = 0
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.ask(self.folder.name, MEMORY)

    def _read(self) -> None:
        assert self.process.stdout
        message: child.Answer | None = ()
        while message is not None:
            try:
                message = child.receive(self.process.stdout)
            except Exception:  # half an answer, or none: the process ended while it wrote
                message = None
            self.answers.put(message)

    def ask(self, *request: Any) -> None:
        assert self.process.stdin
        with suppress(OSError):  # it has ended: that shows when its answer is waited for
            child.send(self.process.stdin.fileno(), request)

    def load(self, path: str, text: str, only: list[str] | None, skipped: list[int]) -> None:
        self.filename = path.encode("ascii", "backslashreplace").decode()  # as faulthandler writes it
        self.ask("load", path, self.filename, text, only, skipped, self.mark)

    def next_answer(self) -> child.Answer | None:
        """Return an answer, or None if there is none yet. Raise StoppedError if there will be none."""
        try:
            answer = self.answers.get(timeout=LOOK)
        except queue.Empty:
            if self.process.poll() is not None and self.answers.empty():
                # Another process, that it forked, may keep the pipe open.
                time.sleep(LOOK)
                if self.answers.empty():
                    raise StoppedError(*self._obituary()) from None
            return None
        if answer is None:
            raise StoppedError(*self._obituary())
        return answer

    def check(self) -> None:
        """Raise StoppedError if the process and its children use too much memory, or print too much."""
        if self.printed.count > FLOOD:
            raise StoppedError(f"it printed {self.printed.count:,} characters: {LOOP}", self.line())
        self.looks += 1
        # Where the system limits memory this finds what that does not see; to look at all processes takes its time.
        first, *others = self._family(all_of_it=self.looks % 10 == 1) or [None]
        used = _memory(first, "rss") + sum(_memory(process, "uss") for process in others)  # a fork shares the rest
        self.base = self.base or used
        if used > self.base + MEMORY + SLACK:
            what = "does a list or an array grow without an end?"
            raise StoppedError(f"it needs more than {MEMORY / 2**30:.2g} GB of memory: {what}", self.line())

    def line(self) -> int:
        """Return the line of the reader's file that runs, or 0 if that cannot be found out."""
        if not hasattr(signal, "SIGUSR1"):
            return 0
        with suppress(OSError):
            os.kill(self.process.pid, signal.SIGUSR1)
        for _ in range(10):
            time.sleep(0.03)
            if line := self._line_in_stacks():
                return line
        return 0

    def _line_in_stacks(self) -> int:
        frames = re.findall(r'File "(.*?)(?:\.\.\.)?", line (\d+)', self._stacks())  # a long name is cut
        return next((int(line) for name, line in frames if name and self.filename.startswith(name)), 0)

    def _stacks(self) -> str:
        with suppress(OSError):
            return Path(self.folder.name, "stacks").read_text(encoding="utf-8", errors="replace")
        return ""

    def _obituary(self) -> tuple[str, int]:
        """Say how the process ended, and at which line if that is known."""
        try:
            status = self.process.wait(1)
        except subprocess.TimeoutExpired:
            return "it closed the files that the grader reads: close only what you opened", 0
        if "forks" in self._stacks():
            return f"it started more than {child.MOST_FORKS} processes: is there a fork in a loop?", 0
        if status >= 0:
            return f"it ended the program (status {status}): return the result instead", 0
        name = signal.Signals(-status).name
        if name in ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE"):
            what = "does it call itself without an end, or use memory that is not its own?"
            return f"it crashed ({name}): {what}", self._line_in_stacks()
        return f"it was ended by the signal {name}: by itself, or for lack of memory", self._line_in_stacks()

    def _family(self, all_of_it: bool = True) -> list[psutil.Process]:
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *(parent.children(recursive=True) if all_of_it else [])]
        except psutil.Error:
            return []

    def end(self) -> None:
        """End the process and all that it started."""
        family = self._family()
        if hasattr(os, "killpg"):
            with suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
        for process in family:
            with suppress(psutil.Error):
                process.kill()
        self.process.wait()
        streams = (
            (None, self.process.stdin),
            (self.reader, self.process.stdout),
            (self.printed.thread, self.process.stderr),
        )
        for thread, stream in streams:
            if thread:
                thread.join(1)
            if stream and not (thread and thread.is_alive()):  # a process that got away keeps its pipes
                with suppress(OSError):
                    stream.close()
        self.folder.cleanup()


def _memory(process: psutil.Process | None, kind: str) -> int:
    """Return the memory of a process in bytes, all of it ("rss") or what it shares with no other ("uss")."""
    try:
        if process is None:
            return 0
        return getattr(process.memory_info() if kind == "rss" else process.memory_full_info(), kind)
    except psutil.Error:
        return 0


class _Printed:
    """Reads what a process prints; keeps the beginning of it."""

    def __init__(self, stream: Any, mark: bytes) -> None:
        self.stream, self.mark = stream, mark
        self.kept = bytearray()
        self.count = 0  # bytes since the last `take`
        self.tail = b""  # what may be the beginning of a mark
        self.marked = threading.Event()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        while chunk := os.read(self.stream.fileno(), 1 << 16):
            *before, rest = (self.tail + chunk).split(self.mark)
            for part in before:
                self._keep(part)
                self.marked.set()
            cut = max(len(rest) - len(self.mark) + 1, 0)
            self._keep(rest[:cut])
            self.tail = rest[cut:]
        self._keep(self.tail)
        self.tail = b""
        self.marked.set()

    def _keep(self, data: bytes) -> None:
        self.count += len(data)
        self.kept += data[: max(PRINTED - len(self.kept), 0)]

    def take(self, wait: float = 1.0) -> str:
        """Return what was printed before the next mark, or before the end."""
        self.marked.wait(wait)
        self.marked.clear()
        kept, count = bytes(self.kept), self.count
        self.kept, self.count = bytearray(), 0
        text = brief(kept.decode("utf-8", "backslashreplace"))
        return text + (f"\n... ({count:,} characters in all)" if count > len(kept) else "")
