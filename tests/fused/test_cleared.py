"""Gradients that were cleared: what is added first takes their place, whoever adds it and whatever happens."""

import copy

import numpy as np
import pytest

from mbnp import fused, models, optim
from mbnp.layers import BatchNorm, Conv, GlobalAveragePool, Linear, Pointwise, ReLU
from mbnp.network import Network
from mbnp.parameter import Parameter
from tests.twins import assert_gradients, batch, gradients, relative


class Own(Pointwise):
    """A layer that the engine does not know."""

    stops = False

    def backward(self, dy):
        if self.stops:
            raise RuntimeError("it stops")
        return super().backward(dy)


def build(first, second, shared):
    layers = {
        "stem": Conv(3, 8, 3, padding=1, dtype=np.float64),
        "bn": BatchNorm(8, dtype=np.float64),
        "relu": ReLU(),
        "a": first(8, 8, dtype=np.float64),
        "relu2": ReLU(),
        "b": second(8, 8, dtype=np.float64),
        "pool": GlobalAveragePool(),
        "fc": Linear(8, 10, dtype=np.float64),
    }
    if shared:
        layers["b"].weight = layers["a"].weight
    return Network(layers, resolution=8)


def pair(first, second, shared):
    reference = build(first, second, shared)
    return fused.convert(copy.deepcopy(reference)), reference


def go(net, seed):
    x, _ = batch(4, 8, np.float64, seed=seed)
    y = net.forward(x, train=True)
    net.backward(np.random.default_rng(seed).standard_normal(y.shape))


def clear(net):
    for p in net.parameters().values():
        p.clear_grad()


def same(fast, reference):
    assert_gradients(gradients(fast), gradients(reference), 1e-10)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kinds", [(Pointwise, Pointwise), (Own, Pointwise), (Pointwise, Own), (Own, Own)])
def test_gradients_are_those_of_the_reference_step_after_step(kinds, shared):
    fast, reference = pair(*kinds, shared)
    for seed in range(6):
        if seed not in (2, 4):  # twice without: they add up
            clear(fast)
            clear(reference)
        if seed == 5:  # some were cleared, and some were not
            for net in (fast, reference):
                for p in list(net.parameters().values())[::2]:
                    p.grad += 1
        go(fast, seed)
        go(reference, seed)
        same(fast, reference)


def test_timed_steps_make_the_same_gradients():
    fast, reference = pair(Pointwise, Pointwise, False)
    for seed in range(2):
        for net in (fast, reference):
            clear(net)
        with fast.timed():
            go(fast, seed)
        go(reference, seed)
        same(fast, reference)


def test_what_backward_did_not_reach_is_zero():
    net = build(Pointwise, Own, False)
    fast = fused.convert(net)
    go(fast, 0)
    clear(fast)
    Own.stops = True
    try:
        with pytest.raises(RuntimeError, match="it stops"):
            go(fast, 1)
    finally:
        Own.stops = False
    found = gradients(fast)
    assert np.any(found["fc.weight"])
    for name in ("stem.weight", "bn.weight", "a.weight", "b.weight"):
        assert not np.any(found[name]), name


def test_what_is_frozen_between_forward_and_backward_keeps_its_gradient():
    fast = fused.convert(build(Pointwise, Pointwise, False))
    go(fast, 0)
    before = {name: gradient.copy() for name, gradient in gradients(fast).items()}
    y = fast.forward(batch(4, 8, np.float64)[0], train=True)
    for p in fast.parameters().values():
        p.frozen = True
    fast.backward(np.ones_like(y))
    for name, gradient in gradients(fast).items():
        np.testing.assert_array_equal(gradient, before[name], err_msg=name)


@pytest.mark.parametrize("there_and_back", [False, True])
def test_a_network_of_another_type_is_planned_again(there_and_back):
    nets = [models.mobilenet_v1_small(width_mult=0.25) for _ in range(2)]
    fast = fused.convert(nets[0])
    x, _ = batch(3, 32, np.float32)
    fast.backward(fast.forward(x, train=True))
    nets[1].load_state(nets[0].state())
    dtype = np.float32 if there_and_back else np.float64
    for net in nets:
        for kind in (np.float64, dtype):
            for variable in net.variables().values():
                variable.cast(kind)
    expected = nets[1].forward(x.astype(dtype), train=True)
    found = fast.forward(x.astype(dtype), train=True)
    assert found.dtype == dtype
    assert relative(found, expected) < 1e-4
    fast.backward(np.ones_like(found))
    nets[1].backward(np.ones_like(expected))
    assert relative(gradients(fast)["fc.weight"], gradients(nets[1])["fc.weight"]) < 1e-4
    optim.SGD(fast.parameters(), lr=1.0).step()
    assert relative(fast.forward(x.astype(dtype), train=True), found) > 1e-3


# ---- a parameter by itself -----------------------------------------------------------------------------------


def cleared():
    p = Parameter(np.ones(2))
    p.add_grad(np.ones(2))
    p.clear_grad()
    return p


def test_a_cleared_gradient_is_zero_and_added_to():
    p = cleared()
    assert p.grad.tolist() == [0, 0]
    p = cleared()
    p.add_grad(np.array([2.0, 3.0]))
    p.add_grad(np.array([2.0, 3.0]))
    assert p.grad.tolist() == [4, 6]
    p = cleared()
    p.grad += 1
    assert p.grad.tolist() == [1, 1]


def test_a_gradient_that_is_assigned_is_not_cleared_any_more():
    for held in (True, False):
        p = cleared()
        array = p.take_grad() if held else np.zeros(2)
        p.clear_grad()
        array[...] = 7
        p.grad = array
        assert p.grad.tolist() == [7, 7]


def test_a_gradient_that_does_not_fit_leaves_it_cleared():
    p = cleared()
    with pytest.raises(ValueError, match="broadcast"):
        p.add_grad(np.ones(3))
    assert p.grad.tolist() == [0, 0]


def test_a_parameter_that_was_pickled_before_it_could_be_cleared():
    p = Parameter(np.ones(2))
    vars(p).pop("_cleared", None)
    assert p.grad.tolist() == [0, 0]
