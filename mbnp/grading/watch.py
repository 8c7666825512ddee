"""Waiting for a reader: for the next save of a file, and for what is typed meanwhile."""

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PAUSE = 0.3  # seconds between two looks at the file

Lines = queue.SimpleQueue[str]


def typed() -> Lines:
    """Return a queue of the lines typed from now on, with "q" for Ctrl-D; empty where there is no keyboard."""
    lines: Lines = queue.SimpleQueue()

    def read(number: int) -> None:
        # Not sys.stdin.readline, whose lock a thread that waits for a line would still hold when Python ends.
        while text := os.read(number, 4096):
            for line in text.decode(errors="replace").splitlines():
                lines.put(line.strip())
        if os.isatty(number):  # Ctrl-D; where there is no keyboard the end says nothing
            lines.put("q")

    try:
        thread = threading.Thread(target=read, args=(sys.stdin.fileno(),), daemon=True)
    except (AttributeError, OSError, ValueError):
        return lines
    thread.start()
    return lines


def events(file: Path, lines: Lines) -> Iterator[str]:
    """Yield "saved" at once and after each save of `file`, and each line that is typed meanwhile; without an end."""
    before = None
    while True:
        now = _settled(file)
        if now is not None and now != before:
            before = now
            yield "saved"
        try:
            yield lines.get(timeout=PAUSE)
        except queue.Empty:
            continue


def saved_again(file: Path) -> Callable[[], bool]:
    """Return a function that says whether the file was saved after this call."""
    before = _stamp(file)
    return lambda: _stamp(file) not in (before, None)


def _settled(file: Path) -> tuple | None:
    """Return what changes with each save, once it has stopped changing: an editor may write in several steps."""
    before = None
    while (now := _stamp(file)) != before:
        before = now
        time.sleep(PAUSE / 10)
    return now


def _stamp(file: Path) -> tuple | None:
    try:
        status = file.stat()
    except OSError:  # between the steps of an editor that writes a new file and renames it
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
