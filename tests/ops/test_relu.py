import functools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mbnp import MbnpError
from mbnp.ops import relu
from tests import oracle


def check(x, cap=None, **options):
    forward, backward = (functools.partial(f, max_value=cap) for f in (relu.forward, relu.backward))
    reference = torch.relu if cap is None else functools.partial(F.hardtanh, min_val=0.0, max_val=cap)
    oracle.check(forward, backward, reference, x, **options)


@pytest.mark.parametrize("shape", [(2, 5, 3, 7), (1, 1, 1, 1), (33,), (4, 17)])
@pytest.mark.parametrize("cap", [None, 6.0, 0.5])
def test_agrees_with_torch(shape, cap):
    check(shape, cap)


@pytest.mark.parametrize("cap", [None, 6.0])
def test_corners_and_nan_agree_with_torch(cap):
    above_six = float(np.nextafter(np.float32(6), np.float32(7)))
    x = np.array([-np.inf, -1, -0.0, 0.0, 1e-30, 1, 6, above_six, np.inf, np.nan])
    check(x, cap, finite=False)
    check(np.linspace(-1, 8, 10), cap, finite=False, dy=np.full(10, np.nan))


def test_the_gradient_is_zero_at_the_corners():
    x = np.array([0.0, 6.0])
    np.testing.assert_array_equal(relu.backward(np.ones(2), x, max_value=6.0), [0, 0])
    np.testing.assert_array_equal(relu.backward(np.ones(2), x), [0, 1])


def test_bad_input():
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(MbnpError, match="max_value must be above 0"):
        relu.forward(x, max_value=-1)
    with pytest.raises(MbnpError, match="dy is float64 where the input is float32"):
        relu.backward(np.zeros((2, 3)), x)
    with pytest.raises(MbnpError, match=r"dy must have the shape \(2, 3\), got \(3, 2\)"):
        relu.backward(np.zeros((3, 2), np.float32), x)
    with pytest.raises(MbnpError, match="x must be float32 or float64, got int64"):
        relu.forward(np.arange(3))
