"""The matrix product against PyTorch, and its tiles and packing against their definitions in Python."""

import functools

import numba
import numpy as np
import pytest

from mbnp import MbnpError, backend
from mbnp.backend import tiles
from mbnp.backend.vectors import padded, width
from mbnp.ops import matmul
from tests import oracle

SIZES = [
    (1, 1, 1),
    (3, 5, 7),
    (8, 16, 32),
    (9, 33, 17),
    (2, 1, 40),
    (4, 300, 1),
    (23, 4, 64),
    (130, 3, 10),
]


def check(a, b, **options):
    oracle.check(matmul.forward, matmul.backward, lambda a, b: a @ b, a, b, **options)


@pytest.mark.parametrize(("M", "K", "N"), SIZES)
def test_agrees_with_torch(M, K, N):
    check((M, K), (K, N))


@pytest.mark.parametrize(("M", "K", "N"), [(200, 70, 50), (1200, 33, 49), (97, 520, 5)])
def test_larger_ones_agree_with_torch(M, K, N):
    """More rows than a block, than a chunk and than `product_transposed` takes at a time."""
    check((M, K), (K, N), finite=False, backends=("numpy", "numba"))


def test_nan_shows():
    a = np.ones((5, 3))
    a[1, 2] = np.nan
    check(a, (3, 20), finite=False)
    dy = np.ones((5, 20))
    dy[4, 17] = np.nan
    check((5, 3), (3, 20), finite=False, dy=dy)


def test_views_are_taken():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((9, 14)), rng.standard_normal((11, 7)).T
    expected = a[:, ::2] @ b
    np.testing.assert_allclose(matmul.forward(a[:, ::2], b), expected, rtol=1e-12)
    da, db = matmul.backward(expected[::-1], a[:, ::2], b)
    np.testing.assert_allclose(da, expected[::-1] @ b.T, rtol=1e-12)
    np.testing.assert_allclose(db, a[:, ::2].T @ expected[::-1], rtol=1e-12)


def zeros(*shape):
    return np.zeros(shape, np.float32)


def test_bad_input():
    with pytest.raises(MbnpError, match=r"a \(2, 5\) has 5 columns, but b \(4, 5\) has 4 rows"):
        matmul.forward(zeros(2, 5), zeros(4, 5))
    with pytest.raises(MbnpError, match=r"b must have the axes \(K, N\), got the shape \(1, 5, 4\)"):
        matmul.forward(zeros(2, 5), zeros(1, 5, 4))
    with pytest.raises(MbnpError, match="b is float64 where"):
        matmul.forward(zeros(2, 5), np.zeros((5, 4)))
    with pytest.raises(MbnpError, match=r"dy must have the shape \(2, 4\), got \(2, 5\)"):
        matmul.backward(zeros(2, 5), zeros(2, 5), zeros(5, 4))


# -- tiles, panels and packing: small integers, of which every sum is exact in every order -----------------------------


def integers(rng, dtype, *shape):
    return rng.integers(-4, 5, shape).astype(dtype)


def rows_apart(rows, step, first=3):
    """Offsets of rows that lie neither one after another nor in order."""
    return np.random.default_rng(rows).permutation(rows).astype(np.int64) * step + first


@functools.cache
def compiled(function):
    return backend.jit(lambda *arguments: function(*arguments), literal=True)


@functools.cache
def compiled_tile(rows, vectors):
    """The instructions of a tile, whose size a kernel knows when it is compiled."""

    def tile(r, n, a, at, a_rows, segments, run, b, k, c, o, c_rows, then, bias, low, high, soon, at_soon, step):
        tiles.tile(
            rows, vectors, r, n, a, at, a_rows, segments, run, b, k, c, o, c_rows, then, bias, low, high, soon,
            at_soon, step,
        )  # fmt: skip

    return backend.jit(tile, literal=True)


@functools.cache
def compiled_tile_across(rows, vectors):
    def tile(r, n, a, at, segments, step, run, b, k, b_segments, b_step, c, o, c_rows, then, soon, at_soon, step_soon):
        tiles.tile_across(
            rows, vectors, r, n, a, at, segments, step, run, b, k, b_segments, b_step, c, o, c_rows, then, soon,
            at_soon, step_soon,
        )  # fmt: skip

    return backend.jit(tile, literal=True)


BOUNDS = [(-np.inf, np.inf), (0, np.inf), (-5, 6)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("rows", sorted({matmul.ROWS, 4, 1}))
def test_a_tile_is_its_definition(rows, vectors, dtype):
    rng = np.random.default_rng(0)
    V, run = width(dtype), 5
    segments, r, n = np.array([0, 40, 13], np.int64), 2, V
    k, o = 7, 11
    a, b = integers(rng, dtype, 2000), integers(rng, dtype, k + segments.size * run * vectors * V)
    a_rows, c_rows = rows_apart(r + rows, 61), rows_apart(r + rows, 4 * V)
    bias = integers(rng, dtype, 4 * V)
    a[3 + a_rows[r] + 14], b[k + 1] = np.nan, np.inf
    results = []
    for run_tile in (functools.partial(tiles.tile, rows, vectors), compiled_tile(rows, vectors)):
        made = []
        for then in (tiles.STORE, tiles.ADD, tiles.CLIP, tiles.ADD + tiles.CLIP):
            for low, high in BOUNDS:
                c = np.ones(o + (r + rows + 1) * 4 * V, dtype)
                with np.errstate(invalid="ignore"):
                    run_tile(
                        r, n, a, 3, a_rows, segments, run, b, k, c, o, c_rows, then, bias, dtype(low), dtype(high), a,
                        0, 1,
                    )  # fmt: skip
                made.append(c)
        results.append(made)
    np.testing.assert_array_equal(*results)
    assert np.isnan(results[0][0]).any()
    assert sum((c != 1).sum() for c in results[0]) > rows * vectors * V


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("rows", sorted({matmul.ROWS, 4, 1}))
def test_a_tile_across_is_its_definition(rows, vectors, dtype):
    rng = np.random.default_rng(1)
    V, run, step, b_step = width(dtype), 6, 19, 3 * width(dtype) + 1
    segments, b_segments = np.array([5, 200, 100], np.int64), np.array([0, 9, 20], np.int64)
    r, n, k, o = 3, V, 2, 5
    a, b = integers(rng, dtype, 500), integers(rng, dtype, k + 27 * b_step + 4 * V)
    c_rows = rows_apart(r + rows, 4 * V)
    a[4 + 5 + 2 * step + r] = np.nan
    results = []
    for run_tile in (functools.partial(tiles.tile_across, rows, vectors), compiled_tile_across(rows, vectors)):
        made = []
        for then in (tiles.STORE, tiles.ADD):
            c = np.ones(o + (r + rows + 1) * 4 * V, dtype)
            run_tile(r, n, a, 4, segments, step, run, b, k, b_segments, b_step, c, o, c_rows, then, a, 0, 1)
            made.append(c)
        results.append(made)
    np.testing.assert_array_equal(*results)
    assert np.isnan(results[0][0]).any()


PANELS = [1, 3, 4, 5, 7, 8, 9, 14, 23]


def packed(b, dtype):
    """b (K, N) in panels of two vectors of columns, the last one of one where that fills it."""
    K, V = len(b), width(dtype)
    D = padded(b.shape[1], dtype)
    whole = np.zeros((K, D), dtype)
    whole[:, : b.shape[1]] = b
    return np.concatenate([whole[:, n : n + 2 * V].ravel() for n in range(0, D, 2 * V)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5])  # vectors
def test_packed_columns_lie_panel_after_panel(columns, dtype):
    rng = np.random.default_rng(2)
    V = width(dtype)
    for less in (0, 1, V - 1):
        b = integers(rng, dtype, 7, columns * V - less)
        made = np.full(7 * columns * V + 8, 9, dtype)  # and some that must stay
        for n in range(0, columns * V, 2 * V):
            compiled(matmul.pack)(b, n, columns * V, made)
        np.testing.assert_array_equal(made, [*packed(b, dtype), *[9] * 8])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("then", ["STORE", "ADD", "CLIP"])
@pytest.mark.parametrize("columns", [1, 2, 3])
def test_multiply_makes_panels(columns, then, dtype):
    """Rows by a table, k over segments, for every number of rows that tiles divide in another way."""
    rng = np.random.default_rng(3)
    V, run, at, k, o = width(dtype), 3, 6, 5, 4
    segments = np.array([0, 30], np.int64)
    D, code = columns * V, getattr(tiles, then)
    bias, low, high = integers(rng, dtype, D), dtype(-9), dtype(8)
    for rows in PANELS:
        a, b = integers(rng, dtype, 3000), integers(rng, dtype, 2 * run, D)
        a_rows, c_rows = rows_apart(rows, 67), rows_apart(rows, D)
        left = np.stack([np.concatenate([a[at + row + s :][:run] for s in segments]) for row in a_rows])
        expected = np.full(o + 3 + rows * D, 2, dtype)
        before, c = expected.copy(), expected.copy()
        for row, start in zip(left @ b, c_rows, strict=True):
            place = expected[o + start :][:D]
            place[:] = {"STORE": row, "ADD": 2 + row, "CLIP": np.clip(row + bias, low, high)}[then]
        b = np.concatenate([np.full(k, np.nan, dtype), packed(b, dtype)])
        for n in range(0, D, 2 * V):
            compiled(matmul.multiply)(
                a, at, a_rows, segments, run, b, k, c, o, c_rows, code, bias, low, high, rows, n, D, a, 0, 0
            )
        np.testing.assert_array_equal(c, expected, err_msg=f"{rows} rows")
        assert (c != before).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("then", ["STORE", "ADD"])
@pytest.mark.parametrize("columns", [1, 2, 3])
def test_multiply_across_makes_panels(columns, then, dtype):
    rng = np.random.default_rng(4)
    V, run, at, k, o, step = width(dtype), 4, 6, 5, 4, 29
    segments, b_segments = np.array([0, 140], np.int64), np.array([6, 1], np.int64)
    D, code = columns * V, getattr(tiles, then)
    for rows in PANELS:
        a, b = integers(rng, dtype, 400), integers(rng, dtype, k + 11 * D)
        c_rows = rows_apart(rows, D)
        left = np.stack([a[at + s + i * step :][:rows] for s in segments for i in range(run)])  # (k, rows)
        right = np.stack([b[k + (s + i) * D :][:D] for s in b_segments for i in range(run)])
        expected = np.full(o + 3 + rows * D, 2, dtype)
        c = expected.copy()
        for row, start in zip(left.T @ right, c_rows, strict=True):
            expected[o + start :][:D] = row + 2 * (then == "ADD")
        for n in range(0, D, 2 * V):
            compiled(matmul.multiply_across)(
                a, at, segments, step, run, b, k, b_segments, D, c, o, c_rows, code, rows, n, D, a, 0, 0
            )
        np.testing.assert_array_equal(c, expected, err_msg=f"{rows} rows")


LONG = matmul.DEPTH
LONG_K = [  # segments, and the length of each
    (0, 1),
    (1, 0),
    (1, LONG),
    (1, LONG + 1),
    (1, LONG * 3 - 1),
    (2, LONG + 1),
    (3, LONG),
    (5, LONG // 2 - 3),
]


@pytest.mark.parametrize(("segments", "run"), [*LONG_K, (1, 1), (8, LONG // 4), (7, LONG // 7), (3, LONG * 2)])
def test_blocks_of_k(segments, run):
    """As much as stays in the cache at most, as few as can be, and parts of a segment only where it is too long."""
    together, length = compiled(matmul._block)(segments, run)
    assert together >= 1
    assert length >= 1
    if segments * run <= LONG:
        assert (together, length) == (max(1, segments), max(1, run))
    else:
        assert together * length <= LONG
        assert length == run or together == 1
        assert (together + 1) * run > LONG
        assert -(-run // length) == -(-run // LONG)  # as few parts as can be,
        assert run - (-(-run // length) - 1) * length > length - -(-run // length)  # about equal ones


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("then", [tiles.STORE, tiles.ADD, tiles.CLIP, tiles.ADD + tiles.CLIP])
@pytest.mark.parametrize(("segments", "run"), LONG_K)
def test_multiply_takes_a_long_k_in_blocks(segments, run, then, dtype):
    """All of k once, what was there once, and the bias and the bounds once, in the end."""
    rng = np.random.default_rng(6)
    V = width(dtype)
    rows, D, K = 5, 3 * V, segments * run
    a, b = integers(rng, dtype, rows, segments, run + 2), integers(rng, dtype, K, D)
    bias, low, high = integers(rng, dtype, D), dtype(-150), dtype(120)
    expected = a[:, :, :run].reshape(rows, -1) @ b
    if then & tiles.ADD:
        expected += 2
    if then & tiles.CLIP:
        expected = np.clip(expected + bias, low, high)
        assert K < LONG or [(expected == low).any(), (expected == high).any()] == [True, True]
    c = np.full(rows * D, 2, dtype)
    for n in range(0, D, 2 * V):
        panel = packed(b, dtype)[n * K :][: K * 2 * V]  # alone, from entry 0 on
        compiled(matmul.multiply)(
            a.ravel(), 0, np.arange(rows) * a[0].size, np.arange(segments) * (run + 2), run, panel, -n * K, c, 0,
            np.arange(rows) * D, then, bias, low, high, rows, n, D, a.ravel(), 0, 0,
        )  # fmt: skip
    np.testing.assert_array_equal(c.reshape(rows, D), expected)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
def test_results_do_not_depend_on_threads():
    rng = np.random.default_rng(5)
    a, b, dy = (rng.standard_normal(shape).astype(np.float32) for shape in ((1300, 70), (70, 50), (1300, 50)))
    results, before = [], backend.get_num_threads()
    try:
        for threads in range(1, backend.max_threads() + 1):
            backend.set_num_threads(threads)
            results.append((matmul.forward(a, b), *matmul.backward(dy, a, b)))
    finally:
        backend.set_num_threads(before)
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(x, y)
