"""Vectors compiled are what their definitions say, in both types, with NaN and infinities among the entries."""

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from mbnp.backend import jit, vectors
from mbnp.backend.vectors import (
    accumulate,
    add_rows,
    clear,
    clip,
    copy,
    flat,
    fma,
    line,
    load,
    padded,
    prefetch,
    spread,
    store,
    transpose,
    where_inside,
    width,
)
from tests.tally import NIGHTLY

ROOT = Path(__file__).parents[2]


def everything(x, y, low, high, out, totals):
    v, w = load(x, 1), load(y, 0)
    prefetch(x, 10**6)
    store(v + w, out[0], 0)
    store(v - w, out[0], 16)
    store(v * w, out[0], 32)
    store(clip(v, low, high), out[1], 0)
    store(where_inside(v, low, high, w), out[1], 16)
    store(spread(x, 3), out[1], 32)
    store(line(v, low, high), out[2], 32)
    store(w, flat(out), 2 * 64 + 9)
    accumulate(v, totals, 2)


def compiled(function):
    return jit(function, literal=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bounds", [(0, np.inf), (0, 6), (-np.inf, np.inf), (-1, 1)])
def test_compiled_they_do_what_their_definitions_say(dtype, bounds):
    n = width(dtype)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, n + 8)).astype(dtype)
    x[1:7] = np.nan, np.inf, -np.inf, 0, -1, 6
    results = []
    for function in (everything, compiled(everything)):
        out, totals = np.zeros((3, 64), dtype), np.ones(n + 2)
        with np.errstate(invalid="ignore"):  # 0 * inf
            function(x, y, dtype(bounds[0]), dtype(bounds[1]), out, totals)
        results.append((out, totals))
    for expected, got in zip(*results, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert all(row.any() for row in results[0][0])


def multiplied_and_added(x, y, z, out):
    store(fma(load(x, 1), load(y, 0), load(z, 2)), out, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_fused_multiply_add_is_rounded_once(dtype):
    """Of (1 + eps)**2 - 1 - 2 eps nothing is left but eps**2, which is lost where the square is rounded."""
    n, eps = width(dtype), np.finfo(dtype).eps
    x, z = np.full(n + 1, 1 + eps, dtype), np.full(n + 2, -1 - 2 * eps, dtype)
    x[2] = np.nan
    results = []
    for function in (multiplied_and_added, compiled(multiplied_and_added)):
        out = np.empty(n, dtype)
        function(x, x[:n].copy() if n > 2 else np.ones(2, dtype), z, out)
        results.append(out)
    assert [np.isnan(out).sum() for out in results] == [2 if n > 2 else 1] * 2
    if n > 2:
        np.testing.assert_array_equal(results[0][3:], 0)
        np.testing.assert_array_equal(results[1][3:], 0 if numba.config.DISABLE_JIT else eps**2)


def moved(x, y):
    transpose(x, 3, 40, y, 5, 37)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_square_of_vectors_is_transposed(dtype):
    n = width(dtype)
    x = np.random.default_rng(0).standard_normal(40 * 16 + 3).astype(dtype)
    x[43] = np.nan
    results = []
    for function in (moved, compiled(moved)):
        y = np.zeros(37 * 16 + 5, dtype)
        function(x, y)
        results.append(y)
    np.testing.assert_array_equal(*results)
    square = np.lib.stride_tricks.as_strided(x[3:], (n, n), (40 * x.itemsize, x.itemsize))
    there = np.lib.stride_tricks.as_strided(results[1][5:], (n, n), (37 * x.itemsize, x.itemsize))
    np.testing.assert_array_equal(there, square.T)
    assert np.count_nonzero(results[1]) == n * n


def test_a_vector_is_what_the_processor_has():
    assert width(np.float32) == 2 * width(np.float64) == vectors.BYTES // 4
    expected = {64: [16, 16, 32, 8], 32: [8, 16, 24, 4], 16: [4, 16, 20, 4]}[vectors.BYTES]
    assert [padded(1, np.float32), padded(16, np.float32), padded(17, np.float32), padded(3, np.float64)] == expected


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="a piece is then Python itself")
def test_vectors_are_added_to_rows():
    @compiled
    def two_rows(x, out):
        add_rows((load(x, 1), load(x, 0)), out, 2)

    n = width(np.float32)
    x, out = np.arange(1, n + 2, dtype=np.float32), np.full((3, n + 3), 5, np.float32)
    two_rows(x, out)
    np.testing.assert_array_equal(out[:, 2:-1], [5 + x[1:], 5 + x[:-1], 5 + 0 * x[1:]])
    assert (out[:, [0, 1, -1]] == 5).all()


def test_runs_are_cleared_and_copied():
    @compiled
    def both(x, out):
        clear(x, 3, 40)
        copy(x, 2, 43, out, 5)

    x, out = np.arange(1, 61, dtype=np.float32), np.full(60, np.nan, np.float32)
    both(x, out)
    np.testing.assert_array_equal(x, [1, 2, 3, *[0] * 40, *range(44, 61)])
    np.testing.assert_array_equal(out, [*[np.nan] * 5, 3, *[0] * 40, 44, 45, *[np.nan] * 12])


def added_to_a_number(x, y):
    load(x, 0) + 1.0


def added_across_types(x, y):
    load(x, 0) + load(y, 0)


def stored_across_types(x, y):
    store(load(x, 0), y, 0)


def accumulated_in_float32(x, y):
    accumulate(load(x, 0), x, 0)


def loaded_from_gaps(x, y):
    load(x[::2], 0)


def fused_across_types(x, y):
    fma(load(x, 0), load(x, 0), load(y, 0))


def transposed_across_types(x, y):
    transpose(x, 0, 1, y, 0, 1)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
@pytest.mark.parametrize(
    "wrong",
    [
        added_to_a_number,
        added_across_types,
        stored_across_types,
        accumulated_in_float32,
        loaded_from_gaps,
        fused_across_types,
        transposed_across_types,
    ],
)
def test_types_that_do_not_fit_are_refused(wrong):
    with pytest.raises(numba.TypingError):
        compiled(wrong)(np.zeros(64, np.float32), np.zeros(64))


def start(width_in_bytes, folder, *command):
    """Start Python in a process whose vectors are so wide."""
    environment = os.environ | {"MBNP_VECTOR_BYTES": width_in_bytes, "NUMBA_CACHE_DIR": str(folder / width_in_bytes)}
    return subprocess.Popen(
        [sys.executable, *command], env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
def test_vectors_may_have_another_width(tmp_path):
    """On every processor: what its registers do not hold the compiler divides, so that 64 runs without AVX-512.

    Another width than the rest of the suite runs with, and in the long setting both others at once: each compiles every
    kernel.
    """
    chosen = "(test_matmul and (packed or tile) and float32) or test_reference_equation[case2-float32]"
    if NIGHTLY:
        chosen += " or test_vectors"
    tests = "tests/backend/test_vectors.py", "tests/ops/test_matmul.py", "tests/fused/test_fused.py"
    arguments = "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow", "-k", chosen, *tests
    widths = sorted({"16", "32", "64"} - {str(vectors.BYTES)})
    for process in [start(width_in_bytes, tmp_path, *arguments) for width_in_bytes in widths[-2 if NIGHTLY else -1 :]]:
        out, error = process.communicate(timeout=600)
        assert process.returncode == 0, out + error
        assert " passed" in out


@pytest.mark.parametrize("wrong", ["48", "wide"])
def test_a_width_that_no_vector_has_is_refused(wrong, tmp_path):
    process = start(wrong, tmp_path, "-c", "import mbnp.fused")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    last = error.strip().splitlines()[-1]
    assert last == f"mbnp.errors.MbnpError: MBNP_VECTOR_BYTES must be 16, 32 or 64, got '{wrong}'"
    assert "During handling" not in error
