import numpy as np
import pytest

from mbnp import MbnpError
from mbnp.layers import Dropout
from mbnp.ops import dropout
from tests import oracle


def test_agrees_with_torch():
    mask = dropout.draw((4, 5, 3, 7), 0.4, np.random.default_rng(1))

    oracle.check(
        lambda x: dropout.forward(x, mask.astype(x.dtype)),
        lambda dy, x: dropout.backward(dy, mask.astype(x.dtype)),
        lambda x: x * x.new_tensor(mask),
        mask.shape,
    )


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.9])
def test_a_mask_drops_its_share_and_scales_the_rest(rate):
    mask = dropout.draw((200, 500), rate, np.random.default_rng(0))
    assert set(np.unique(mask)) == {np.float32(1 / (1 - rate))} | ({np.float32(0)} if rate else set())
    assert np.mean(mask == 0) == pytest.approx(rate, abs=0.005)
    assert mask.mean() == pytest.approx(1, abs=0.02)


def test_both_types_drop_the_same():
    single, double = (dropout.draw((40, 50), 0.5, np.random.default_rng(3), t) for t in (np.float32, np.float64))
    assert double.dtype == np.float64
    np.testing.assert_array_equal(single, double)


def test_a_layer_drops_in_training_only_and_others_each_time():
    x = np.ones((8, 64), np.float32)
    layer, same = Dropout(0.5, seed=4), Dropout(0.5, seed=4)
    assert layer.forward(x) is x
    first, second = layer.forward(x, train=True), layer.forward(x, train=True)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(layer.backward(x), second)  # x is ones: the mask itself
    np.testing.assert_array_equal(same.forward(x, train=True), first)
    with pytest.raises(MbnpError, match="forward"):
        layer.backward(x)


@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan")])
def test_bad_rates(rate):
    with pytest.raises(MbnpError, match="rate must be at least 0 and below 1"):
        dropout.draw((2,), rate, np.random.default_rng(0))
