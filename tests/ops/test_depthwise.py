import numpy as np
import pytest
from torch.nn import functional as F

from mbnp import MbnpError
from mbnp.ops import depthwise
from tests import oracle

ONE_SIDED = ((0, 1), (0, 1))  # TensorFlow's SAME for an even image at stride 2


def check(x, w, b=None, stride=1, padding=0, **options):
    def reference(x, w, b):
        x = oracle.padded(oracle.nchw(x), padding)
        return oracle.nhwc(F.conv2d(x, w.permute(2, 0, 1)[:, None].contiguous(), b, stride, groups=w.shape[2]))

    def forward(x, w, b=None):
        return depthwise.forward(x, w, b, stride, padding)

    def backward(dy, x, w, b=None):
        return depthwise.backward(dy, x, w, stride, padding)

    oracle.check(forward, backward, reference, x, w, b, **options)


@pytest.mark.parametrize(
    ("x", "w", "b", "stride", "padding"),
    [
        ((2, 7, 5, 3), (3, 3, 3), (3,), 1, 1),
        ((2, 7, 5, 3), (3, 3, 3), None, 1, 0),
        ((1, 8, 9, 5), (3, 3, 5), None, 2, 1),
        ((2, 6, 6, 17), (3, 3, 17), (17,), 2, ONE_SIDED),
        ((2, 9, 8, 2), (3, 3, 2), None, (2, 1), 1),
        ((2, 11, 7, 2), (5, 3, 2), (2,), 3, ((2, 1), (0, 2))),
        ((2, 10, 4, 2), (1, 4, 2), None, (3, 2), ((0, 0), (3, 3))),
        ((2, 4, 4, 1), (1, 1, 1), (1,), 1, 0),
        ((1, 1, 1, 4), (3, 3, 4), None, 1, 1),
        ((1, 5, 5, 2), (5, 5, 2), None, 1, 0),
        ((1, 3, 4, 2), (5, 5, 2), None, 1, 2),
        ((17, 3, 3, 1), (2, 2, 1), None, 2, 2),
    ],
)
def test_agrees_with_torch(x, w, b, stride, padding):
    check(x, w, b, stride, padding)


def test_nan_shows():
    x = np.ones((2, 5, 5, 2))
    x[1, 2, 3, 0] = np.nan
    check(x, (3, 3, 2), (2,), 2, 1, finite=False)
    dy = np.ones((2, 3, 3, 2))
    dy[0, 1, 1, 1] = np.nan  # a window without padding: torch multiplies padding too, and 0 * NaN is NaN
    check((2, 5, 5, 2), (3, 3, 2), (2,), 2, 1, finite=False, dy=dy)


def test_same_is_tensorflows_padding():
    x, w = np.ones((1, 6, 6, 1)), np.ones((3, 3, 1))
    np.testing.assert_array_equal(depthwise.forward(x, w, None, 2, "same")[0, 0, :, 0], [9, 9, 6])


def zeros(*shape):
    return np.zeros(shape, np.float32)


def test_bad_input():
    with pytest.raises(MbnpError, match=r"channels second, .* use x.transpose\(0, 2, 3, 1\)"):
        depthwise.forward(zeros(2, 5, 8, 9), zeros(3, 3, 5))
    with pytest.raises(MbnpError, match=r"x has 5 channels .* w \(3, 3, 4\) expects 4"):
        depthwise.forward(zeros(2, 8, 9, 5), zeros(3, 3, 4))
    with pytest.raises(MbnpError, match="3x3 kernel does not fit into the 2x2 input"):
        depthwise.forward(zeros(1, 2, 2, 5), zeros(3, 3, 5))
    with pytest.raises(MbnpError, match="w is float64 where the input is float32"):
        depthwise.forward(zeros(2, 8, 9, 5), np.zeros((3, 3, 5)))
    with pytest.raises(MbnpError, match=r"b must have the shape \(5,\), got \(1,\)"):
        depthwise.forward(zeros(2, 8, 9, 5), zeros(3, 3, 5), zeros(1))
    with pytest.raises(MbnpError, match=r"dy must have the shape \(2, 6, 7, 5\), got \(2, 8, 9, 5\)"):
        depthwise.backward(zeros(2, 8, 9, 5), zeros(2, 8, 9, 5), zeros(3, 3, 5))
