"""The one pool of threads that all kernels run on: Numba's.

No kernel calls BLAS, whose threads would spin on the cores that the next kernel needs: a training step with both pools
was measured four to ten times slower than with one.
"""

import threading
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin

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


# ---- a parallel loop -----------------------------------------------------------------------------------------------


def in_parallel(count: int, body: Callable, *arguments: Any) -> None:
    """Within a kernel: call body(t, *arguments), a piece, for each t < count, on all threads.

    What `for t in numba.prange(count)` does, on the same threads and in the same parts. But of a `prange` Numba makes
    three functions and compiles each with all that its body calls, and so one after another for half of a minute.
    """
    for t in range(count):
        body(t, *arguments)


@infer_global(in_parallel)
class _InParallel(AbstractTemplate):
    def generic(self, args, kws):
        count, body, *arguments = args
        body.get_call_type(self.context, (types.int64, *arguments), {})  # compiles it
        return signature(types.none, count, body, *arguments)


_LONG, _POINTER = ir.IntType(64), ir.IntType(8).as_pointer()
_LOOP = ir.FunctionType(ir.VoidType(), [p.as_pointer() for p in (_POINTER, _LONG, _LONG, ir.IntType(8))])


@lower_builtin(in_parallel, types.VarArg(types.Any))
def _lower_in_parallel(context, builder, sig, args):
    """Call numba_parallel_for, which Numba's own parallel loops call, with a function that runs a part of the loop.

    It takes what NumPy's generalized ufuncs take: arrays, their lengths, their strides, and data for all. The one
    "array" is that of the indices: it begins at address 0, is `count` long, and its stride is 1.
    """
    count = context.cast(builder, args[0], sig.args[0], types.int64)
    called = sig.args[1].get_call_type(context.typing_context, (types.int64, *sig.args[2:]), {})
    arguments = [context.cast(builder, *each) for each in zip(args[2:], sig.args[2:], called.args[1:], strict=True)]
    shared = cgutils.alloca_once_value(builder, cgutils.pack_struct(builder, arguments))
    loop = _loop(context, builder.module, sig.args[1].dispatcher.overloads[called.args], called, shared.type)
    indices = cgutils.alloca_once_value(builder, ir.Constant(_LONG, 0).inttoptr(_POINTER))
    length, stride = cgutils.alloca_once_value(builder, count), cgutils.alloca_once_value(builder, ir.Constant(_LONG, 1))
    threads = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_LONG, []), "get_num_threads")
    launch_type = ir.FunctionType(ir.VoidType(), [_POINTER] * 5 + [_LONG] * 3)
    launch = cgutils.get_or_insert_function(builder.module, launch_type, "numba_parallel_for")
    pointers = [builder.bitcast(p, _POINTER) for p in (loop, indices, length, stride, shared)]
    arrays = [ir.Constant(_LONG, 0), ir.Constant(_LONG, 1)]  # no further dimensions, and one array
    builder.call(launch, [*pointers, *arrays, builder.call(threads, [])])
    return context.get_dummy_value()


def _loop(context: Any, module: Any, compiled: Any, called: Any, shared: Any) -> Any:
    """Return a function that calls a compiled piece for a part of the indices."""
    context.add_linking_libs([compiled.library])
    function = ir.Function(module, _LOOP, module.get_unique_name("loop"))
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    indices, length, _, data = function.args
    first, data = builder.ptrtoint(builder.load(indices), _LONG), builder.load(builder.bitcast(data, shared))
    arguments = cgutils.unpack_tuple(builder, data)
    with cgutils.for_range(builder, builder.load(length)) as each:
        t = builder.add(first, each.index)
        context.call_internal_no_propagate(builder, compiled.fndesc, called, [t, *arguments])
    builder.ret_void()
    return function
