"""The one pool of threads that all kernels run on: Numba's.

No kernel calls BLAS, whose threads would spin on the cores that the next kernel needs: a training step with both pools
was measured four to ten times slower than with one.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numba.np.ufunc.parallel

from mbnp.errors import MbnpError


def max_threads() -> int:
    """Return the most threads that `set_num_threads` allows: the processors, or NUMBA_NUM_THREADS."""
    return numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


def set_num_threads(n: int) -> None:
    """Run kernels on `n` threads, 1 to the number of processors that this process was started with."""
    most = max_threads()
    if not 1 <= n <= most:
        raise MbnpError(f"threads must be 1 to {most} on this machine, got {n}")
    start()
    numba.set_num_threads(n)


def get_num_threads() -> int:
    """Return the number of threads that kernels run on."""
    return start()


# Turns of the loop in which a thread of GNU's OpenMP waits for the next kernel before it sleeps: about half a
# millisecond, longer than what lies between two kernels. By default it is thirty times that: beside other busy
# programs, the thread that is waited for would get no processor for as long, in each kernel again.
SPIN = {"GOMP_SPINCOUNT": "10000"}


@contextmanager
def _short_spin() -> Iterator[None]:
    """Let OpenMP, if it is loaded within the block, wait for a short time, unless the user has chosen another way."""
    chosen = {} if numba.np.ufunc.parallel._is_initialized or {"OMP_WAIT_POLICY", *SPIN} & os.environ.keys() else SPIN
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name in chosen:
            os.environ.pop(name, None)


_started = False  # whether this process, or one that it was forked from, has begun to start the threads
forked = False  # whether they were those of the process that this one was forked from, and are not there


def start() -> int:
    """Start the threads, unless they run, and return their number.

    Compiled code that loops in parallel is linked with functions of theirs.
    """
    global _started
    if numba.np.ufunc.parallel._is_initialized:
        return numba.get_num_threads()
    _started = True  # before they are there: a process that is forked meanwhile would wait for them for ever
    try:
        with _short_spin():
            return numba.get_num_threads()
    except ValueError as error:
        _started = False
        reason = " ".join(str(error).split())
        chosen = " and ".join(name for name in os.environ if name.startswith("NUMBA_THREADING_LAYER"))
        advice = f"mend or unset {chosen}" if chosen else "install Numba again"
        raise MbnpError(f"no threads: {reason} {advice}") from None


lock = threading.RLock()


def one_pool() -> "threading.RLock":
    """Return the lock of the pool of threads: `with one_pool():` waits until no other Python thread runs kernels.

    Numba's pool takes one kernel at a time, and one of its kinds ends the process that gives it two. Every kernel takes
    the lock for itself; the fast engine holds it for longer, since the arrays that it reuses belong to one call at a
    time. Within a block of its own thread it may be taken again.
    """
    return lock


def _after_fork() -> None:
    """Give the child a lock of its own: that of its parent may be held by a thread that the child does not have."""
    global lock, forked
    lock = threading.RLock()
    forked = forked or _started or numba.np.ufunc.parallel._is_initialized


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
