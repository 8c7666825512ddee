import numpy as np
import pytest

from mbnp import MbnpError, backend, models
from mbnp.detection import anchors

SIZES = [[(0.2, 0.4), (0.5, 0.5), (0.3, 0.1)], [(1.5, 1.0)]]
GRIDS = [(2, 3), (1, 1)]


@pytest.mark.parametrize("name", backend.BACKENDS)
def test_order_and_place(name):
    """Heads, then rows, columns and sizes; the first cell of 2 x 3 is around (1/6, 1/4)."""
    with backend.use(name):
        made = anchors.make(SIZES, GRIDS)
    assert made.shape == (2 * 3 * 3 + 1, 4)
    assert made.dtype == np.float64
    np.testing.assert_allclose(made[0], [1 / 6 - 0.1, 1 / 4 - 0.2, 1 / 6 + 0.1, 1 / 4 + 0.2], atol=1e-15)
    np.testing.assert_allclose(made[1], [1 / 6 - 0.25, 0, 1 / 6 + 0.25, 1 / 2], atol=1e-15)
    np.testing.assert_allclose(made[3], made[0] + [1 / 3, 0, 1 / 3, 0], atol=1e-15)
    np.testing.assert_allclose(made[9], made[0] + [0, 1 / 2, 0, 1 / 2], atol=1e-15)
    np.testing.assert_allclose(made[18], [-0.25, 0, 1.25, 1], atol=1e-15)


def test_of_a_network():
    net = models.create("ssd-mobilenet-v1-small", num_classes=3, width_mult=0.25)
    places = anchors.of(net)
    outputs = net.forward(np.zeros((1, net.resolution, net.resolution, 3), np.float32))
    assert places.shape == (outputs.shape[1], 4)
    assert places.dtype == np.float32
    assert anchors.of(models.create("ssd-mobilenet-v1-small", width_mult=0.25, dtype=np.float64)).dtype == np.float64


def test_bad_input():
    with pytest.raises(MbnpError, match="anchors for 1 heads and 2 feature maps"):
        anchors.make(SIZES[:1], GRIDS)
    with pytest.raises(MbnpError, match=r"positive shares, got \[\(0\.2, -1\)\]"):
        anchors.make([[(0.2, -1)]], [(1, 1)])
    with pytest.raises(MbnpError, match="positive shares"):
        anchors.make([[]], [(1, 1)])
    with pytest.raises(MbnpError, match="finds no boxes"):
        anchors.of(models.create("mobilenet-v1-small", width_mult=0.25))
