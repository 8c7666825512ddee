"""Which spelling of an operation runs, how kernels are compiled, and the one thread pool they share."""

import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numba
from threadpoolctl import ThreadpoolController

from mbnp.errors import MbnpError, unknown

SPELLINGS = ("loops", "numpy", "numba")

# Everything that lets a loop become vector instructions and fused multiply-adds, and nothing that lets the
# compiler assume there are no NaNs: `fastmath=True` would delete the checks that let a NaN show itself.
FASTMATH = {"contract", "reassoc", "nsz", "arcp"}

_njit: Any = numba.njit  # its type hints do not know all its options

_chosen: ContextVar[str | None] = ContextVar("mbnp_backend", default=None)


def current() -> str:
    """The spelling in force: `using(...)`, else the variable MBNP_BACKEND, else numba."""
    name = _chosen.get() or os.environ.get("MBNP_BACKEND") or "numba"
    if name not in SPELLINGS:
        raise unknown("backend", name, SPELLINGS)
    return name


@contextmanager
def using(name: str) -> Iterator[None]:
    """Within the block, every operation runs in the spelling `name`: loops, numpy or numba."""
    if name not in SPELLINGS:
        raise unknown("backend", name, SPELLINGS)
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def pick(*, loops: Callable, numpy: Callable, numba: Callable | None = None) -> Callable:
    """One function that calls the spelling in force, looked up at each call.

    Where NumPy is already the fast way an operation has no third spelling, and numba means numpy.
    """
    spellings = {"loops": loops, "numpy": numpy, "numba": numba or numpy}

    @functools.wraps(numpy)
    def dispatch(*args: Any, **kwargs: Any) -> Any:
        return spellings[current()](*args, **kwargs)

    return dispatch


def jit(function: Callable | None = None, *, parallel: bool = False) -> Callable:
    """`numba.njit` with the project's flags, cached on disk: compiled at the first call, once a machine.

    Where no folder for the cache can be written the kernel is compiled in every process, with one warning.
    """
    if function is None:
        return functools.partial(jit, parallel=parallel)
    options = {"fastmath": FASTMATH, "parallel": parallel, "nogil": True}
    try:
        return _njit(function, cache=True, **options)
    except RuntimeError:
        # "No locator available": neither the package's folder nor the user's cache can be written.
        _warn_uncached()
        return _njit(function, **options)


def piece(function: Callable) -> Callable:
    """A serial part of kernels in the same file: compiled into each of them, with nothing made for calls from Python.

    It has no cache of its own, which would cost compile time twice: the kernel that contains it is cached.
    """
    return _njit(function, fastmath=FASTMATH, nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@functools.cache  # once a process: the same is true of every kernel
def _warn_uncached() -> None:
    warnings.warn(
        "kernels cannot be cached and compile in every process: set NUMBA_CACHE_DIR to a writable folder",
        stacklevel=4,
    )


def max_threads() -> int:
    """The most threads that `set_num_threads` allows: the processors, or NUMBA_NUM_THREADS."""
    return numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


def set_num_threads(n: int) -> None:
    """Run kernels on `n` threads, 1 to the number of processors this process was started with."""
    most = max_threads()
    if not 1 <= n <= most:
        raise MbnpError(f"threads must be 1 to {most} on this machine, got {n}")
    numba.set_num_threads(n)


def get_num_threads() -> int:
    """How many threads kernels run on."""
    return numba.get_num_threads()


@functools.cache
def _blas() -> ThreadpoolController:
    # SciPy brings its own BLAS, the one that np.dot inside a kernel calls; it must be loaded to be seen.
    import scipy.linalg.cython_blas  # noqa: F401

    return ThreadpoolController()


class _OneThread:
    """Holds BLAS at one thread from the first use that begins to the last one that ends, in whatever thread."""

    def __init__(self) -> None:
        self.lock, self.depth = threading.Lock(), 0
        self.limiter: Any = None

    def begin(self) -> None:
        with self.lock:
            if self.depth == 0:
                self.limiter = _blas().limit(limits=1, user_api="blas")
            self.depth += 1

    def end(self) -> None:
        with self.lock:
            self.depth -= 1
            if self.depth == 0:
                self.limiter.restore_original_limits()


_one_thread = _OneThread()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold every BLAS at one thread within the block, because our kernels call it from theirs.

    Two pools that spin against each other on the same cores were measured up to ten times slower than
    one. The limit is process-wide while it lasts, and the user's own setting is back afterwards.
    """
    _one_thread.begin()
    try:
        yield
    finally:
        _one_thread.end()
