"""Compile kernels: Numba's flags, in one place, and a cache on disk that notices every change."""

import functools
import hashlib
import inspect
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import types
from numba.core import caching
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

# Everything that lets a loop become vector instructions and fused multiply-adds, and nothing that lets the
# compiler assume there are no NaNs: `fastmath=True` would delete the checks that let a NaN show itself.
FASTMATH = {"contract", "reassoc", "nsz", "arcp"}


class _PieceLibrary(JITCodeLibrary):
    """The code of a piece, which is optimized and translated as a part of kernels only.

    Numba does so with every function, and where one calls another with both once more: the innermost of seven was
    compiled seven times.
    """

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        return 0

    @property
    def codegen(self) -> Any:
        return self

    def set_env(self, name: str, environment: Any) -> None:
        """Do without what compiled code needs for errors and for calls of Python: a piece has neither."""


class _PieceCompiler(Compiler):
    def define_pipelines(self) -> Any:
        state = self.state
        state.library = _PieceLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        return super().define_pipelines()


# For functions that only other compiled code calls. They are parts of kernels of explicit vectors, which write their
# fused multiply-adds themselves: no flag may reorder them (vectors.py says why).
PIECE = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "pipeline_class": _PieceCompiler}
# Numba counts the references to every array that a function names or slices. A piece works on its caller's arrays,
# which are there as long as it runs; only one that makes arrays has to count.
NO_COUNTING = {"_nrt": False}

_njit: Any = numba.njit  # its type hints do not know all its options


def jit(function: Callable | None = None, *, parallel: bool = False, literal: bool = False) -> Callable:
    """Compile a kernel by `numba.njit` with the project's flags, at its first call, and cache it on disk.

    literal: sums are added in the order they are written in, and rounded as they are written: for kernels of explicit
    vectors, and where that order avoids a cancellation.

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
    """Numba's cache on disk, invalidated when any Python file of the kernel's folder changes, not only its own."""

    def __init__(self, function: Callable) -> None:
        super().__init__(function)
        base, chosen = self._impl.filename_base, os.environ.get("MBNP_VECTOR_BYTES")
        stamp = _stamp(Path(inspect.getfile(function)).parent)
        # A file for each chosen width of vectors; the processor is in Numba's own key.
        self._cache_file = caching.IndexDataCacheFile(self._cache_path, base + f".v{chosen}" * bool(chosen), stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        numba.get_num_threads()  # starts the pool, whose functions a parallel kernel is linked with
        return super().load_overload(sig, target_context)


@functools.cache
def _stamp(folder: Path) -> str:
    """Hash what a folder's kernels are compiled from: its Python files, and those of this one and of the operations."""
    contents = hashlib.sha256()
    here = Path(__file__).parent
    for path in [*sorted(here.glob("*.py")), here.parent / "ops" / "matmul.py", *sorted(folder.glob("*.py"))]:
        contents.update(path.read_bytes())
    return contents.hexdigest()


def piece(function: Callable | None = None, *, allocates: bool = False) -> Callable:
    """Compile a serial part of the kernels in the same folder into each of them; Python cannot call it.

    It has no cache of its own, which would cost compile time twice: the kernel that contains it is cached.
    allocates: whether it makes arrays, or returns a part of one.
    """
    if function is None:
        return functools.partial(piece, allocates=allocates)
    return _for_any_number(_njit(function, **PIECE, **({} if allocates else NO_COUNTING)))


def inlined(function: Callable) -> Callable:
    """Inline a piece whatever its size, where a call would save and restore registers full of vectors."""
    return _for_any_number(_njit(function, forceinline=True, **PIECE, **NO_COUNTING))


def _for_any_number(function: Any) -> Any:
    """Let a function be compiled once for all integers, not for each constant and for prange's unsigned index again."""
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return function
    find = function.get_call_template

    def any_number(kind: Any) -> Any:
        kind = types.unliteral(kind)
        return types.int64 if isinstance(kind, types.Integer) else kind

    def get_call_template(args: tuple, kws: dict) -> Any:
        return find(tuple(map(any_number, args)), {name: any_number(kind) for name, kind in kws.items()})

    function.get_call_template = get_call_template
    return function


@functools.cache  # once a process: the same is true of every kernel
def _warn_uncached() -> None:
    warnings.warn(
        "kernels cannot be cached and compile in every process: set NUMBA_CACHE_DIR to a writable folder",
        stacklevel=4,
    )
