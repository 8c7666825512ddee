"""No process outlives the one that started it. `weights/keras/files.py` runs this text where there is no mbnp."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time


def end_with_parent(parent: int) -> None:
    """End this process when its parent, of this number, has ended, however that ended, or the thread that started it.

    Linux sees to it itself, also while a library in C keeps Python from running. Elsewhere, and where the parent ended
    before this call, a thread looks once in a while. Windows does not tell.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if sys.platform != "win32":
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


@contextlib.contextmanager
def starting():  # type: ignore[no-untyped-def]
    """Hold Ctrl-C back within the block, and from the processes that start there: it waits for their `serve`.

    The mask is what they inherit. Here it is not enough: another thread, a progress bar's, may get the signal, and
    Python would raise in this one, while a process is told what to do: that would end at half a sentence.
    """
    if sys.platform == "win32":
        yield
        return
    held: list[int] = []
    ours = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, frame: held.append(number)) if ours else None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if ours:
            signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)


def serve(parent: int) -> None:
    """Begin a process of a pool: it ends with its parent, and by Ctrl-C at once and without a traceback."""
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _watch(parent: int, number=os.getppid, wait=time.sleep, leave=os._exit) -> None:  # type: ignore[no-untyped-def]
    """Look for the parent, by functions that a program which runs here cannot replace."""
    while number() == parent:
        wait(0.5)
    leave(1)
