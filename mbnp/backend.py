"""Which spelling of an operation runs, how kernels are compiled, and the one thread pool they share."""

import functools
import hashlib
import inspect
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numba
from numba.core import caching
from threadpoolctl import ThreadpoolController

from mbnp.errors import MbnpError, unknown

SPELLINGS = ("loops", "numpy", "numba")

# Everything that lets a loop become vector instructions and fused multiply-adds, and nothing that lets the
# compiler assume there are no NaNs: `fastmath=True` would delete the checks that let a NaN show itself.
FASTMATH = {"contract", "reassoc", "nsz", "arcp"}

# Of what is only ever called by other compiled code.
PIECE = {"fastmath": FASTMATH, "nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

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


def jit(function: Callable | None = None, *, parallel: bool = False, literal: bool = False) -> Callable:
    """`numba.njit` with the project's flags, cached on disk: compiled at the first call, once a machine.

    literal: sums are added in the order they are written in, for where that order avoids a cancellation.

    Where no folder for the cache can be written the kernel is compiled in every process, with one warning.
    """
    if function is None:
        return functools.partial(jit, parallel=parallel, literal=literal)
    kernel = _njit(function, fastmath=not literal and FASTMATH, parallel=parallel, nogil=True)
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return kernel
    try:
        kernel._cache = _Cache(function)  # what cache=True would set
    except RuntimeError:
        # "No locator available": neither the package's folder nor the user's cache can be written.
        _warn_uncached()
    return kernel


class _Cache(caching.FunctionCache):
    """Numba's cache, which notices that a function's own file has changed, and here any beside it, or this one."""

    def __init__(self, function: Callable) -> None:
        super().__init__(function)
        stamp = _stamp(Path(inspect.getfile(function)).parent)
        self._cache_file = caching.IndexDataCacheFile(self._cache_path, self._impl.filename_base, stamp)


@functools.cache
def _stamp(folder: Path) -> str:
    """What changes with the Python files of a folder and with this file."""
    contents = hashlib.sha256()
    for path in [Path(__file__), *sorted(folder.glob("*.py"))]:
        contents.update(path.read_bytes())
    return contents.hexdigest()


def piece(function: Callable) -> Callable:
    """A serial part of kernels in the same folder: compiled into each of them, with nothing made for calls from Python.

    It has no cache of its own, which would cost compile time twice: the kernel that contains it is cached.
    """
    return _njit(function, **PIECE)


def inlined(function: Callable) -> Callable:
    """A piece that is inlined whatever its size, where a call would save and restore registers full of vectors."""
    return _njit(function, forceinline=True, **PIECE)


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


_one_pool = threading.RLock()  # whoever holds it is the only one to run kernels
_limited = False


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold every BLAS at one thread within the block, because our kernels call it from theirs.

    Two pools that spin against each other on the same cores were measured up to ten times slower than
    one. The limit is process-wide while it lasts, and the user's own setting is back afterwards; a second Python
    thread waits for its turn, since the limit belongs to the one that set it.
    """
    global _limited
    with _one_pool:
        if _limited:  # by this thread, further out
            yield
            return
        with _blas().limit(limits=1, user_api="blas"):
            _limited = True
            try:
                yield
            finally:
                _limited = False
