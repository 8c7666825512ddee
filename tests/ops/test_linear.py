import numpy as np
import pytest

from mbnp import MbnpError
from mbnp.ops import linear
from tests import oracle


def check(x, w, b=None, **options):
    def reference(x, w, b):
        return x @ w if b is None else x @ w + b

    def backward(dy, x, w, b=None):
        return linear.backward(dy, x, w)

    oracle.check(linear.forward, backward, reference, x, w, b, **options)


@pytest.mark.parametrize(
    ("x", "w", "b"),
    [((5, 7), (7, 3), (3,)), ((5, 7), (7, 3), None), ((1, 17), (17, 1), (1,)), ((3, 1), (1, 10), None)],
)
def test_agrees_with_torch(x, w, b):
    check(x, w, b)


def test_nan_shows():
    check(np.array([[1, np.nan], [3, 4]]), (2, 3), (3,), finite=False)
    check((2, 2), (2, 3), (3,), finite=False, dy=np.array([[1, 2, np.nan], [4, 5, 6]]))


def zeros(*shape):
    return np.zeros(shape, np.float32)


def test_bad_input():
    with pytest.raises(MbnpError, match=r"x has 5 channels .* w \(4, 5\) expects 4"):
        linear.forward(zeros(2, 5), zeros(4, 5))
    with pytest.raises(MbnpError, match=r"x must have the axes \(N, C\), got the shape \(2, 1, 1, 4\)"):
        linear.forward(zeros(2, 1, 1, 4), zeros(4, 5))
    with pytest.raises(MbnpError, match=r"dy must have the shape \(2, 5\), got \(2, 4\)"):
        linear.backward(zeros(2, 4), zeros(2, 4), zeros(4, 5))
