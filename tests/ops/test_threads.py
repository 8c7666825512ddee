"""The number of threads changes the time and nothing else, not even the last bit."""

import numba
import numpy as np
import pytest

from mbnp import backend
from mbnp.ops import batchnorm, conv, depthwise, pointwise

rng = np.random.default_rng(0)


def a(*shape):
    return rng.standard_normal(shape).astype(np.float32)


X, DY, W3, W1, DW, V = a(19, 9, 11, 5), a(19, 9, 11, 7), a(3, 3, 5, 7), a(5, 7), a(3, 3, 5), a(5)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="kernels run in Python, on one thread")
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two processors")
@pytest.mark.parametrize(
    "operation",
    [
        lambda: (conv.forward(X, W3, padding=1), *conv.backward(DY, X, W3, padding=1)),
        lambda: (depthwise.forward(X, DW, padding=1), *depthwise.backward(X, X, DW, padding=1)),
        lambda: (pointwise.forward(X, W1), *pointwise.backward(DY, X, W1)),
        lambda: (*batchnorm.forward(X, V, V), *batchnorm.backward(X, X, V, V, V**2)),
    ],
    ids=["conv", "depthwise", "pointwise", "batchnorm"],
)
def test_results_do_not_depend_on_the_number_of_threads(operation):
    before = backend.get_num_threads()
    try:
        backend.set_num_threads(1)
        one = operation()
        backend.set_num_threads(numba.config.NUMBA_NUM_THREADS)
        many = operation()
    finally:
        backend.set_num_threads(before)
    for alone, together in zip(one, many, strict=True):
        np.testing.assert_array_equal(alone, together)
