import numpy as np
import pytest

from mbnp import MbnpError, gradcheck
from mbnp.layers import BatchNorm, Conv, GlobalAveragePool, Layer, Network, Parameter, ReLU, Sequential

X, W = np.random.default_rng(0).standard_normal((4, 3)), np.random.default_rng(1).standard_normal((3, 2))


def forward(x, w):
    return np.tanh(x @ w)


def backward(dy, x, w):
    dz = dy * (1 - np.tanh(x @ w) ** 2)
    return dz @ w.T, x.T @ dz


def test_a_right_gradient_passes():
    before = X.copy(), W.copy()
    errors = gradcheck.compare(forward, backward, [X, W])
    assert len(errors) == 2
    assert 0 < max(errors) < 1e-8
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(W, before[1])


def test_float32_inputs_are_checked_in_float64():
    assert max(gradcheck.compare(forward, backward, [X.astype(np.float32), W.astype(np.float32)])) < 1e-8


def test_a_wrong_entry_is_named():
    def wrong(dy, x, w):
        dx, dw = backward(dy, x, w)
        dw[2, 1] *= 1.01
        return dx, dw

    with pytest.raises(MbnpError, match=r"gradient of input 1 is wrong at \(2, 1\): backward says"):
        gradcheck.compare(forward, wrong, [X, W])


def test_a_forgotten_mean_is_seen():
    """The gradient that ones would not have caught: dy = 1 has nothing to subtract."""

    def centre(x):
        return x - x.mean(axis=0)

    gradcheck.compare(centre, lambda dy, x: dy - dy.mean(axis=0), [X])
    with pytest.raises(MbnpError, match="gradient of input 0 is wrong"):
        gradcheck.compare(centre, lambda dy, x: dy, [X])


def test_nan_is_an_error():
    with pytest.raises(MbnpError, match="backward says nan"):
        gradcheck.compare(forward, lambda dy, x, w: (np.full(x.shape, np.nan), None), [X, W])


def test_none_skips_an_input():
    labels = np.array([0, 2, 1])

    def pick(x, labels):
        return x[labels]

    def pick_backward(dy, x, labels):
        dx = np.zeros_like(x)
        np.add.at(dx, labels, dy)
        return dx, None

    first, second = gradcheck.compare(pick, pick_backward, [X, labels])
    assert first < 1e-8
    assert second is None


def test_numbers_and_single_inputs():
    assert gradcheck.compare(lambda x: np.sum(x**3), lambda dy, x: dy * 3 * x**2, [X])[0] < 1e-8


def test_a_gradient_of_zero_passes():
    """Where nothing moves, rounding is all there is: it must not count as an error of 100 %."""
    assert gradcheck.compare(lambda x: 0 * x + 1e3, lambda dy, x: np.zeros_like(x), [X])[0] == 0
    gradcheck.compare(lambda x: (x + 1e3) - x, lambda dy, x: np.zeros_like(x), [X])


def test_large_inputs_are_sampled():
    calls = []

    def count(x):
        calls.append(1)
        return x**2

    gradcheck.compare(count, lambda dy, x: 2 * x * dy, [np.ones((50, 50))], entries=7)
    assert len(calls) == 2 + 2 * 7


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda dy, x, w: dy, "1 gradients for 2 inputs"),
        (
            lambda dy, x, w: (dy @ w.T, (x.T @ dy).T),
            r"gradient of input 1 has the shape \(2, 3\), the input \(3, 2\)",
        ),
    ],
)
def test_a_misshapen_answer_is_an_error(wrong, message):
    with pytest.raises(MbnpError, match=message):
        gradcheck.compare(lambda x, w: x @ w, wrong, [X, W])


@pytest.mark.parametrize(
    ("wrong", "inputs", "message"),
    [
        (lambda dy, x: None, [X], "backward returned None: is its return missing"),
        (lambda dy, x: dy, [np.ones((2, 2), np.int64)], "input 0 is int64, which has no gradient"),
        (lambda dy, x: dy, 3, "inputs must be a list of arrays, got int"),
    ],
)
def test_what_cannot_be_checked(wrong, inputs, message):
    with pytest.raises(MbnpError, match=message):
        gradcheck.compare(lambda x: x * 1.0, wrong, inputs)


def write(x):
    x *= 2
    return x


@pytest.mark.parametrize(
    ("forward", "backward", "message"),
    [
        (np.tanh, lambda dy, x: (None,), "None for every input: there is nothing to compare"),
        (np.tanh, lambda dy, x: {"x": dy}, "the gradient of input 0 must be an array of numbers, got dict"),
        (np.tanh, lambda dy, x: write(dy), "backward writes into dy"),
        (write, lambda dy, x: 2 * dy, "forward writes into input 0"),
        (lambda x: (x, x), lambda dy, x: dy, "forward must return an array of numbers, got a tuple of 2"),
        (lambda x: x.astype(np.float32), lambda dy, x: dy, "forward gives float32: finite differences need float64"),
        (lambda x: x.astype(np.float16), lambda dy, x: dy, "forward gives float16: finite differences need float64"),
        (lambda x: x.astype(int), lambda dy, x: dy, "forward gives int64: finite differences need float64"),
        (lambda x: x > 0, lambda dy, x: dy, "forward gives bool: finite differences need float64"),
        (lambda x: x + np.random.default_rng().random(), lambda dy, x: dy, "forward gives other numbers each time"),
        (lambda x: x / 0 if x[0, 0] else x, lambda dy, x: dy, r"forward returns -?inf at \(0, 0\)"),
        (lambda x: x[x != X.max()], lambda dy, x: 0 * x, r"forward returned the shape .* and then"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_is_no_operation(forward, backward, message):
    with pytest.raises(MbnpError, match=message):
        gradcheck.compare(forward, backward, [X.copy()])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "a list of 0"),
        (["x"], "input 0 .* <U1"),
        ([[[1], [1, 2]]], "input 0"),
        ([np.ones((0, 3))], "holds no numbers"),
    ],
)
def test_inputs_that_are_none(inputs, message):
    with pytest.raises(MbnpError, match=message):
        gradcheck.compare(np.tanh, lambda dy, x: dy, inputs)


def test_a_forward_may_use_its_array_again():
    y = np.empty_like(X)
    assert gradcheck.compare(lambda x: np.tanh(x, out=y), lambda dy, x: dy * (1 - np.tanh(x) ** 2), [X])[0] < 1e-8


@pytest.mark.parametrize("value", [None, "y", [None, None]])
def test_a_forward_without_numbers(value):
    with pytest.raises(MbnpError, match="forward must return an array of numbers"):
        gradcheck.compare(lambda x: value, lambda dy, x: dy, [X])


# -- layers --


def test_a_layer_is_checked_with_its_parameters():
    layer = BatchNorm(3)
    before = layer.state()
    x = np.random.default_rng(0).standard_normal((4, 2, 2, 3)).astype(np.float32)
    errors = gradcheck.layer(layer, x)
    assert list(errors) == ["dx", "weight", "bias"]
    assert 0 < max(errors.values()) < 1e-7
    assert str(errors).splitlines()[2].split()[0] == "dx"
    for name, array in layer.state().items():  # a copy ran
        np.testing.assert_array_equal(array, before[name])
    assert not layer.weight.grad.any()
    layer.weight.frozen = True
    assert list(gradcheck.layer(layer, x)) == ["dx", "bias"]


def test_containers_and_networks_are_layers():
    body = Sequential({"conv": Conv(3, 4, 3, 2, padding=1), "relu": ReLU()})
    x = np.random.default_rng(0).standard_normal((2, 5, 4, 3))
    assert list(gradcheck.layer(body, x)) == ["dx", "conv.weight", "conv.bias"]
    net = Network({"body": body, "pool": GlobalAveragePool()}, resolution=5)
    errors = gradcheck.layer(net, x)
    assert list(errors) == ["dx", "body.conv.weight", "body.conv.bias"]
    assert max(errors.values()) < 1e-7


class Scale(Layer):
    """y = x * weight, wrong in what `mistake` says."""

    def __init__(self, mistake):
        self.weight, self.mistake = Parameter(np.array([0.5, 2, -1], np.float32)), mistake

    def forward(self, x, train=False):
        self.x = x if train else None
        return x * self.weight.value

    def backward(self, dy):
        x = self.pop_saved("x")
        if self.mistake != "no gradient":
            self.weight.add_grad((dy * x).sum((0, 1, 2)))
        return {"": dy * self.weight.value, "dx": dy, "shape": dy[0]}.get(self.mistake, dy * self.weight.value)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("dx", r"the gradient of x is wrong at \(\d, \d, \d, \d\): backward says .* finite differences say"),
        ("no gradient", r"the gradient of weight is wrong at \(\d,\): backward says 0, finite differences say"),
        ("shape", r"the gradient of x has the shape \(4, 5, 3\), the input \(2, 4, 5, 3\)"),
    ],
)
def test_a_layer_that_is_wrong(mistake, message):
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 3))
    assert max(gradcheck.layer(Scale(""), x).values()) < 1e-8
    with pytest.raises(MbnpError, match=message):
        gradcheck.layer(Scale(mistake), x)


def test_what_is_no_layer():
    with pytest.raises(MbnpError, match=r"gradcheck.layer takes a layer of mbnp, got function"):
        gradcheck.layer(forward, X)
    with pytest.raises(MbnpError, match=r"x must be float32 or float64, got int64"):
        gradcheck.layer(ReLU(), np.ones((1, 2, 2, 3), np.int64))
