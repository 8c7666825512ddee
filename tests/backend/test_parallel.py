"""A parallel loop within a kernel."""

import numpy as np
import pytest

from mbnp import backend


@backend.piece
def _count(t, step, counts, bounds):
    low, high = bounds
    if low <= t < high:
        counts[t] += step


@backend.jit(literal=True)
def _count_all(n, step, counts, bounds):
    backend.in_parallel(n, _count, step, counts, bounds)


@pytest.mark.parametrize("threads", range(1, backend.max_threads() + 1))
@pytest.mark.parametrize("n", [0, 1, 2, 3, 64, 1001])
def test_each_index_is_passed_once_on_any_number_of_threads(n, threads):
    counts, before = np.zeros(1100), backend.get_num_threads()
    backend.set_num_threads(threads)
    try:
        with backend.one_pool():
            _count_all(n, 0.5, counts, (1, 1000))
    finally:
        backend.set_num_threads(before)
    expected = np.zeros(1100)
    expected[1 : max(1, min(n, 1000))] = 0.5
    np.testing.assert_array_equal(counts, expected)
