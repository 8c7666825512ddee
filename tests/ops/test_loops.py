"""The loops stay inside Numba's subset: compiled as they are, they give what they give interpreted."""

import numba
import numpy as np
import pytest

from mbnp.ops import batchnorm, conv, depthwise, linear, pointwise, pool, relu, softmax_cross_entropy


def a(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


X, V = a(2, 5, 4, 3), a(3)
STRIDE, PADDING = (2, 1), ((0, 1), (1, 1))
LABELS = np.array([0, 2])


@pytest.mark.slow
@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (conv.forward_loops, (X, a(3, 3, 3, 2), a(2), STRIDE, PADDING)),
        (conv.forward_loops, (X, a(3, 3, 3, 2), None, STRIDE, PADDING)),
        (conv.backward_loops, (a(2, 2, 4, 2), X, a(3, 3, 3, 2), STRIDE, PADDING)),
        (depthwise.forward_loops, (X, a(3, 3, 3), V, STRIDE, PADDING)),
        (depthwise.forward_loops, (X, a(3, 3, 3), None, STRIDE, PADDING)),
        (depthwise.backward_loops, (a(2, 2, 4, 3), X, a(3, 3, 3), STRIDE, PADDING)),
        (pointwise.forward_loops, (X, a(3, 2), a(2))),
        (pointwise.forward_loops, (X, a(3, 2), None)),
        (pointwise.backward_loops, (a(2, 5, 4, 2), X, a(3, 2))),
        (linear.forward_loops, (a(2, 3), a(3, 2), a(2))),
        (linear.forward_loops, (a(2, 3), a(3, 2), None)),
        (linear.backward_loops, (a(2, 2), a(2, 3), a(3, 2))),
        (batchnorm.forward_loops, (a(9, 3), V, V, 1e-5)),
        (batchnorm.backward_loops, (a(9, 3), a(9, 3), V, V, V**2, 1e-5)),
        (batchnorm.inference_loops, (a(9, 3), V, V, V, V**2, 1e-5)),
        (relu.forward_loops, (X, None)),
        (relu.forward_loops, (X, 0.5)),
        (relu.backward_loops, (X, X, None)),
        (relu.backward_loops, (X, X, 0.5)),
        (pool.max_forward_loops, (X, (3, 2), STRIDE, PADDING)),
        (pool.max_backward_loops, (a(2, 2, 5, 3), X, (3, 2), STRIDE, PADDING)),
        (pool.average_forward_loops, (X, (3, 2), STRIDE, PADDING, False)),
        (pool.average_backward_loops, (a(2, 2, 5, 3), X, (3, 2), STRIDE, PADDING, True)),
        (pool.global_average_forward_loops, (X,)),
        (pool.global_average_backward_loops, (a(2, 3), X)),
        (softmax_cross_entropy.forward_loops, (a(2, 3), LABELS, 0.1)),
        (softmax_cross_entropy.backward_loops, (a(2, 3), LABELS, 0.1)),
    ],
    ids=lambda value: f"{value.__module__.split('.')[-1]}.{value.__name__}" if callable(value) else "",
)
def test_loops_compile(function, arguments):
    expected = function(*arguments)
    actual = numba.njit(function)(*arguments)
    expected, actual = (r if isinstance(r, tuple) else (r,) for r in (expected, actual))
    for one, other in zip(expected, actual, strict=True):
        assert one.dtype == getattr(other, "dtype", np.dtype(type(one)))
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)
