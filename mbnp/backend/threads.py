"""One pool of threads: Numba's. Within each of them BLAS is limited to one thread."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numba
from threadpoolctl import ThreadpoolController

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


@functools.cache
def _blas() -> ThreadpoolController:
    # SciPy brings its own BLAS, the one that np.dot inside a kernel calls; it must be loaded to be seen.
    import scipy.linalg.cython_blas  # noqa: F401

    return ThreadpoolController()


_one_pool = threading.RLock()  # one user at a time of BLAS within kernels, and of the arrays that the engine shares
_limited = False


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold every BLAS at one thread within the block, because our kernels call it from their threads.

    Two pools that spin against each other on the same cores were measured up to ten times slower than one. The limit
    is process-wide while it lasts, and the user's own setting is back afterwards. A second Python thread waits until
    the first one has left its block, since only the thread that set the limit can lift it.
    """
    global _limited
    with _one_pool:
        if _limited:  # by an outer block of this thread
            yield
            return
        with _blas().limit(limits=1, user_api="blas"):
            _limited = True
            try:
                yield
            finally:
                _limited = False
