"""Vectors compiled are what their definitions say, in both types, with NaN and infinities among the entries."""

import numba
import numpy as np
import pytest

from mbnp.backend import jit
from mbnp.fused.kernels import vectors
from mbnp.fused.kernels.vectors import accumulate, clip, load, prefetch, spread, store, where_inside, whole, width


def everything(x, y, low, high, out, totals):
    v, w = load(x, 1), load(y, 0)
    prefetch(x, 10**6)
    store(v + w, out[0], 0)
    store(v - w, out[0], 16)
    store(v * w, out[0], 32)
    store(clip(v, low, high), out[1], 0)
    store(where_inside(v, low, high, w), out[1], 16)
    store(spread(x, 3), out[1], 32)
    accumulate(v, totals, 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("limits", [(0, np.inf), (0, 6), (-np.inf, np.inf), (-1, 1)])
def test_compiled_they_do_what_their_definitions_say(dtype, limits):
    n = width(dtype)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, n + 8)).astype(dtype)
    x[1:7] = np.nan, np.inf, -np.inf, 0, -1, 6
    results = []
    for function in (everything, jit(everything)):
        out, totals = np.zeros((2, 64), dtype), np.ones(n + 2)
        function(x, y, dtype(limits[0]), dtype(limits[1]), out, totals)
        results.append((out, totals))
    for expected, got in zip(*results, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_vector_is_what_the_processor_has():
    assert width(np.float32) == 2 * width(np.float64) == vectors.BYTES // 4
    expected = {64: [16, 16, 32, 8], 32: [8, 16, 24, 4]}[vectors.BYTES]
    assert [
        whole(1, np.float32),
        whole(16, np.float32),
        whole(17, np.float32),
        whole(3, np.float64),
    ] == expected


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


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
@pytest.mark.parametrize(
    "wrong",
    [added_to_a_number, added_across_types, stored_across_types, accumulated_in_float32, loaded_from_gaps],
)
def test_types_that_do_not_fit_are_refused(wrong):
    with pytest.raises(numba.TypingError):
        jit(wrong)(np.zeros(64, np.float32), np.zeros(64))
