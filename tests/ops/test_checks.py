"""What holds for the arguments of all operations alike."""

import numpy as np
import pytest

from mbnp import backend
from mbnp.ops import batchnorm, conv, depthwise, pointwise, pool, relu


def a(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


W3, W1, DW, V = a(3, 3, 3, 2), a(3, 2), a(3, 3, 3), a(3)


@pytest.mark.parametrize("name", backend.BACKENDS)
@pytest.mark.parametrize(
    "operation",
    [
        lambda x: conv.forward(x, W3),
        lambda x: depthwise.forward(x, DW),
        lambda x: pointwise.forward(x, W1),
        lambda x: batchnorm.forward(x, V, V)[0],
        lambda x: batchnorm.inference(x, V, V, V, V**2),
        lambda x: relu.forward(x),
        lambda x: relu.backward(x, x),
        lambda x: pool.max_forward(x, 2),
    ],
)
def test_views_are_inputs_like_any_other(operation, name):
    with backend.use(name):
        view = a(2, 3, 9, 5).transpose(0, 2, 3, 1)[:, ::2]
        assert not view.flags.c_contiguous
        y = operation(view)
        np.testing.assert_array_equal(y, operation(view.copy(order="C")))
    assert y.flags.c_contiguous


@pytest.mark.parametrize("name", backend.BACKENDS)
def test_a_numpy_number_as_an_option_does_not_promote(name):
    x, big = a(4, 3), np.float64(0.25)
    with backend.use(name):
        assert relu.forward(x, max_value=big).dtype == np.float32
        y, mean, var = batchnorm.forward(x, V, V, eps=big)
        results = [y, mean, var, *batchnorm.backward(x, x, V, mean, var, eps=big)]
        results += [batchnorm.inference(x, V, V, mean, var, eps=big)]
        results += batchnorm.inference_backward(x, x, V, mean, var, eps=big)
        results += batchnorm.update_running(mean, var, mean, var, np.int64(4), momentum=big)
    assert {r.dtype for r in results} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", backend.BACKENDS)
def test_zero_dimensions_are_a_shape_too(name):
    with backend.use(name):
        assert relu.forward(np.array(-1.0)).shape == ()
