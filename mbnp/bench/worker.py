"""A contender in a process of its own: `python -m mbnp.bench.worker`, one JSON object a line, in and out.

    in   {"contender": "mbnp.bench.ours:Mbnp", "options": {...}, "job": {...}, "outputs": PATH or null}
    out  {"ready": true, "outputs": true or false}   set up; its outputs are in PATH, an .npz file
    in   {"run": 5}
    out  {"seconds": [...]}                          of each of the five steps
    in   {"peak": true}
    out  {"bytes": 1234}      the most memory since before the network was built, beyond what was in use then
                              (null where the system does not tell)

It ends with its input. A mistake of whatever kind goes to stderr and ends it, too.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np

from mbnp.bench.jobs import Job


def main() -> None:
    # Libraries print what they like; only this protocol goes to the real stdout.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())
    memory = Memory()
    contender = load(request["contender"])(Job(**request["job"]), request["options"], memory.start)
    outputs = {}
    if request["outputs"]:
        outputs = contender.outputs()
        np.savez(request["outputs"], **outputs)
    _answer(answers, {"ready": True, "outputs": bool(outputs)})
    for line in sys.stdin:
        request = json.loads(line)
        if "run" in request:
            _answer(answers, {"seconds": timed(contender.run, request["run"])})
        else:
            _answer(answers, {"bytes": memory.peak()})


def load(name: str) -> Callable[..., Any]:
    """The class `module:Class`."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def timed(run: Callable[[], object], steps: int) -> list[float]:
    """The seconds that each of `steps` calls takes."""
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return seconds


class Memory:
    """The peak of this process's resident set, above what it was at `start`. Linux only."""

    def __init__(self) -> None:
        self.before: int | None = None

    def start(self) -> None:
        self.before = _status("VmRSS")
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # forget the peak of the imports
        except OSError:
            pass

    def peak(self) -> int | None:
        """In bytes. Not getrusage's: that one begins with the peak of the process that started this one."""
        peak = _status("VmHWM")
        return None if peak is None or self.before is None else peak - self.before


def _status(field: str) -> int | None:
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith(field + ":"))
    except (OSError, StopIteration):
        return None


def _answer(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")


if __name__ == "__main__":
    main()
