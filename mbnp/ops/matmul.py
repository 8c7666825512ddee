"""Matrix product: what 95 % of a MobileNet's arithmetic is.

    y[m, n] = sum_k a[m, k] b[k, n]

a (M, K), b (K, N), y (M, N). Every product a b is added to one output, whose dy is its derivative:

    da[m, k] = sum_n dy[m, n] b[k, n]         dy b^T
    db[k, n] = sum_m a[m, k] dy[m, n]         a^T dy

**The kernel.** A processor multiplies and adds two vectors in one instruction, begins two of these a cycle, and has the
result four cycles later: eight sums at least must be under way at once. They must be in registers, since loading and
storing each sum would take longer than the multiplication. So the product is made in tiles of ROWS rows times two
vectors of columns, all sums of a tile in registers. For each k a tile loads two vectors of b and ROWS numbers of a, each
of which is repeated in a vector:

    ROWS * 2 sums + 2 vectors of b + 1 number of a <= registers

    32 registers (AVX-512, NEON)     8 rows: 16 + 3. Twelve would fit, and were as fast: what counts is eight sums, and
                                     less loading (8 + 2 loads) than multiplying (16). But 8 divides what networks
                                     have, rows of 8, 16 or 32 pixels and powers of two of channels
    16 registers (AVX2, SSE)         6 rows: 12 + 3

What 6 or 8 do not divide is left to tiles of 4, 2 and 1 rows and one vector of columns.

**Packing.** For each k a tile takes two neighbouring vectors of b. Where b has many columns the next k is far away, in
another page of memory for large ones. So b is copied once into panels: two vectors of columns of all rows, one row
after another, then the next two (the last one is a single vector where that fills it). a is read where it lies.

**One kernel for three uses.** The rows of a are found by a table of offsets, and k runs over segments, which have
another table. With strides in place of 1 the same tiles compute y = a b, da = dy b^T (b packed transposed) and
db = a^T dy (the rows of a^T are a's columns); and where rows are the windows of a padded image and segments its rows,
the product is a standard convolution, without its windows being laid out (`ops/conv.py`).

Source: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008; the tables:
Dukhan, "The indirect convolution algorithm", arXiv:1907.02129.
"""

from typing import NamedTuple

import numba
import numpy as np

from mbnp import backend
from mbnp.backend.vectors import (
    BYTES,
    REGISTERS,
    offsets,
    padded,
    tile_add,
    tile_clip,
    tile_multiply,
    tile_store,
    tile_zeros,
)
from mbnp.ops import checks

# --- loops: the definition ---


def forward_loops(a, b):
    M, K = a.shape
    _, N = b.shape
    y = np.zeros((M, N), a.dtype)
    for m in range(M):
        for n in range(N):
            for k in range(K):
                y[m, n] += a[m, k] * b[k, n]
    return y


def backward_loops(dy, a, b):
    M, K = a.shape
    _, N = b.shape
    da, db = np.zeros_like(a), np.zeros_like(b)
    for m in range(M):
        for n in range(N):
            for k in range(K):
                da[m, k] += dy[m, n] * b[k, n]
                db[k, n] += a[m, k] * dy[m, n]
    return da, db


# --- NumPy ---


def forward_numpy(a, b):
    return a @ b  # mk, kn -> mn


def backward_numpy(dy, a, b):
    da = dy @ b.T  # mn, kn -> mk
    db = a.T @ dy  # mk, mn -> kn
    return da, db


# --- Numba: tiles of explicit vectors ---

ROWS = 8 if REGISTERS == 32 else 6  # of a tile
BLOCK = 96  # rows that take a panel after another, so that they stay in the first cache, or nearly

STORE, ADD, CLIP = 0, 1, 2  # what becomes of a finished tile: see `Out`


class Left(NamedTuple):
    """The left matrix: its entry (r, (s, i)) is data[at + rows[r] + segments[s] + i * step]; k is (s, i)."""

    data: np.ndarray  # (n,)
    at: int
    rows: np.ndarray  # int64
    segments: np.ndarray  # int64
    step: int


class Right(NamedTuple):
    """The right matrix: the vectors of row (s, i) in panel p begin at data[at + p * panel + (segments[s] + i) * step].

    Of a packed one step is 0: there the rows of a panel lie one after another.
    """

    data: np.ndarray
    at: int
    segments: np.ndarray  # int64, a row for each stretch of k
    step: int
    panel: int


class Out(NamedTuple):
    """The product: its row r begins at data[at + rows[r]].

    then: STORE it, ADD it to what is there, or CLIP it to low and high after the bias (N,) is added
    """

    data: np.ndarray
    at: int
    rows: np.ndarray
    then: int
    bias: np.ndarray
    low: float
    high: float


def _tile(rows, vectors):
    """Return a function that makes a tile of so many rows and vectors of columns, from row r and column n on."""
    count = rows * vectors

    @backend.inlined
    def tile(left, right, b_at, b_step, segments, run, out, r, n):
        sums = tile_zeros(out.data, count)
        for s in range(segments):
            starts = offsets(left.at + left.segments[s], left.rows, r, rows)
            b = b_at + right.segments[s] * b_step
            sums = tile_multiply(sums, left.data, starts, left.step, right.data, b, b_step, run)
        places = offsets(out.at + n, out.rows, r, rows)
        if out.then == ADD:
            sums = tile_add(sums, out.data, places)
        elif out.then == CLIP:
            sums = tile_clip(sums, places, out.bias, n, out.low, out.high)
        tile_store(sums, out.data, places)

    return tile


@backend.inlined
def _rows_of_next(left):
    """Return how many of the rows that are left the next tile takes: 8 rows are two tiles of 4 where one has 6."""
    if left >= ROWS and not (ROWS == 6 and left == 8):
        return ROWS
    return 4 if left >= 4 else 2 if left >= 2 else 1


def _panel(vectors):
    """Return a function that makes rows first to last of a product, of columns n to n + so many vectors."""
    full, four, two, one = (_tile(rows, vectors) for rows in (ROWS, 4, 2, 1))

    @backend.piece
    def panel(left, right, b_at, b_step, segments, run, out, first, last, n):
        r = first
        while r < last:
            rows = _rows_of_next(last - r)
            if rows == ROWS:
                full(left, right, b_at, b_step, segments, run, out, r, n)
            elif rows == 4:
                four(left, right, b_at, b_step, segments, run, out, r, n)
            elif rows == 2:
                two(left, right, b_at, b_step, segments, run, out, r, n)
            else:
                one(left, right, b_at, b_step, segments, run, out, r, n)
            r += rows

    return panel


_panel_of_2, _panel_of_1 = _panel(2), _panel(1)


@backend.inlined
def vectors_at(n, columns, V):
    """Return how many vectors of columns the panel from n on has: two, or one at the end."""
    return 2 if columns - n >= 2 * V else 1


@backend.piece
def multiply(left, right, segments, run, out, first, last, n, columns):
    """Make rows first to last of a product (rows, columns), of the panel of its columns n ...

    k runs over so many segments, and `run` entries of each.
    """
    V = BYTES // out.data.itemsize
    b_at = right.at + n // (2 * V) * right.panel
    if vectors_at(n, columns, V) == 2:
        step = right.step if right.step > 0 else 2 * V
        _panel_of_2(left, right, b_at, step, segments, run, out, first, last, n)
    else:
        step = right.step if right.step > 0 else V
        _panel_of_1(left, right, b_at, step, segments, run, out, first, last, n)


@backend.piece
def pack(b, n, columns, at, packed):
    """Copy b (K, N) from its column n on into the panel of these columns; columns after N are zeros.

    packed (n,) has K * columns entries from `at` on. Of a transposed view, b = w.T, this packs the transposed matrix.
    """
    K, N = b.shape
    V = BYTES // packed.itemsize
    entries = vectors_at(n, columns, V) * V
    at += n * K
    for k in range(K):
        for i in range(entries):
            packed[at + i] = b[k, n + i] if n + i < N else packed.dtype.type(0)
        at += entries


# --- the same on whole matrices, which other operations use within their kernels ---


@backend.piece
def product(a, packed, bias, y):
    """y (M, columns) = a (M, K) @ b + bias (columns,), with b packed."""
    (M, K), (_, columns) = a.shape, y.shape
    V = BYTES // y.itemsize
    start, low, high = np.zeros(1, np.int64), y.dtype.type(-np.inf), y.dtype.type(np.inf)
    rows = np.arange(min(M, BLOCK))
    right = Right(packed, 0, start, 0, 2 * V * K)
    for first in range(0, M, BLOCK):
        left = Left(a.ravel(), first * K, rows * K, start, 1)
        out = Out(y.ravel(), first * columns, rows * columns, CLIP, bias, low, high)
        for n in range(0, columns, 2 * V):
            multiply(left, right, 1, K, out, 0, min(BLOCK, M - first), n, columns)


@backend.piece
def product_transposed(a, dy, db):
    """db (K, columns) = a.T @ dy, a (M, K) and dy (M, columns)."""
    (M, K), (_, columns) = a.shape, dy.shape
    V = BYTES // dy.itemsize
    start, no_bias, zero = np.zeros(1, np.int64), db.ravel(), db.dtype.type(0)
    rows = np.arange(K)
    right = Right(dy.ravel(), 0, start, columns, 2 * V)
    for first in range(0, M, BLOCK):
        left = Left(a.ravel(), first * K, rows, start, K)
        right = Right(dy.ravel(), first * columns, start, columns, 2 * V)
        out = Out(db.ravel(), 0, rows * columns, ADD if first else STORE, no_bias, zero, zero)
        for n in range(0, columns, 2 * V):
            multiply(left, right, 1, min(BLOCK, M - first), out, 0, K, n, columns)


@backend.jit(literal=True)
def chunks(M):
    """Return the number of chunks that M rows are cut into: up to 16, of at least about 128 rows.

    It depends on M alone, not on the number of threads, and so do the results: partial sums are always added in the
    same order.
    """
    return min(16, max(1, M // 128))


def fill_vectors(x):
    """Return x (..., N) with zeros for columns up to the next vector; x itself where N fills vectors."""
    more = padded(x.shape[-1], x.dtype) - x.shape[-1]
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)]) if more else x


def forward_numba(a, b):
    return forward_bias(a, b, None)


def forward_bias(a, b, bias):
    """Return a @ b + bias (N,), or without a bias where it is None: one pass over the output."""
    N = b.shape[1]
    y = np.empty((len(a), padded(N, a.dtype)), a.dtype)
    bias = np.zeros(y.shape[1], a.dtype) if bias is None else fill_vectors(bias)
    with backend.one_pool():
        _forward_kernel(a, b, bias, y)
    return np.ascontiguousarray(y[:, :N])


@backend.jit(parallel=True, literal=True)
def _forward_kernel(a, b, bias, y):
    M, columns = y.shape
    V = BYTES // y.itemsize
    packed = np.empty(b.shape[0] * columns, y.dtype)
    for p in numba.prange(-(-columns // (2 * V))):
        pack(b, p * 2 * V, columns, 0, packed)
    count = chunks(M)
    for t in numba.prange(count):
        first, last = t * M // count, (t + 1) * M // count
        product(a[first:last], packed, bias, y[first:last])


def backward_numba(dy, a, b):
    da, db, _ = backward_bias(dy, a, b)
    return da, db


def backward_bias(dy, a, b):
    """Return da, db, and the sums of the columns of dy, which are the gradient of a bias."""
    with backend.one_pool():
        db, sums = _backward_kernel(a, fill_vectors(dy))
    N = b.shape[1]
    db, sums = (partial.sum(axis=0, dtype=np.float64).astype(a.dtype)[..., :N] for partial in (db, sums))
    return forward_bias(dy, b.T, None), np.ascontiguousarray(db), sums.copy()


@backend.jit(parallel=True, literal=True)
def _backward_kernel(a, dy):
    (M, K), (_, columns) = a.shape, dy.shape
    count = chunks(M)
    db, sums = np.empty((count, K, columns), a.dtype), np.zeros((count, columns))  # of each chunk; the caller adds them
    for t in numba.prange(count):
        first, last = t * M // count, (t + 1) * M // count
        product_transposed(a[first:last], dy[first:last], db[t])
        for m in range(first, last):
            for n in range(columns):
                sums[t, n] += dy[m, n]
    return db, sums


# --- the public pair ---

_forward = backend.pick(loops=forward_loops, numpy=forward_numpy, numba=forward_numba)
_backward = backend.pick(loops=backward_loops, numpy=backward_numpy, numba=backward_numba)


def forward(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return y (M, N) from a (M, K) and b (K, N)."""
    a, b, _ = checks.operands(a, b, None, "(M, K)", "(K, N)")
    return _forward(a, b)


def backward(dy: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return da, db from dy (M, N) and what went into `forward`."""
    a, b, _ = checks.operands(a, b, None, "(M, K)", "(K, N)")
    dy = checks.gradient(dy, (len(a), b.shape[1]), a)
    return _backward(dy, a, b)
