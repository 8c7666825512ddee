import numba
import numpy as np
import pytest

from mbnp import MbnpError
from mbnp.ops import gate
from tests import oracle


@pytest.mark.parametrize("shape", [(2, 5, 3, 7), (1, 1, 1, 1), (3, 4, 4, 16), (5, 1, 9, 3)])
def test_agrees_with_torch(shape):
    oracle.check(gate.forward, gate.backward, lambda x, s: x * s[:, None, None, :], shape, (shape[0], shape[3]))


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="17 million numbers, one by one, take Python as many seconds")
def test_sums_over_a_large_map_keep_their_digits():
    """A sum in float32, pixel by pixel, would stop to grow at 2^24."""
    x, s = np.ones((1, 4100, 4100, 1), np.float32), np.ones((1, 1), np.float32)
    _, ds = gate.backward(x, x, s)
    assert ds == 4100**2


def test_bad_input():
    x = np.zeros((2, 3, 3, 4), np.float32)
    with pytest.raises(MbnpError, match=r"s must have the shape \(2, 4\), got \(2, 3\)"):
        gate.forward(x, np.zeros((2, 3), np.float32))
    with pytest.raises(MbnpError, match=r"s must have the axes \(N, C\)"):
        gate.forward(x, np.zeros(4, np.float32))
    with pytest.raises(MbnpError, match="s is float64 where the input is float32"):
        gate.forward(x, np.zeros((2, 4)))
