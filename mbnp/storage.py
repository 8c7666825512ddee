"""Files and folders that are there whole, or not at all, whatever ends the process that writes them, and when."""

import contextlib
import functools
import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from mbnp.errors import MbnpError

_UNFINISHED = re.compile(r"\..+\.mbnp-([0-9a-f]{8})-(\d+)\.[a-z0-9_]{8}(\.part)?")  # `unfinished` and tempfile's part
DAY = 24 * 3600  # seconds


@contextmanager
def replacing(path: Path, lasting: bool = True) -> Iterator[Path]:
    """Yield a file beside `path` to write into; it replaces `path` when the block ends without an error.

    It is on disk before it gets the name, and the name before this returns: whatever is killed or cut off when, there
    is the old file or the new one, whole. What a killed process left in the middle of this is removed.

    lasting: False does not wait for the disk, for a file whose damage is noticed and does no harm.
    """
    if path.exists() and not path.is_file():  # a device would be gone, where the user may do that
        raise MbnpError(f"{path} is no file: name another one to write to")
    clear(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=unfinished(path), suffix=".part")
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        # mkstemp makes files that only their owner can read; give the checkpoint the mode any other file gets.
        os.umask(mask := os.umask(0))
        os.chmod(partial, 0o666 & ~mask)
        if lasting:
            flush(partial)
        os.replace(partial, path)
        if lasting:
            flush(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write into; it becomes `folder`, which must not exist, when the block ends without an error.

    What is in it is not flushed to disk.
    """
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder} exists already: name a new folder, or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear(folder)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=unfinished(folder)))
    try:
        os.umask(mask := os.umask(0))
        made.chmod(0o777 & ~mask)  # mkdtemp makes folders for their owner only
        yield made
        made.rename(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    flush(folder.parent)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk. Not all systems can do that for folders."""
    folder = path.is_dir()
    with contextlib.suppress(*[OSError] * folder):
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def unfinished(path: Path) -> str:
    """Return how the names of files and folders begin that this process makes, and that will be `path`."""
    return f".{path.name[:40]}.mbnp-{_here()}-{os.getpid()}."


def clear(path: Path) -> None:
    """Remove what processes that are no more left unfinished in the folder of `path`.

    Whether those of another machine, or of another container, still run cannot be asked: theirs goes after a day.
    """
    for partial in path.parent.glob(".*.mbnp-*.*"):
        if (found := _UNFINISHED.fullmatch(partial.name)) and _left(partial, found[1], int(found[2])):
            shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink(missing_ok=True)


def _left(partial: Path, where: str, process: int) -> bool:
    if where == _here():
        return not psutil.pid_exists(process)
    with contextlib.suppress(OSError):
        return time.time() - partial.stat().st_mtime > DAY
    return False


@functools.cache
def _here() -> str:
    """Return a word for where this process's number means something: the machine, and on Linux the container."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]
