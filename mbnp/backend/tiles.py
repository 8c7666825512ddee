"""Tiles of a matrix product: a few rows times a few vectors of columns, whose sums stay in registers.

`ops/matmul.py` says why tiles, and how large. Here is what one does, twice: as a definition in Python, which runs under
NUMBA_DISABLE_JIT=1, and as instructions for LLVM: two nested loops over k with a fused multiply-add for each vector of
the tile. Rows and vectors are known when compiling, as everything else that a register is given to.

What becomes of the sums of a tile: ADD adds what is there to them, CLIP adds a bias and clips the result to low and
high; both may be asked for, in this order, and then they are stored.

While a tile is multiplied nothing is read from memory, and where channels are few reading takes as long as multiplying.
So with each step of k the loop asks for the cache line of soon[at_soon], which will be needed after this product, and
goes on by step_soon entries. Where nothing is known to be needed, any array and a step of 0 will do.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import lower_builtin, type_callable

from mbnp.backend.vectors import Vector, ask_for, clip, clipped, is_plain, load, repeat, store, width

STORE, ADD, CLIP = 0, 1, 2  # flags of `then`

LONG = ir.IntType(64)


# ---- their definitions ---------------------------------------------------------------------------------------------


def tile(
    rows,
    vectors,
    r,
    n,
    a,
    at,
    a_rows,
    segments,
    run,
    b,
    k,
    c,
    o,
    c_rows,
    then,
    bias,
    low,
    high,
    soon,
    at_soon,
    step_soon,
):
    """Make rows r ... and columns n ... of c = a b, with b packed.

    a: the entry (r, (s, i)) is a[at + a_rows[r] + segments[s] + i], i < run; k is (s, i)
    b: the vectors of row (s, i) lie one after another, from k on row after row
    c: row r begins at c[o + c_rows[r]]
    """
    V = width(c.dtype)
    for y in range(rows):
        for v in range(vectors):
            total, from_b = np.zeros(V, c.dtype), k
            for s in range(segments.size):
                for i in range(run):
                    total += a[at + a_rows[r + y] + segments[s] + i] * load(b, from_b + v * V)
                    from_b += vectors * V
            _finish(total, c, o + c_rows[r + y] + n + v * V, then, bias, n + v * V, low, high)


def tile_across(
    rows,
    vectors,
    r,
    n,
    a,
    at,
    segments,
    step,
    run,
    b,
    k,
    b_segments,
    b_step,
    c,
    o,
    c_rows,
    then,
    soon,
    at_soon,
    step_soon,
):
    """Make rows r ... and columns n ... of c = a^T b, both read where they lie.

    a: the entry ((s, i), r) is a[at + segments[s] + i*step + r], i < run; k is (s, i)
    b: row (s, i) begins at b[k + (b_segments[s] + i) * b_step]
    c: row r begins at c[o + c_rows[r]]. then: STORE or ADD
    """
    V = width(c.dtype)
    for y in range(rows):
        for v in range(vectors):
            total = np.zeros(V, c.dtype)
            for s in range(segments.size):
                for i in range(run):
                    from_b = load(b, k + (b_segments[s] + i) * b_step + n + v * V)
                    total += a[at + segments[s] + i * step + r + y] * from_b
            _finish(total, c, o + c_rows[r + y] + n + v * V, then, c, 0, 0, 0)


def _finish(total, c, place, then, bias, n, low, high):
    if then & ADD:
        total = total + load(c, place)
    if then & CLIP:
        total = clip(total + load(bias, n), low, high)
    store(total, c, place)


# ---- their instructions --------------------------------------------------------------------------------------------


def _known(rows: Any, vectors: Any, a: Any) -> Any:
    """Return the type of a tile's result, nothing; None where its size is not known, or a is no array of floats."""
    literal = isinstance(rows, types.IntegerLiteral) and isinstance(vectors, types.IntegerLiteral)
    return types.none if literal and is_plain(a) else None


@type_callable(tile)
def _type_tile(context):
    def result(
        rows,
        vectors,
        r,
        n,
        a,
        at,
        a_rows,
        segments,
        run,
        b,
        k,
        c,
        o,
        c_rows,
        then,
        bias,
        low,
        high,
        soon,
        at_soon,
        step_soon,
    ):
        return _known(rows, vectors, a)

    return result


@type_callable(tile_across)
def _type_across(context):
    def result(
        rows,
        vectors,
        r,
        n,
        a,
        at,
        segments,
        step,
        run,
        b,
        k,
        b_segments,
        b_step,
        c,
        o,
        c_rows,
        then,
        soon,
        at_soon,
        step_soon,
    ):
        return _known(rows, vectors, a)

    return result


class _Builder:
    """The instructions of one tile: its arguments by name, and its sums."""

    def __init__(self, context: Any, builder: Any, sig: Any, args: Any, definition: Callable) -> None:
        self.context, self.builder = context, builder
        names = inspect.signature(definition).parameters
        self.types, self.values = dict(zip(names, sig.args, strict=True)), dict(zip(names, args, strict=True))
        self.rows, self.vectors = (self.types[name].literal_value for name in ("rows", "vectors"))
        self.kind = context.get_value_type(Vector(self.types["a"].dtype))
        self.zero = ir.Constant(self.kind, [0.0] * self.kind.count)
        # Places on the stack, which LLVM makes registers of.
        self.sums = [cgutils.alloca_once(builder, self.kind) for _ in range(self.rows * self.vectors)]
        for place in self.sums:
            builder.store(self.zero, place)

    def number(self, name: str) -> Any:
        """Return an integer argument."""
        return self.context.cast(self.builder, self.values[name], self.types[name], types.int64)

    def data(self, name: str, at: Any = None) -> Any:
        """Return the address of an array's entry `at`, or of its first one."""
        data = self.context.make_array(self.types[name])(self.context, self.builder, self.values[name]).data
        return data if at is None else self.builder.gep(data, [at])

    def entry(self, name: str, i: Any) -> Any:
        """Return an entry of a table."""
        return self.builder.load(self.data(name, i))

    def length(self, name: str) -> Any:
        array = self.context.make_array(self.types[name])(self.context, self.builder, self.values[name])
        return self.builder.extract_value(array.shape, 0)

    def vector_at(self, address: Any, v: int) -> Any:
        """Return the address of a vector: the v-th from an entry's address on."""
        place = self.builder.gep(address, [ir.Constant(LONG, v * self.kind.count)])
        return self.builder.bitcast(place, self.kind.as_pointer())

    def load(self, address: Any, v: int) -> Any:
        return self.builder.load(self.vector_at(address, v), align=self.types["a"].dtype.bitwidth // 8)

    def fetch(self, i: Any) -> None:
        """Ask for a cache line of what will be needed soon."""
        at = self.builder.add(self.number("at_soon"), self.builder.mul(i, self.number("step_soon")))
        ask_for(self.builder, self.data("soon", at))

    def multiply_add(self, numbers: list[Any], b: Any) -> None:
        """Add to the sums: a number at an address for each row, times the vectors from the address b on."""
        builder, kind = self.builder, self.kind
        name = f"llvm.fma.v{kind.count}f{self.types['a'].dtype.bitwidth}"
        fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
        vectors = [self.load(b, v) for v in range(self.vectors)]
        for y, address in enumerate(numbers):
            number = repeat(builder, builder.load(address), kind)
            for v, vector in enumerate(vectors):
                place = self.sums[y * self.vectors + v]
                builder.store(builder.call(fma, [number, vector, builder.load(place)]), place)

    def change(self, asked: int, made: Callable[[Any, int, int], Any]) -> None:
        """Replace each sum, of row y and vector v, by made(sum, y, v), where `then` asks for it."""
        builder = self.builder
        flag = builder.and_(self.number("then"), ir.Constant(LONG, asked))
        with builder.if_then(builder.icmp_signed("!=", flag, ir.Constant(LONG, 0))):
            for j, place in enumerate(self.sums):
                builder.store(made(builder.load(place), *divmod(j, self.vectors)), place)

    def finish(self, bias: Any = None, low: Any = None, high: Any = None) -> None:
        """Store the sums where they belong, as `then` says."""
        builder = self.builder
        first = builder.add(self.number("o"), self.number("n"))
        places = []
        for y in range(self.rows):
            row = self.entry("c_rows", builder.add(self.number("r"), ir.Constant(LONG, y)))
            places.append(self.data("c", builder.add(first, row)))
        self.change(ADD, lambda total, y, v: builder.fadd(total, self.load(places[y], v)))
        if bias is not None:
            bounds = [repeat(builder, bound, self.kind) for bound in (low, high)]
            self.change(CLIP, lambda total, y, v: clipped(builder, builder.fadd(total, self.load(bias, v)), *bounds))
        for j, place in enumerate(self.sums):
            y, v = divmod(j, self.vectors)
            at = self.vector_at(places[y], v)
            builder.store(builder.load(place), at, align=self.types["a"].dtype.bitwidth // 8)


@lower_builtin(tile, *[types.Any] * 21)
def _lower_tile(context, builder, sig, args):
    t = _Builder(context, builder, sig, args, tile)
    starts = [
        builder.add(t.number("at"), t.entry("a_rows", builder.add(t.number("r"), ir.Constant(LONG, y))))
        for y in range(t.rows)
    ]
    run, width_b = t.number("run"), ir.Constant(LONG, t.vectors * t.kind.count)
    with cgutils.for_range(builder, t.length("segments")) as segment:
        offset = t.entry("segments", segment.index)
        rows = [t.data("a", builder.add(start, offset)) for start in starts]
        begin = builder.mul(builder.mul(segment.index, run), width_b)
        b = t.data("b", builder.add(t.number("k"), begin))
        with cgutils.for_range(builder, run) as loop:
            t.fetch(loop.index)
            numbers = [builder.gep(row, [loop.index]) for row in rows]
            t.multiply_add(numbers, builder.gep(b, [builder.mul(loop.index, width_b)]))
    t.finish(t.data("bias", t.number("n")), *(t.values[bound] for bound in ("low", "high")))
    return context.get_dummy_value()


@lower_builtin(tile_across, *[types.Any] * 20)
def _lower_across(context, builder, sig, args):
    t = _Builder(context, builder, sig, args, tile_across)
    step, b_step = t.number("step"), t.number("b_step")
    begin_a, begin_b = builder.add(t.number("at"), t.number("r")), builder.add(t.number("k"), t.number("n"))
    with cgutils.for_range(builder, t.length("segments")) as segment:
        a = t.data("a", builder.add(begin_a, t.entry("segments", segment.index)))
        b = t.data("b", builder.add(begin_b, builder.mul(t.entry("b_segments", segment.index), b_step)))
        with cgutils.for_range(builder, t.number("run")) as loop:
            t.fetch(loop.index)
            here = builder.gep(a, [builder.mul(loop.index, step)])
            numbers = [builder.gep(here, [ir.Constant(LONG, y)]) for y in range(t.rows)]
            t.multiply_add(numbers, builder.gep(b, [builder.mul(loop.index, b_step)]))
    t.finish()
    return context.get_dummy_value()
