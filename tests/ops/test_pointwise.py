import numpy as np
import pytest

from mbnp import MbnpError
from mbnp.ops import pointwise
from tests import oracle


def check(x, w, b=None, **options):
    def reference(x, w, b):
        return x @ w if b is None else x @ w + b

    def backward(dy, x, w, b=None):
        return pointwise.backward(dy, x, w)

    oracle.check(pointwise.forward, backward, reference, x, w, b, **options)


@pytest.mark.parametrize(
    ("x", "w", "b"),
    [
        ((2, 5, 3, 7), (7, 4), None),
        ((2, 5, 3, 7), (7, 4), (4,)),
        ((1, 1, 1, 3), (3, 5), (5,)),
        ((3, 4, 4, 1), (1, 1), None),
        ((1, 3, 5, 17), (17, 33), None),
    ],
)
def test_agrees_with_torch(x, w, b):
    check(x, w, b)


def test_many_chunks_agree_with_torch():
    """The kernel cuts the pixels into chunks that do not divide them."""
    check((3, 17, 19, 5), (5, 17), (17,), finite=False, backends=("numpy", "numba"))


def test_nan_shows():
    x = np.ones((2, 3, 3, 2))
    x[1, 2, 0, 0] = np.nan
    check(x, (2, 3), (3,), finite=False)
    dy = np.ones((2, 3, 3, 3))
    dy[0, 0, 1, 2] = np.nan
    check((2, 3, 3, 2), (2, 3), (3,), finite=False, dy=dy)


def zeros(*shape):
    return np.zeros(shape, np.float32)


def test_bad_input():
    with pytest.raises(MbnpError, match=r"channels second, .* use x.transpose\(0, 2, 3, 1\)"):
        pointwise.forward(zeros(2, 5, 8, 9), zeros(5, 4))
    with pytest.raises(MbnpError, match=r"x has 5 channels .* w \(4, 5\) expects 4"):
        pointwise.forward(zeros(2, 8, 9, 5), zeros(4, 5))
    with pytest.raises(MbnpError, match="w is float64 where the input is float32"):
        pointwise.forward(zeros(2, 8, 9, 5), np.zeros((5, 4)))
    with pytest.raises(MbnpError, match=r"w must have the axes \(C, D\), got the shape \(1, 1, 5, 4\)"):
        pointwise.forward(zeros(2, 8, 9, 5), zeros(1, 1, 5, 4))
    with pytest.raises(MbnpError, match=r"dy must have the shape \(2, 8, 9, 4\), got \(2, 8, 9, 5\)"):
        pointwise.backward(zeros(2, 8, 9, 5), zeros(2, 8, 9, 5), zeros(5, 4))
