import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mbnp.ops import hard_sigmoid
from tests import oracle


def reference(x):
    """F.hardsigmoid, but that its gradient in float64 has float32's 1/6."""
    y = F.relu6(x + 3) / 6
    return torch.where(x.isnan(), 0 * x, y)


@pytest.mark.parametrize("shape", [(2, 5, 3, 7), (33,), (4, 17)])
def test_agrees_with_torch(shape):
    x = 4 * np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    oracle.check(hard_sigmoid.forward, hard_sigmoid.backward, reference, x)


def test_corners_and_nan_agree_with_torch():
    x = np.array([-np.inf, -4, -3, -0.0, 0.0, 3, np.nextafter(np.float32(3), np.float32(4)), np.inf, np.nan])
    oracle.check(hard_sigmoid.forward, hard_sigmoid.backward, reference, x, finite=False)
    np.testing.assert_array_equal(hard_sigmoid.backward(np.ones(2), np.array([-3.0, 3.0])), [0, 0])
