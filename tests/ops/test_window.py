import pytest

from mbnp import MbnpError
from mbnp.ops import window


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        (32, 3, 1, (1, 1)),
        (32, 3, 2, (0, 1)),
        (33, 3, 2, (1, 1)),
        (7, 1, 2, (0, 0)),
        (5, 2, 1, (0, 1)),
        (1, 3, 2, (1, 1)),
    ],
)
def test_same_padding_is_tensorflows(size, kernel, stride, padding):
    assert window.same_padding(size, kernel, stride) == padding
    (out, _) = window.output_size((size, size), (kernel, kernel), (stride, stride), (padding, padding))
    assert out == -(-size // stride)


def test_padding_may_be_given_four_ways():
    def resolved(padding):
        return window.explicit_padding(padding, (6, 7), (3, 3), (2, 2))

    assert resolved(2) == ((2, 2), (2, 2))
    assert resolved(((0, 1), (2, 3))) == ((0, 1), (2, 3))
    assert resolved([[0, 1], [2, 3]]) == ((0, 1), (2, 3))
    assert resolved("same") == ((0, 1), (1, 1))


@pytest.mark.parametrize("padding", [(1, 1), "valid", 1.5, ((1, 2, 3), (1, 2, 3)), None, ((1.5, 1), (1, 1))])
def test_other_padding_is_refused(padding):
    with pytest.raises(MbnpError, match="padding must be a whole number"):
        window.explicit_padding(padding, (6, 7), (3, 3), (2, 2))
