import functools

import numpy as np
import pytest
from torch.nn import functional as F

from mbnp import MbnpError, backend
from mbnp.ops import pool
from tests import oracle

WINDOWS = [
    ((2, 6, 8, 3), 2, None, 0),
    ((1, 7, 5, 17), 3, 2, 1),
    ((2, 9, 7, 2), (3, 2), (1, 3), ((2, 1), (0, 1))),
    ((1, 4, 4, 1), 4, None, 0),
    ((3, 2, 2, 2), 1, 1, 0),
    ((1, 2, 2, 5), 2, None, 0),
]


def check_max(x, size, stride=None, padding=0, **options):
    def reference(x):
        return oracle.nhwc(F.max_pool2d(oracle.padded(oracle.nchw(x), padding, -np.inf), size, stride))

    how = {"size": size, "stride": stride, "padding": padding}
    forward, backward = (functools.partial(f, **how) for f in (pool.max_forward, pool.max_backward))
    oracle.check(forward, backward, reference, x, **options)


def check_average(x, size, stride=None, padding=0, count_padding=True, **options):
    def reference(x):
        y = F.avg_pool2d(oracle.padded(oracle.nchw(x), padding), size, stride)
        if not count_padding:  # torch can only do this for symmetric padding; the inside's share always can
            y = y / F.avg_pool2d(oracle.padded(oracle.nchw(0 * x.detach() + 1), padding), size, stride)
        return oracle.nhwc(y)

    how = {"size": size, "stride": stride, "padding": padding, "count_padding": count_padding}
    forward, backward = (functools.partial(f, **how) for f in (pool.average_forward, pool.average_backward))
    oracle.check(forward, backward, reference, x, **options)


@pytest.mark.parametrize(("x", "size", "stride", "padding"), WINDOWS)
def test_max_agrees_with_torch(x, size, stride, padding):
    check_max(x, size, stride, padding)


@pytest.mark.parametrize("count_padding", [True, False])
@pytest.mark.parametrize(("x", "size", "stride", "padding"), WINDOWS)
def test_average_agrees_with_torch(x, size, stride, padding, count_padding):
    check_average(x, size, stride, padding, count_padding)


def test_leaving_padding_out_agrees_with_torch_itself():
    x = np.random.default_rng(0).standard_normal((2, 6, 7, 3))
    y = pool.average_forward(x, 3, 2, 1, count_padding=False)
    expected = F.avg_pool2d(oracle.nchw(oracle._tensor(x)), 3, 2, 1, count_include_pad=False)
    oracle.close(y, oracle.nhwc(expected).detach().numpy(), 1e-12, "y")


def test_the_first_of_equal_maxima_gets_the_gradient():
    check_max(np.array([3.0, 3, 1, 3]).reshape(1, 2, 2, 1), 2, finite=False)
    check_max(np.zeros((1, 5, 5, 2)), 3, 2, 1, finite=False)
    dx = pool.max_backward(np.ones((1, 1, 1, 1)), np.zeros((1, 2, 2, 1)), 2)
    np.testing.assert_array_equal(dx.ravel(), [1, 0, 0, 0])


@pytest.mark.parametrize("check", [check_max, check_average])
def test_nan_shows(check):
    x = np.random.default_rng(0).standard_normal((1, 5, 4, 2)).astype(np.float32)
    x[0, 2, 1, 0] = np.nan
    check(x, 3, 1, 1, finite=False)
    x[...] = np.arange(20).reshape(1, 5, 4, 1)  # no equal values
    dy = np.ones((1, 5, 4, 2))
    dy[0, 0, 1, 1] = np.nan
    check(x, 3, 1, 1, finite=False, dy=dy)


@pytest.mark.parametrize("name", backend.BACKENDS)
def test_the_last_of_several_nans_gets_the_gradient_as_in_torch(name):
    x = np.array([1, np.nan, np.nan, 2]).reshape(1, 2, 2, 1)
    with backend.use(name):
        assert np.isnan(pool.max_forward(x, 2)).all()
        np.testing.assert_array_equal(pool.max_backward(np.ones((1, 1, 1, 1)), x, 2).ravel(), [0, 0, 1, 0])


@pytest.mark.parametrize("x", [(2, 5, 3, 7), (1, 1, 1, 1), (3, 1, 4, 2)])
def test_global_average_agrees_with_torch(x):
    oracle.check(pool.global_average_forward, pool.global_average_backward, lambda x: x.mean((1, 2)), x)


def zeros(*shape):
    return np.zeros(shape, np.float32)


def test_bad_input():
    with pytest.raises(MbnpError, match=r"padding .* must be smaller than the window"):
        pool.max_forward(zeros(1, 4, 4, 1), 2, 1, 2)
    with pytest.raises(MbnpError, match="5x5 kernel does not fit into the 4x4 input"):
        pool.average_forward(zeros(1, 4, 4, 1), 5)
    with pytest.raises(MbnpError, match="size must be at least 1, got 0"):
        pool.average_forward(zeros(1, 4, 4, 1), 0)
    with pytest.raises(MbnpError, match=r"x must have the axes \(N, H, W, C\)"):
        pool.global_average_forward(zeros(4, 4))
    with pytest.raises(MbnpError, match=r"dy must have the shape \(1, 2, 2, 1\), got \(1, 4, 4, 1\)"):
        pool.max_backward(zeros(1, 4, 4, 1), zeros(1, 4, 4, 1), 2)
    with pytest.raises(MbnpError, match=r"dy must have the shape \(1, 3\), got \(1, 4\)"):
        pool.global_average_backward(zeros(1, 4), zeros(1, 4, 4, 3))
