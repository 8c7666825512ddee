import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mbnp import MbnpError, backend
from mbnp.ops import softmax_cross_entropy
from tests import oracle


def check(logits, labels, label_smoothing=0.0, **options):
    def forward(z, labels):
        return softmax_cross_entropy.forward(z, labels, label_smoothing)

    def backward(dy, z, labels):
        # The operation ends a network, so its own upstream gradient is 1: the oracle's factor goes in here.
        return softmax_cross_entropy.backward(z, labels, label_smoothing) * dy, None

    def reference(z, labels):
        return F.cross_entropy(z, labels, label_smoothing=label_smoothing)

    oracle.check(forward, backward, reference, logits, labels, **options)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("N", "D"), [(5, 10), (1, 2), (7, 3), (3, 1)])
def test_agrees_with_torch(N, D, label_smoothing):
    check((N, D), np.random.default_rng(1).integers(0, D, N), label_smoothing)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_large_logits_do_not_overflow(label_smoothing):
    z = np.array([[1e4, -1e4, 0], [-1e4, 3e4, 3e4], [-1e30, 0, 1]])
    check(z, np.array([1, 2, 1]), label_smoothing, finite=False)


def test_an_impossible_class_costs_nothing_unless_it_is_right():
    check(np.array([[0.0, -np.inf, 1]]), np.array([2]), finite=False)


def test_nan_shows_in_its_row():
    for place in range(3):
        z = np.zeros((2, 3))
        z[1, place] = np.nan
        check(z, np.array([0, 1]), finite=False)


def test_what_all_scores_have_in_common_makes_no_difference():
    """Exactly, by every backend: nothing may be subtracted from it but itself."""
    for name in backend.BACKENDS:
        with backend.use(name):
            loss = softmax_cross_entropy.forward(np.full((6, 5), 1e16), np.arange(6) % 5, 0.1)
        assert loss == pytest.approx(np.log(5), rel=1e-14), name


def test_softmax():
    z = np.random.default_rng(0).standard_normal((4, 7)) * 100
    oracle.close(softmax_cross_entropy.softmax(z), torch.softmax(torch.from_numpy(z), 1).numpy(), 1e-12, "prob")
    assert softmax_cross_entropy.softmax(z.astype(np.float32)).dtype == np.float32


def test_bad_input():
    z = np.zeros((3, 10), np.float32)
    with pytest.raises(MbnpError, match="labels must be 0 to 9 for 10 classes, got 10 at position 1"):
        softmax_cross_entropy.forward(z, np.array([0, 10, 2]))
    with pytest.raises(MbnpError, match="got -1 at position 2"):
        softmax_cross_entropy.backward(z, np.array([0, 1, -1]))
    with pytest.raises(MbnpError, match="labels must be whole numbers, got float64"):
        softmax_cross_entropy.forward(z, np.zeros(3))
    with pytest.raises(MbnpError, match=r"labels must have the shape \(3,\), got \(2,\)"):
        softmax_cross_entropy.forward(z, np.array([0, 1]))
    with pytest.raises(MbnpError, match=r"label_smoothing must be from 0 to 1, got 1\.5"):
        softmax_cross_entropy.forward(z, np.array([0, 1, 2]), 1.5)
