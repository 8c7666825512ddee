"""Compile kernels: Numba's flags, in one place, and a cache on disk that notices every change and all damage."""

import contextlib
import functools
import gc
import hashlib
import inspect
import os
import pickle
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from numba import types
from numba.core import caching, serialize
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import CPUDispatcher
from numba.core.runtime import rtsys

from mbnp import storage
from mbnp.backend import threads
from mbnp.errors import MbnpError

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


class _LoadedLibrary(JITCodeLibrary):
    """The code of a kernel that was loaded. What another kernel would be linked with is read where one asks for it.

    Numba has it at hand for all of them, which takes more memory than the code itself.
    """

    _bitcode: bytes

    @classmethod
    def forget_module(cls, library: Any, parts: tuple) -> None:
        """Make a library that Numba has rebuilt from these parts one of this class."""
        _, _, (_, library._bitcode) = parts[0]
        library._shared_module.close()
        library._shared_module, library.__class__ = None, cls

    def _get_module_for_linking(self) -> Any:
        if self._shared_module is None:
            self._shared_module = llvm.parse_bitcode(self._bitcode)
        return self._shared_module


class _KernelLibrary(JITCodeLibrary):
    """The code of a kernel, whose parts no other kernel can call.

    Numba leaves them visible, by names with a number that each process counts for itself. Of two kernels that were
    compiled by two processes and are loaded by a third, one would run a part of the other's where the names are alike.
    The kernel's own name stays visible: it has to be one of its module.
    """

    def _finalize_final_module(self) -> None:
        for function in self._final_module.functions:
            if function.linkage == llvm.Linkage.linkonce_odr:
                function.linkage = "internal"
        super()._finalize_final_module()


class _KernelCompiler(Compiler):
    """Numba's compiler, with another class of library."""

    library: type[JITCodeLibrary] = _KernelLibrary

    def define_pipelines(self) -> Any:
        state = self.state
        state.library = self.library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()  # as Numba did with the one that this replaces
        return super().define_pipelines()


class _PieceCompiler(_KernelCompiler):
    library = _PieceLibrary


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
    flags = {"fastmath": not literal and FASTMATH, "parallel": parallel, "nogil": True}
    kernel = _njit(function, pipeline_class=_KernelCompiler, **flags)
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return kernel
    return _kept(kernel, function, Kernel)


def _kept(kernel: Any, function: Callable, kind: type["Kernel"]) -> Any:
    """Make a dispatcher a kernel whose code is cached as that of a function."""
    kernel.__class__ = kind
    try:
        kernel._cache = _Cache(function)  # what cache=True would set
    except RuntimeError:
        # "No locator available": neither the package's folder nor the user's cache can be written.
        _warn_uncached()
    return kernel


def entry(run: Callable, function: Callable, kind: type["Kernel"]) -> Any:
    """Compile `run`, by which other compiled code calls a kernel that is cached as `function`."""
    run.__name__, run.__qualname__, run.__module__ = function.__name__, function.__qualname__, function.__module__
    kernel = _kept(_njit(run, **{**PIECE, "pipeline_class": _KernelCompiler}), function, kind)
    kernel.py_func = function  # which is what it is for a reader
    return kernel


class Kernel(CPUDispatcher):
    """A compiled function whose call takes the pool of threads, so that Python threads take turns."""

    _cache: Any

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        with threads.lock:
            return self._run(*arguments, **named)

    @functools.cached_property
    def _run(self) -> Any:
        """Return Numba's own call: kept, since to look it up for each call takes a third of the time of this class."""
        return CPUDispatcher.__call__.__get__(self)

    def compile(self, sig: Any) -> Any:
        """Compile for these types of arguments, or load what is cached; either is linked with the pool's functions."""
        threads.start()
        with global_compiler_lock, _collecting_seldom():
            return super().compile(sig)

    def types_of(self, arguments: tuple) -> tuple:
        """Return what it is compiled for, where it is called with these arguments."""
        return tuple(map(numba.typeof, arguments))

    def is_cached(self, sig: tuple) -> bool:
        """Return whether the cache holds the kernel for these types, or there is none that could."""
        return not isinstance(self._cache, _Cache) or self._cache.holds(sig, self.targetctx)


SELDOM = 50_000  # objects that are made between two of the collector's runs


@contextlib.contextmanager
def _collecting_seldom() -> Iterator[None]:
    """Look for garbage in cycles less often: while a kernel is compiled nearly all objects are still in use.

    One thread at a time, since the setting is the process's.
    """
    usual = gc.get_threshold()
    if 0 < usual[0] < SELDOM:  # where it is not switched off, or as seldom already
        gc.set_threshold(SELDOM, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def refuse(kernel: Any, *arguments: Any, **named: Any) -> Any:
    """Raise the MbnpError of a process whose threads are not there."""
    raise MbnpError(
        f"{kernel.py_func.__name__} cannot run: this process was forked from one in which kernels ran, and a fork has "
        'no copy of their threads: start it by multiprocessing.get_context("spawn"), or fork before the first kernel'
    )


def _after_fork() -> None:
    if threads.forked:
        Kernel.__call__ = refuse  # type: ignore[assignment, method-assign]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)  # after that of `threads`


def of_one_type(array: np.ndarray) -> np.ndarray:
    """Return an array that kernels read: itself, or where it is read-only its memory as if it could be written.

    Read-only arrays are a type of their own, for which Numba would compile every kernel once more.
    """
    return array if array.flags.writeable else np.asarray(_AsIfWritable(array))


class _AsIfWritable:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array  # which is there as long as this is
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


class _Cache(caching.FunctionCache):
    """Numba's cache on disk, but that a change in any Python file of the kernel's folder, or damage, is noticed.

    For each kernel, types of arguments and processor there is one file: a checksum of the rest, the stamp of what it
    was compiled from, and the code. What cannot be read or written costs a line on stderr, and compiling.
    """

    def __init__(self, function: Callable) -> None:
        super().__init__(function)
        chosen = os.environ.get("MBNP_VECTOR_BYTES")  # the processor is in Numba's own key, the width of vectors is not
        self._base = os.path.join(self._cache_path, self._impl.filename_base + f".v{chosen}" * bool(chosen))
        self._stamp = hashlib.sha256(f"{numba.__version__} {_stamp(Path(inspect.getfile(function)).parent)}".encode())

    def flush(self) -> None:
        """Forget nothing: what is compiled again replaces what there is."""

    def holds(self, sig: tuple, target_context: Any) -> bool:
        """Return whether there is a file for these types, of these sources; what is in it may be damaged."""
        with contextlib.suppress(OSError), open(self._path(sig, target_context.codegen()), "rb") as file:
            return file.read(64)[32:] == self._stamp.digest()
        return False

    def _path(self, sig: tuple, codegen: Any) -> Path:
        key = hashlib.sha256(str(self._index_key(sig, codegen)).encode()).hexdigest()
        return Path(f"{self._base}.{key[:20]}.nbc")

    def load_overload(self, sig: tuple, target_context: Any) -> Any:
        """Load a kernel, and of what Numba makes ready before it does so only the memory of compiled code.

        The rest is for compiling, imports half of Numba, and would take longer than loading all kernels.
        """
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)

    def _load_overload(self, sig: tuple, target_context: Any) -> Any:
        path = self._path(sig, target_context.codegen())
        try:
            content = path.read_bytes()
            checksum, stamp, data = content[:32], content[32:64], content[64:]
            if checksum != hashlib.sha256(stamp + data).digest():
                raise ValueError("its checksum is wrong")
            if stamp != self._stamp.digest():
                return None
            parts = pickle.loads(data)
            found = self._impl.rebuild(target_context, parts)
            _LoadedLibrary.forget_module(found.library, parts)
            return found if tuple(found.signature.args) == tuple(sig) else None
        except FileNotFoundError:
            return None
        except Exception as error:
            _say_once("is compiled again, because its file cannot be used", error, path)
            with contextlib.suppress(OSError):  # a file is replaced by what is compiled, anything else must go first
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif not path.is_file():  # a link to a folder goes, and the folder stays
                    path.unlink()
            return None

    def _save_overload(self, sig: tuple, data: Any) -> None:
        if not self._impl.check_cachable(data):
            return
        path = self._path(sig, data.codegen)
        content = self._stamp.digest() + serialize.dumps(self._impl.reduce(data))
        try:
            self._impl.locator.ensure_cache_path()
            with storage.replacing(path, lasting=False) as partial:
                partial.write_bytes(hashlib.sha256(content).digest() + content)
        except (OSError, MbnpError) as error:
            _say_once("cannot be kept", error, path)


@functools.cache
def _stamp(folder: Path) -> str:
    """Hash what a folder's kernels are compiled from: its Python files, and those of this one and of the operations.

    What is imported from a zip file is compiled from all of that.
    """
    contents = hashlib.sha256()
    here = Path(__file__).parent
    archive = next((place for place in (here, *here.parents) if place.is_file()), None)
    ours = [archive] if archive else [*sorted(here.glob("*.py")), here.parent / "ops" / "matmul.py"]
    for path in [*ours, *sorted(folder.glob("*.py"))]:
        contents.update(path.read_bytes())
    return contents.hexdigest()


_said: set[str] = set()


def _say_once(what: str, error: Exception, path: Path) -> None:
    """Print one line for the first kernel of a process that this is true of: a full disk is full for all of them."""
    if what not in _said:
        _said.add(what)
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        with contextlib.suppress(AttributeError, OSError, ValueError):  # no stderr, or a closed one
            print(f"mbnp: a compiled kernel {what} ({reason}): {ascii(str(path))[1:-1]}", file=sys.stderr)


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
