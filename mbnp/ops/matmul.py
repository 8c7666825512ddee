"""Matrix product: what 95 % of a MobileNet's arithmetic is.

    y[m, n] = sum_k a[m, k] b[k, n]

a (M, K), b (K, N), y (M, N). Every product a b is added to one output, whose dy is its derivative:

    da[m, k] = sum_n dy[m, n] b[k, n]         dy b^T
    db[k, n] = sum_m a[m, k] dy[m, n]         a^T dy

**The kernel.** A processor multiplies and adds two vectors in one instruction, begins two of these a cycle, and has the
result four cycles later: eight sums at least must be under way at once. They must be in registers, since loading and
storing each sum would take longer than the multiplication. So the product is made in tiles of ROWS rows times two
vectors of columns, all sums of a tile in registers. For each k a tile loads two vectors of b and ROWS numbers of a,
each of which is repeated in a vector:

    ROWS * 2 sums + 2 vectors of b + 1 number of a <= registers

    32 registers (AVX-512, NEON)     8 rows: 16 + 3. Twelve would fit, and were as fast: what counts is eight sums, and
                                     less loading (8 + 2 loads) than multiplying (16). But 8 divides what networks
                                     have, rows of 8, 16 or 32 pixels and powers of two of channels
    16 registers (AVX2, SSE)         6 rows: 12 + 3

What 6 or 8 do not divide is left to tiles of 9, 4 and 1 rows and of one vector of columns. (Twelve rows, with all 32
registers, were measured to be no faster.)

**Packing.** For each k a tile takes two neighbouring vectors of b. Where b has many columns the next k is far away, in
another page of memory for large ones. So b is copied once into panels: two vectors of columns of all rows, one row
after another, then the next two (the last one is a single vector where that fills it). a is read where it lies.

**Blocks of k.** All rows take a panel, one tile after another, and what they read of it should stay in the first cache
meanwhile. Where k is longer than that the rows go through it block by block, and what one block makes is added to what
those before it have stored. With AVX-512 a block is 32 KB of the 48 that most of these processors have, else 16 KB,
half of 32. (`multiply_across` leaves that to its callers: its k are pixels, of which a tile has few.)

**One kernel for three uses.** The rows of a are found by a table of offsets, and k runs over segments, which have
another table. With strides in place of 1 the same tiles compute y = a b, da = dy b^T (b packed transposed) and
db = a^T dy (the rows of a^T are a's columns); and where rows are the windows of a padded image and segments its rows,
the product is a standard convolution, without its windows being laid out (`ops/conv.py`).

Source: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008; the tables:
Dukhan, "The indirect convolution algorithm", arXiv:1907.02129.
"""

import numba
import numpy as np

from mbnp import backend
from mbnp.backend.tiles import ADD, CLIP, STORE, tile, tile_across
from mbnp.backend.vectors import BYTES, REGISTERS, flat, load, padded, store
from mbnp.errors import MbnpError
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

ROWS, MOST = (8, 9) if REGISTERS == 32 else (6, 6)  # of a tile, and of one that takes a row more
DEPTH = (1 << 15 if BYTES == 64 else 1 << 14) // (2 * BYTES)  # steps of k, whose part of a panel is in the first cache
BLOCK = 96  # rows that take one panel after another, so that they stay in the second cache


@backend.inlined
def _next_tile(left):
    """Return the rows of the next tile where so many rows are left.

    With 32 registers a tile may have a row more, so that 49 rows are five tiles of 8 and one of 9, and 98 ten of 8 and
    two of 9. With 16 registers 8 rows are two tiles of 4.
    """
    if MOST > ROWS and left >= MOST and left % ROWS > 0 and left // ROWS >= left % ROWS:
        return MOST
    if left >= ROWS and not (MOST == ROWS and left in (8, 9)):
        return ROWS
    return 4 if left >= 4 else 1


def _panel(vectors):
    """Return a function that makes a panel of a product, so many vectors wide, and returns where at_soon has come to.

    Its arguments are those of `multiply`.
    """

    @backend.piece
    def panel(
        a, at, a_rows, segments, run, b, k, c, o, c_rows, then, bias, low, high, rows, n, soon, at_soon, step_soon
    ):
        r = 0
        while r < rows:
            size = _next_tile(rows - r)
            if MOST > ROWS and size == MOST:
                tile(
                    MOST, vectors, r, n, a, at, a_rows, segments, run, b, k, c, o, c_rows, then, bias, low, high, soon,
                    at_soon, step_soon,
                )  # fmt: skip
            elif size == ROWS:
                tile(
                    ROWS, vectors, r, n, a, at, a_rows, segments, run, b, k, c, o, c_rows, then, bias, low, high, soon,
                    at_soon, step_soon,
                )  # fmt: skip
            elif size == 4:
                tile(
                    4, vectors, r, n, a, at, a_rows, segments, run, b, k, c, o, c_rows, then, bias, low, high, soon,
                    at_soon, step_soon,
                )  # fmt: skip
            else:
                tile(
                    1, vectors, r, n, a, at, a_rows, segments, run, b, k, c, o, c_rows, then, bias, low, high, soon,
                    at_soon, step_soon,
                )  # fmt: skip
            at_soon += segments.size * run * step_soon
            r += size
        return at_soon

    return panel


def _panel_across(vectors):
    """Likewise, for `multiply_across`."""

    @backend.piece
    def panel(
        a, at, segments, step, run, b, k, b_segments, b_step, c, o, c_rows, then, rows, n, soon, at_soon, step_soon
    ):
        r = 0
        while r < rows:
            size = _next_tile(rows - r)
            if MOST > ROWS and size == MOST:
                tile_across(
                    MOST, vectors, r, n, a, at, segments, step, run, b, k, b_segments, b_step, c, o, c_rows, then, soon,
                    at_soon, step_soon,
                )  # fmt: skip
            elif size == ROWS:
                tile_across(
                    ROWS, vectors, r, n, a, at, segments, step, run, b, k, b_segments, b_step, c, o, c_rows, then, soon,
                    at_soon, step_soon,
                )  # fmt: skip
            elif size == 4:
                tile_across(
                    4, vectors, r, n, a, at, segments, step, run, b, k, b_segments, b_step, c, o, c_rows, then, soon,
                    at_soon, step_soon,
                )  # fmt: skip
            else:
                tile_across(
                    1, vectors, r, n, a, at, segments, step, run, b, k, b_segments, b_step, c, o, c_rows, then, soon,
                    at_soon, step_soon,
                )  # fmt: skip
            at_soon += segments.size * run * step_soon
            r += size

    return panel


_panel_of_2, _panel_of_1 = _panel(2), _panel(1)
_across_of_2, _across_of_1 = _panel_across(2), _panel_across(1)


@backend.inlined
def vectors_at(n, columns, V):
    """Return how many vectors of columns the panel from n on has: two, or one at the end."""
    return 2 if columns - n >= 2 * V else 1


@backend.inlined
def _block(segments, run):
    """Return how many segments are taken at a time, and how much of each: DEPTH steps of k at most."""
    if segments * run <= DEPTH:
        return max(1, segments), max(1, run)  # without any k, too, there is a sum: of nothing
    if run <= DEPTH:
        return DEPTH // run, run
    return 1, -(-run // -(-run // DEPTH))


@backend.piece
def multiply(
    a, at, a_rows, segments, run, b, k, c, o, c_rows, then, bias, low, high, rows, n, columns, soon, at_soon, step_soon
):  # fmt: skip
    """Make the panel from column n on of a product c (rows, columns) = a b, b packed.

    a: the entry (r, (s, i)) is a[at + a_rows[r] + segments[s] + i], i < run; k is (s, i)
    b: packed from entry k on
    c: row r begins at c[o + c_rows[r]]. then: STORE it, ADD it to what is there, CLIP it to low and high after the
       bias (columns,) is added; ADD + CLIP does both. It may not lie in a: a long k is added to it block by block
    soon: what will be read after this: see `backend/tiles.py`
    """
    k += n * segments.size * run
    vectors = vectors_at(n, columns, BYTES // c.itemsize)
    together, length = _block(segments.size, run)
    for s in range(0, max(1, segments.size), together):
        some = segments[s : s + together]
        for i in range(0, max(1, run), length):
            part, now = min(length, run - i), ADD if s + i > 0 else then & ADD
            if s + together >= segments.size and i + length >= run:
                now |= then & CLIP
            if vectors == 2:
                at_soon = _panel_of_2(
                    a, at + i, a_rows, some, part, b, k, c, o, c_rows, now, bias, low, high, rows, n, soon, at_soon,
                    step_soon,
                )  # fmt: skip
            else:
                at_soon = _panel_of_1(
                    a, at + i, a_rows, some, part, b, k, c, o, c_rows, now, bias, low, high, rows, n, soon, at_soon,
                    step_soon,
                )  # fmt: skip
            k += some.size * part * vectors * (BYTES // c.itemsize)


@backend.piece
def multiply_across(
    a, at, segments, step, run, b, k, b_segments, b_step, c, o, c_rows, then, rows, n, columns, soon, at_soon, step_soon
):  # fmt: skip
    """Make the panel from column n on of a product c (rows, columns) = a^T b, both read where they lie.

    a: the entry ((s, i), r) is a[at + segments[s] + i*step + r], i < run
    b: row (s, i) begins at b[k + (b_segments[s] + i) * b_step]
    c: row r begins at c[o + c_rows[r]]. then: STORE it, or ADD it to what is there
    """
    if vectors_at(n, columns, BYTES // c.itemsize) == 2:
        _across_of_2(
            a, at, segments, step, run, b, k, b_segments, b_step, c, o, c_rows, then, rows, n, soon, at_soon, step_soon
        )  # fmt: skip
    else:
        _across_of_1(
            a, at, segments, step, run, b, k, b_segments, b_step, c, o, c_rows, then, rows, n, soon, at_soon, step_soon
        )  # fmt: skip


@backend.piece
def pack(b, n, columns, packed):
    """Copy b (K, N) from its column n on into the panel of these columns; columns after N are zeros.

    packed (K * columns,) holds one panel after another.
    """
    (K, N), x = b.shape, flat(b)
    V = BYTES // packed.itemsize
    entries = vectors_at(n, columns, V) * V
    at, there = n * K, min(entries, N - n)
    for k in range(K):
        if there == entries:
            for i in range(0, entries, V):
                store(load(x, k * N + n + i), packed, at + i)
        else:
            for i in range(there):
                packed[at + i] = x[k * N + n + i]
            for i in range(there, entries):
                packed[at + i] = 0
        at += entries


# --- the same on whole matrices, which other operations use within their kernels ---


@backend.piece(allocates=True)
def product(a, packed, bias, y):
    """y (M, columns) = a (M, K) @ b + bias (columns,), with b packed."""
    (M, K), (_, columns) = a.shape, y.shape
    start, low, high = np.zeros(1, np.int64), y.dtype.type(-np.inf), y.dtype.type(np.inf)
    rows = np.arange(min(M, BLOCK))
    a_rows, y_rows, a, y = rows * K, rows * columns, a.ravel(), y.ravel()
    for first in range(0, M, BLOCK):
        for n in range(0, columns, 2 * BYTES // y.itemsize):
            multiply(
                a, first * K, a_rows, start, K, packed, 0, y, first * columns, y_rows, CLIP, bias, low, high,
                min(BLOCK, M - first), n, columns, a, 0, 0,
            )  # fmt: skip


@backend.piece(allocates=True)
def product_transposed(a, dy, db):
    """db (K, columns) = a.T @ dy, a (M, K) and dy (M, columns)."""
    (M, K), (_, columns) = a.shape, dy.shape
    start, rows = np.zeros(1, np.int64), np.arange(K) * columns
    a, dy, db = a.ravel(), dy.ravel(), db.ravel()
    for first in range(0, M, 512):
        for n in range(0, columns, 2 * BYTES // db.itemsize):
            multiply_across(
                a, first * K, start, K, min(512, M - first), dy, first * columns, start, columns, db, 0, rows,
                ADD if first else STORE, K, n, columns, a, 0, 0,
            )  # fmt: skip


@backend.jit(literal=True)
def chunks(M):
    """Return the number of chunks that M rows are cut into: up to 16, of at least about 128 rows.

    It depends on M alone, not on the number of threads, and so do the results: partial sums are always added in the
    same order.
    """
    return min(16, max(1, M // 128))


def fill_vectors(x: np.ndarray) -> np.ndarray:
    """Return x (..., N) with zeros for columns up to the next vector; x itself where N fills vectors."""
    more = padded(x.shape[-1], x.dtype) - x.shape[-1]
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)]) if more else x


def forward_numba(a, b):
    return forward_bias(a, b, None)


def forward_bias(a: np.ndarray, b: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """Return a @ b + bias (N,), or without a bias where it is None: one pass over the output."""
    N = b.shape[1]
    y = np.empty((len(a), padded(N, a.dtype)), a.dtype)
    bias = np.zeros(y.shape[1], a.dtype) if bias is None else fill_vectors(bias)
    _forward_kernel(a, np.ascontiguousarray(b), bias, y)
    return np.ascontiguousarray(y[:, :N])


@backend.jit(parallel=True, literal=True)
def _forward_kernel(a, b, bias, y):
    M, columns = y.shape
    V = BYTES // y.itemsize
    packed = np.empty(b.shape[0] * columns, y.dtype)
    for p in numba.prange(-(-columns // (2 * V))):
        pack(b, p * 2 * V, columns, packed)
    count = chunks(M)
    for t in numba.prange(count):
        first, last = t * M // count, (t + 1) * M // count
        product(a[first:last], packed, bias, y[first:last])


def backward_numba(dy, a, b):
    da, db, _ = backward_bias(dy, a, b)
    return da, db


def backward_bias(dy: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return da, db, and the sums of the columns of dy, which are the gradient of a bias."""
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


def _matrices(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a = checks.array("a", a, "(M, K)")
    b = checks.array("b", b, "(K, N)", a)
    if a.shape[1] != len(b):
        raise MbnpError(f"a {a.shape} has {a.shape[1]} columns, but b {b.shape} has {len(b)} rows")
    return a, b


def forward(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return y (M, N) from a (M, K) and b (K, N)."""
    return _forward(*_matrices(a, b))


def backward(dy: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return da, db from dy (M, N) and what went into `forward`."""
    a, b = _matrices(a, b)
    dy = checks.gradient(dy, (len(a), b.shape[1]), a)
    return _backward(dy, a, b)
