"""The two seams of a training step: a loss of one's own, and a call when the gradients are there."""

import types

import numpy as np
import pytest

from mbnp import MbnpError, backend, fused, models, optim, train
from mbnp.layers import Dropout, GlobalAveragePool, Linear, Network
from mbnp.ops import softmax_cross_entropy as cross_entropy
from tests.twins import batch

squared = types.SimpleNamespace(forward=lambda z, y: np.sum((z - y) ** 2), backward=lambda z, y: 2 * (z - y))


def network(engine: str, seed: int = 0):
    net = models.mobilenet_v1_small(num_classes=10, width_mult=0.1, seed=seed, dtype=np.float64)
    return fused.convert(net) if engine == "fused" else net


def gradients_and_loss(net, loss, y, **options):
    """What one step of SGD with lr 1 does: the gradients are what it moves the weights by."""
    before = {name: p.value.copy() for name, p in net.parameters().items()}
    x, _ = batch(4, 32, np.float64)
    value = train.step(net, optim.SGD(net.parameters(), lr=1), x, y, loss=loss, **options)
    return {name: before[name] - p.value for name, p in net.parameters().items()}, value


@pytest.mark.parametrize("engine", ["reference", "fused"])
def test_a_loss_of_ones_own(engine):
    y = np.random.default_rng(1).standard_normal((4, 10))
    moved, value = gradients_and_loss(network(engine), squared, y)
    net = network("reference")
    x, _ = batch(4, 32, np.float64)
    with backend.use("numpy"):
        z = net.forward(x, train=True)
        net.backward(2 * (z - y))
    assert value == pytest.approx(((z - y) ** 2).sum(), rel=1e-10)
    largest = max(np.abs(p.grad).max() for p in net.parameters().values())
    for name, p in net.parameters().items():
        np.testing.assert_allclose(moved[name], p.grad, rtol=0, atol=1e-10 * largest, err_msg=name)


def test_the_module_of_an_operation_is_a_loss():
    y = np.array([0, 1, 2, 3])
    by_default, loss = gradients_and_loss(network("reference"), None, y)
    given, same = gradients_and_loss(network("reference"), cross_entropy, y)
    assert loss == same
    for name, moved in given.items():
        np.testing.assert_array_equal(moved, by_default[name])


def test_label_smoothing_beside_a_loss_is_refused():
    net = network("reference")
    before = net.state()
    with pytest.raises(MbnpError, match=r"label_smoothing=0\.1 .* leave it out beside loss="):
        gradients_and_loss(net, squared, np.zeros((4, 10)), label_smoothing=0.1)
    for name, array in net.state().items():
        np.testing.assert_array_equal(array, before[name])


def test_an_error_in_a_step_leaves_the_masks_of_dropout_as_they_were():
    net = Network({"pool": GlobalAveragePool(), "drop": Dropout(0.5), "fc": Linear(3, 2)}, 4)
    opt, x = optim.SGD(net.parameters(), 0.1), np.ones((2, 4, 4, 3), np.float32)
    before = net["drop"].generator.bit_generator.state
    with pytest.raises(KeyboardInterrupt):
        train.step(net, opt, x, [0, 1], on_gradients=stop)
    assert net["drop"].generator.bit_generator.state == before
    train.step(net, opt, x, [0, 1])
    assert net["drop"].generator.bit_generator.state != before


def stop(net):
    raise KeyboardInterrupt


def test_a_loss_that_is_not_finite_changes_nothing():
    net = network("fused")
    before = net.state()
    infinite = types.SimpleNamespace(forward=lambda z, y: np.inf, backward=squared.backward)
    with pytest.raises(MbnpError, match="the loss is inf at step 1"):
        gradients_and_loss(net, infinite, np.zeros((4, 10)))
    for name, array in net.state().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("engine", ["reference", "fused"])
def test_on_gradients_is_called_once_between_backward_and_update(engine):
    net, y, calls = network(engine), np.array([0, 1, 2, 3]), []
    before = net.state()

    def halve(given):
        assert given is net
        calls.append({name: p.grad.copy() for name, p in net.parameters().items()})
        for name, p in net.parameters().items():
            np.testing.assert_array_equal(p.value, before[name])
            p.grad *= 0.5

    moved, _ = gradients_and_loss(net, None, y, on_gradients=halve)
    (gradients,) = calls
    assert all(g.any() for name, g in gradients.items() if name != "conv1.0.bias")  # BatchNorm cancels a bias
    for name, gradient in gradients.items():
        np.testing.assert_allclose(moved[name], 0.5 * gradient, rtol=0, atol=1e-15 + 1e-12 * np.abs(gradient).max())
