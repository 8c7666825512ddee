"""A loop on all threads, within a kernel.

Numba's own, `prange`, becomes three functions, and each is compiled with all that the loop's body calls: that took half
of the time that the engine's kernels took to compile. This one is a call of what `prange` calls in the end.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin


def in_parallel(count: int, body: Callable, *arguments: Any) -> None:
    """Call body(t, *arguments) for each t below count, on the pool of threads.

    The body is a piece that returns nothing and raises nothing: an error would be lost. With OpenMP a thread gets one
    run of neighbouring t, the same in every loop of one length.
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
_LAUNCH = ir.FunctionType(ir.VoidType(), [_POINTER] * 5 + [_LONG] * 3)


@lower_builtin(in_parallel, types.VarArg(types.Any))
def _lower_in_parallel(context, builder, sig, args):
    """Call numba_parallel_for with a function that runs a part of the loop.

    That takes what NumPy's generalized ufuncs take: arrays, their lengths, their strides, and data for all parts. The
    one "array" is that of the indices: it begins at address 0, has `count` entries, and its stride is 1.
    """
    count = context.cast(builder, args[0], sig.args[0], types.int64)
    called = sig.args[1].get_call_type(context.typing_context, (types.int64, *sig.args[2:]), {})
    arguments = [context.cast(builder, *each) for each in zip(args[2:], sig.args[2:], called.args[1:], strict=True)]
    data = cgutils.alloca_once_value(builder, cgutils.pack_struct(builder, arguments))
    part = _part(context, builder.module, sig.args[1].dispatcher.overloads[called.args], called, data.type)
    numbers = ir.Constant(_LONG, 0).inttoptr(_POINTER), count, ir.Constant(_LONG, 1)
    places = [part, *(cgutils.alloca_once_value(builder, number) for number in numbers), data]
    threads = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_LONG, []), "get_num_threads")
    launch = cgutils.get_or_insert_function(builder.module, _LAUNCH, "numba_parallel_for")
    lengths_and_arrays = ir.Constant(_LONG, 0), ir.Constant(_LONG, 1)  # lengths beyond the first
    pointers = [builder.bitcast(place, _POINTER) for place in places]
    builder.call(launch, [*pointers, *lengths_and_arrays, builder.call(threads, [])])
    return context.get_dummy_value()


def _part(context, module, compiled, called, pointer_to_data):
    """Return a function that calls a compiled piece for a part of the indices."""
    context.add_linking_libs([compiled.library])
    function = ir.Function(module, _LOOP, module.get_unique_name("part"))
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    indices, length, _, data = function.args
    first = builder.ptrtoint(builder.load(indices), _LONG)
    arguments = cgutils.unpack_tuple(builder, builder.load(builder.bitcast(data, pointer_to_data)))
    with cgutils.for_range(builder, builder.load(length)) as each:
        t = builder.add(first, each.index)
        context.call_internal_no_propagate(builder, compiled.fndesc, called, [t, *arguments])
    builder.ret_void()
    return function
