"""Vectors as wide as the processor's, as values in a kernel: load, store, + - *, fused multiply-add, clip.

Numba leaves vectors to the compiler, which makes them of innermost loops only and keeps nothing in registers from
one such loop to the next. A depthwise convolution lives from just that: nine weights and nine sums stay in registers
while the pixels pass by. Kernels written with these functions compile sooner, too, since the compiler has less to find
out.

The functions are their own definition, and run as they stand under NUMBA_DISABLE_JIT=1, where a vector is a slice.
Compiled, each is one instruction or two. An index counts the entries of a contiguous array; no index is checked.

Nothing here lets the compiler reorder sums or fuse a product with a sum by itself: `fma` is one where it is written,
and nowhere else. So every compilation gives the same numbers. (With LLVM's flags `reassoc` or `contract` the two copies
of a function that a parallel kernel holds were rounded differently, and which of them ran depended on the cache.)

A vector has BYTES bytes: 64 with AVX-512, 32 with AVX2, 16 with NEON and everywhere else; MBNP_VECTOR_BYTES=16, 32 or
64 sets another width before the first import, to measure it. Together with NUMBA_CPU_NAME=haswell, for instance,
MBNP_VECTOR_BYTES=32 and NUMBA_CPU_FEATURES=+avx2,+fma it runs as on a processor that has AVX2 and no more.
"""

import operator
import os
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model, type_callable
from numba.np.arrayobj import populate_array

from mbnp.backend.jit import inlined, piece
from mbnp.errors import MbnpError


def _bytes() -> int:
    """Return the width of a vector: what MBNP_VECTOR_BYTES says, or the processor's."""
    chosen = os.environ.get("MBNP_VECTOR_BYTES")
    if chosen:
        if chosen not in ("16", "32", "64"):
            raise MbnpError(f"MBNP_VECTOR_BYTES must be 16, 32 or 64, got {chosen!r}")
        return int(chosen)
    features = binding.get_host_cpu_features()
    return 64 if features.get("avx512f") else 32 if features.get("avx2") else 16


BYTES = _bytes()
# How many vectors the processor's registers hold: AVX-512 and NEON have 32, AVX2 and SSE 16.
REGISTERS = 32 if BYTES == 64 or binding.get_process_triple().startswith(("aarch64", "arm64")) else 16


def width(dtype: Any) -> int:
    """Return the entries of a vector."""
    return BYTES // np.dtype(dtype).itemsize


def padded(channels: int, dtype: Any) -> int:
    """Return the number of channels, rounded up to the vector width."""
    return -(-channels // width(dtype)) * width(dtype)


# ---- what kernels call -------------------------------------------------------------------------------------------


def flat(x):
    """All entries of a contiguous array, (n,), in place: what `ravel` returns, without counting a reference."""
    return x.reshape(-1)


def load(x, k):
    """The vector x[k], x[k + 1], ... of a contiguous array x (n,)."""
    return x[k : k + width(x.dtype)].copy()


def spread(x, k):
    """The vector of nothing but x[k]."""
    return np.full(width(x.dtype), x[k], x.dtype)


def store(v, x, k):
    """x[k], x[k + 1], ... = v."""
    x[k : k + width(x.dtype)] = v


def prefetch(x, k):
    """Tell the processor that x[k] will soon be loaded. Any k will do."""


def accumulate(v, x, k):
    """x[k], x[k + 1], ... += v, in float64, which x is of."""
    x[k : k + v.size] += v


def fma(a, b, c):
    """a * b + c; compiled, it is rounded once."""
    return a * b + c


def line(v, slope, offset):
    """slope * v + offset, of two numbers; compiled, it is rounded once."""
    return slope * v + offset


def clip(v, low, high):
    """v between two numbers; a NaN stays one."""
    v = np.where(v < low, low, v)
    return np.where(v > high, high, v)


def where_inside(v, low, high, g):
    """g where low < v < high or v is NaN, else 0: the gradient of `clip`."""
    return np.where((v <= low) | (v >= high), g.dtype.type(0), g)


def where_larger(a, b, x, y):
    """x where a > b or a is NaN, else y."""
    return np.where((a > b) | np.isnan(a), x, y)


def transpose(x, k, x_step, y, o, y_step):
    """y[o + i*y_step + j] = x[k + j*x_step + i], for i and j below the width of a vector."""
    V = width(x.dtype)
    for i in range(V):
        for j in range(V):
            y[o + i * y_step + j] = x[k + j * x_step + i]


@inlined
def add_rows(vectors, x, k):
    """Add each of the vectors to a row of x (rows, n), from its entry k on."""
    for i, v in enumerate(vectors):
        store(load(x[i], k) + v, x[i], k)


# Of slices, since the compiler makes no vectors of a loop over k + i, which might be negative.


@piece
def clear(x, k, count):
    """x[k], ..., x[k + count - 1] = 0."""
    x[k : k + count] = 0


@piece
def copy(x, k, count, out, o):
    """out[o], out[o + 1], ... = x[k], ..., x[k + count - 1]."""
    x, out = x[k : k + count], out[o : o + count]
    for i in range(count):
        out[i] = x[i]


# ---- their types and instructions ----------------------------------------------------------------------------------


class Vector(types.Type):
    """The type of a vector: as many entries of a type of float as fill BYTES."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(f"Vector({dtype})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        entry = ir.FloatType() if kind.dtype == types.float32 else ir.DoubleType()
        super().__init__(manager, kind, ir.VectorType(entry, BYTES * 8 // kind.dtype.bitwidth))


def _typed(function: Any, result: Any) -> None:
    type_callable(function)(lambda context: result)


def is_plain(x: Any) -> bool:
    """Return whether an array is one whose entries lie one after another."""
    return isinstance(x, types.Array) and x.layout == "C" and isinstance(x.dtype, types.Float)


# Where the types do not fit the answer is None, and Numba says so.
_typed(flat, lambda x: types.Array(x.dtype, 1, "C") if isinstance(x, types.Array) and x.layout == "C" else None)
_typed(load, lambda x, k: Vector(x.dtype) if is_plain(x) else None)
_typed(spread, lambda x, k: Vector(x.dtype) if is_plain(x) else None)
_typed(store, lambda v, x, k: types.none if is_plain(x) and v == Vector(x.dtype) else None)
_typed(transpose, lambda x, k, x_step, y, o, y_step: types.none if is_plain(x) and x.dtype == y.dtype else None)
_typed(prefetch, lambda x, k: types.none if is_plain(x) else None)
_typed(accumulate, lambda v, x, k: types.none if is_plain(x) and x.dtype == types.float64 else None)
_typed(fma, lambda a, b, c: a if a == b == c and isinstance(a, Vector) else None)
_typed(line, lambda v, slope, offset: v if slope == offset == v.dtype else None)
_typed(clip, lambda v, low, high: v if low == high == v.dtype else None)
_typed(where_inside, lambda v, low, high, g: g if v == g and low == high == v.dtype else None)

_typed(where_larger, lambda a, b, x, y: x if a == b == x == y and isinstance(a, Vector) else None)


@lower_builtin(flat, types.Array)
def _flat(context, builder, sig, args):
    source = context.make_array(sig.args[0])(context, builder, args[0])
    made = context.make_array(sig.return_type)(context, builder)
    populate_array(
        made, data=source.data, shape=[source.nitems], strides=[source.itemsize], itemsize=source.itemsize, meminfo=None
    )  # fmt: skip
    return made._getvalue()


def _address(context: Any, builder: Any, array_type: Any, array: Any, k: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    vector = context.get_value_type(Vector(array_type.dtype))
    return builder.bitcast(builder.gep(data, [k]), vector.as_pointer())


@lower_builtin(load, types.Array, types.Integer)
def _load(context, builder, sig, args):
    address = _address(context, builder, sig.args[0], *args)
    return builder.load(address, align=sig.args[0].dtype.bitwidth // 8)


@lower_builtin(store, Vector, types.Array, types.Integer)
def _store(context, builder, sig, args):
    address = _address(context, builder, sig.args[1], *args[1:])
    builder.store(args[0], address, align=sig.args[1].dtype.bitwidth // 8)
    return context.get_dummy_value()


@lower_builtin(transpose, types.Array, types.Integer, types.Integer, types.Array, types.Integer, types.Integer)
def _transpose(context, builder, sig, args):
    """Exchange halves of pairs of vectors, then quarters, and so on: log2 of the width times in all."""
    long, align = ir.IntType(64), sig.args[0].dtype.bitwidth // 8
    kind = context.get_value_type(Vector(sig.args[0].dtype))

    def place(array: int, row: int) -> Any:
        at = builder.add(args[array + 1], builder.mul(args[array + 2], ir.Constant(long, row)))
        return _address(context, builder, sig.args[array], args[array], at)

    rows = [builder.load(place(0, j), align=align) for j in range(kind.count)]
    half = kind.count // 2
    while half:
        for i in range(kind.count):
            if not i & half:
                a, b = rows[i], rows[i + half]
                low = [lane if not lane & half else kind.count + lane - half for lane in range(kind.count)]
                high = [lane + half if not lane & half else kind.count + lane for lane in range(kind.count)]
                rows[i], rows[i + half] = (
                    builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), kind.count), lanes))
                    for lanes in (low, high)
                )
        half //= 2
    for i, row in enumerate(rows):
        builder.store(row, place(3, i), align=align)
    return context.get_dummy_value()


@lower_builtin(prefetch, types.Array, types.Integer)
def _prefetch(context, builder, sig, args):
    data = context.make_array(sig.args[0])(context, builder, args[0]).data
    ask_for(builder, builder.gep(data, [args[1]]))
    return context.get_dummy_value()


def ask_for(builder: Any, address: Any) -> None:
    """Emit the instruction that fetches the cache line of an address, to read it."""
    number, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(function, [builder.bitcast(address, pointer), *(ir.Constant(number, value) for value in (0, 3, 1))])


@lower_builtin(accumulate, Vector, types.Array, types.Integer)
def _accumulate(context, builder, sig, args):
    v, totals, k = args
    data = context.make_array(sig.args[1])(context, builder, totals).data
    wide = ir.VectorType(ir.DoubleType(), v.type.count)
    address = builder.bitcast(builder.gep(data, [k]), wide.as_pointer())
    v = v if v.type == wide else builder.fpext(v, wide)
    builder.store(builder.fadd(builder.load(address, align=8), v), address, align=8)
    return context.get_dummy_value()


def repeat(builder: Any, number: Any, kind: Any) -> Any:
    """Return a vector of the type `kind` of one number."""
    index = ir.IntType(32)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(index, 0))
    zeros = ir.Constant(ir.VectorType(index, kind.count), [0] * kind.count)
    return builder.shuffle_vector(first, first, zeros)


@lower_builtin(spread, types.Array, types.Integer)
def _spread(context, builder, sig, args):
    data = context.make_array(sig.args[0])(context, builder, args[0]).data
    number = builder.load(builder.gep(data, [args[1]]))
    return repeat(builder, number, context.get_value_type(sig.return_type))


@lower_builtin(clip, Vector, types.Float, types.Float)
def _clip(context, builder, sig, args):
    return clipped(builder, args[0], *(repeat(builder, bound, args[0].type) for bound in args[1:]))


def clipped(builder: Any, v: Any, low: Any, high: Any) -> Any:
    """Return the vector v between two others."""
    # In this form each is one instruction, which keeps a NaN.
    v = builder.select(builder.fcmp_ordered(">", low, v), low, v)
    return builder.select(builder.fcmp_ordered("<", high, v), high, v)


@lower_builtin(where_inside, Vector, types.Float, types.Float, Vector)
def _where_inside(context, builder, sig, args):
    v, low, high, g = args[0], *(repeat(builder, bound, args[0].type) for bound in args[1:3]), args[3]
    inside = builder.and_(builder.fcmp_unordered(">", v, low), builder.fcmp_unordered("<", v, high))
    return builder.select(inside, g, ir.Constant(g.type, [0.0] * g.type.count))


@lower_builtin(where_larger, Vector, Vector, Vector, Vector)
def _where_larger(context, builder, sig, args):
    a, b, x, y = args
    return builder.select(builder.or_(builder.fcmp_ordered(">", a, b), builder.fcmp_unordered("uno", a, a)), x, y)


class _Arithmetic(AbstractTemplate):
    def generic(self, args, kws):
        if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
            return signature(args[0], *args)
        return None


def _arithmetic(function: Any, instruction: str) -> None:
    infer_global(function)(type(f"Vector_{instruction}", (_Arithmetic,), {"key": function}))

    @lower_builtin(function, Vector, Vector)
    def lower(context, builder, sig, args):
        return getattr(builder, instruction)(*args)


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")


def _fma_function(builder: Any, kind: Any) -> Any:
    name = f"llvm.fma.v{kind.count}f{32 if isinstance(kind.element, ir.FloatType) else 64}"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)


@lower_builtin(fma, Vector, Vector, Vector)
def _fma(context, builder, sig, args):
    return builder.call(_fma_function(builder, args[0].type), args)


@lower_builtin(line, Vector, types.Float, types.Float)
def _line(context, builder, sig, args):
    v, slope, offset = args[0], *(repeat(builder, number, args[0].type) for number in args[1:])
    return builder.call(_fma_function(builder, v.type), (v, slope, offset))
