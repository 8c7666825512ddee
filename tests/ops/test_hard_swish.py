import numpy as np
import pytest
from torch.nn import functional as F

from mbnp.ops import hard_swish
from tests import oracle


@pytest.mark.parametrize("shape", [(2, 5, 3, 7), (33,), (4, 17)])
def test_agrees_with_torch(shape):
    x = 4 * np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    oracle.check(hard_swish.forward, hard_swish.backward, F.hardswish, x)


def test_corners_are_torchs_and_nan_shows():
    x = np.array([-4, -3, -0.0, 0.0, 3, np.nextafter(np.float32(3), np.float32(4)), np.inf])
    oracle.check(hard_swish.forward, hard_swish.backward, F.hardswish, x, finite=False)
    nan = np.array([np.nan])
    assert np.isnan([hard_swish.forward(nan), hard_swish.backward(np.ones(1), nan)]).all()
    np.testing.assert_array_equal(hard_swish.backward(np.ones(2), np.array([-3.0, 3.0])), [0, 1])


def test_its_lowest_point():
    x = np.linspace(-5, 5, 10_001)
    y = hard_swish.forward(x)
    assert (x[y.argmin()], y.min()) == pytest.approx((-1.5, -0.375))
