import re

import numpy as np
import pytest
from torch.nn import functional as F

from mbnp import MbnpError
from mbnp.ops import conv
from tests import oracle

ONE_SIDED = ((0, 1), (0, 1))  # TensorFlow's SAME for an even image at stride 2


def check(x, w, b=None, stride=1, padding=0, **options):
    def reference(x, w, b):
        x = oracle.padded(oracle.nchw(x), padding)
        return oracle.nhwc(F.conv2d(x, w.permute(3, 2, 0, 1).contiguous(), b, stride))

    def forward(x, w, b=None):
        return conv.forward(x, w, b, stride, padding)

    def backward(dy, x, w, b=None):
        return conv.backward(dy, x, w, stride, padding)

    oracle.check(forward, backward, reference, x, w, b, **options)


@pytest.mark.parametrize(
    ("x", "w", "b", "stride", "padding"),
    [
        ((2, 7, 5, 3), (3, 3, 3, 4), (4,), 1, 1),
        ((2, 7, 5, 3), (3, 3, 3, 4), None, 1, 0),
        ((1, 8, 9, 5), (3, 3, 5, 2), None, 2, 1),
        ((2, 6, 6, 3), (3, 3, 3, 17), (17,), 2, ONE_SIDED),
        ((2, 9, 8, 2), (3, 3, 2, 3), None, (2, 1), 1),
        ((2, 11, 7, 2), (5, 3, 2, 1), (1,), 3, ((2, 1), (0, 2))),
        ((1, 10, 4, 2), (1, 4, 2, 3), None, (3, 2), ((0, 0), (3, 3))),
        ((2, 4, 4, 3), (1, 1, 3, 2), (2,), 1, 0),
        ((1, 1, 1, 4), (3, 3, 4, 2), None, 1, 1),
        ((1, 5, 5, 2), (5, 5, 2, 3), None, 1, 0),
        ((1, 3, 4, 1), (5, 5, 1, 2), None, 1, 2),
        ((17, 3, 3, 1), (2, 2, 1, 2), None, 2, 2),
    ],
)
def test_agrees_with_torch(x, w, b, stride, padding):
    check(x, w, b, stride, padding)


def test_many_chunks_agree_with_torch():
    """The kernel cuts the batch into chunks of several images, with a remainder."""
    check((37, 12, 10, 3), (3, 3, 3, 17), (17,), 1, 1, finite=False, backends=("numpy", "numba"))


def test_nan_shows():
    x = np.ones((2, 5, 5, 2))
    x[1, 2, 3, 0] = np.nan
    check(x, (3, 3, 2, 3), (3,), 2, 1, finite=False)
    dy = np.ones((2, 3, 3, 3))
    dy[0, 1, 1, 2] = np.nan  # a window without padding: torch multiplies padding too, and 0 * NaN is NaN
    check((2, 5, 5, 2), (3, 3, 2, 3), (3,), 2, 1, finite=False, dy=dy)


def test_same_is_tensorflows_padding():
    x, w = np.ones((1, 6, 6, 1)), np.ones((3, 3, 1, 1))
    # Under SAME the last window of an even image hangs over the right edge, the first one over nothing.
    np.testing.assert_array_equal(conv.forward(x, w, None, 2, "same")[0, 0, :, 0], [9, 9, 6])
    np.testing.assert_array_equal(conv.forward(x, w, None, 2, 1)[0, 0, :, 0], [4, 6, 6])


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("x", "w", "b", "how", "message"),
    [
        (zeros(2, 3, 8, 9), zeros(3, 3, 3, 4), None, {}, "channels second, .* use x.transpose(0, 2, 3, 1)"),
        (zeros(2, 8, 9, 5), zeros(3, 3, 3, 4), None, {}, "x has 5 channels .* w (3, 3, 3, 4) expects 3"),
        (
            zeros(8, 9, 3),
            zeros(3, 3, 3, 4),
            None,
            {},
            "x must have the axes (N, H, W, C), got the shape (8, 9, 3)",
        ),
        (zeros(2, 8, 9, 3), zeros(3, 3, 3), None, {}, "w must have the axes (KH, KW, C, D)"),
        (
            zeros(2, 2, 9, 3),
            zeros(5, 3, 3, 4),
            None,
            {"padding": 1},
            "5x3 kernel does not fit into the 2x9 input",
        ),
        (zeros(2, 8, 9, 3), np.zeros((3, 3, 3, 4)), None, {}, "w is float64 where the input is float32"),
        (zeros(2, 8, 9, 3), zeros(3, 3, 3, 4), zeros(3), {}, "b must have the shape (4,), got (3,)"),
        (
            np.zeros((2, 8, 9, 3), np.uint8),
            zeros(3, 3, 3, 4),
            None,
            {},
            "x must be float32 or float64, got uint8",
        ),
        ([[1.0]], zeros(3, 3, 3, 4), None, {}, "x must be a NumPy array, got list"),
        (zeros(0, 8, 9, 3), zeros(3, 3, 3, 4), None, {}, "x is empty"),
        (zeros(2, 8, 9, 3), zeros(3, 3, 3, 4), None, {"stride": 0}, "stride must be at least 1, got 0"),
        (zeros(2, 8, 9, 3), zeros(3, 3, 3, 4), None, {"stride": 1.5}, "stride must be a whole number"),
        (zeros(2, 8, 9, 3), zeros(3, 3, 3, 4), None, {"padding": -1}, "padding must not be negative"),
        (zeros(2, 8, 9, 3), zeros(3, 3, 3, 4), None, {"padding": (1, 1)}, "padding must be a whole number, "),
        (zeros(2, 8, 9, 3), zeros(3, 3, 3, 4), None, {"padding": "valid"}, "'same', got 'valid'"),
    ],
)
def test_bad_input(x, w, b, how, message):
    pattern = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(MbnpError, match=pattern.replace(r"\ ", " ")) as error:
        conv.forward(x, w, b, **how)
    assert "\n" not in str(error.value)


def test_backward_wants_the_gradient_of_its_output():
    with pytest.raises(MbnpError, match=r"dy must have the shape \(2, 8, 9, 4\), got \(2, 6, 7, 4\)"):
        conv.backward(zeros(2, 6, 7, 4), zeros(2, 8, 9, 3), zeros(3, 3, 3, 4), padding=1)
