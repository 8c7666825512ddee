"""The one pool of threads that all kernels run on: Numba's.

No kernel calls BLAS, whose threads would spin on the cores that the next kernel needs: a training step with both pools
was measured four to ten times slower than with one.
"""

import threading

import numba

from mbnp.errors import MbnpError


def max_threads() -> int:
    """Return the most threads that `set_num_threads` allows: the processors, or NUMBA_NUM_THREADS."""
    return numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


def set_num_threads(n: int) -> None:
    """Run kernels on `n` threads, 1 to the number of processors that this process was started with."""
    most = max_threads()
    if not 1 <= n <= most:
        raise MbnpError(f"threads must be 1 to {most} on this machine, got {n}")
    numba.set_num_threads(n)


def get_num_threads() -> int:
    """Return the number of threads that kernels run on."""
    return numba.get_num_threads()


_one_pool = threading.RLock()


def one_pool() -> "threading.RLock":
    """Return the lock of the pool of threads: `with one_pool():` waits until no other Python thread runs kernels.

    Numba's pool takes one kernel at a time, and the arrays that the fast engine reuses belong to one call at a time.
    Within a block of its own thread it may be taken again.
    """
    return _one_pool
