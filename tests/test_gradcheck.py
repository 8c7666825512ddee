import numpy as np
import pytest

from mbnp import MbnpError, gradcheck

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
    assert len(calls) == 1 + 2 * 7


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
