"""Copies and pickles of a converted network are networks of their own: they share nothing and answer nothing stale."""

import copy
import pickle

import numpy as np
import pytest

from mbnp import fused, models, optim, train
from tests.twins import batch, gradients, relative, vary

COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "deepcopy of both": lambda net: copy.deepcopy({"net": net, "reference": net.reference})["net"],
}


def build(name="mobilenet-v1-small", dtype=np.float64):
    return fused.convert(vary(models.create(name, width_mult=0.25, dtype=dtype)))


def steps(net, count=3):
    """Train on a batch of its own, and return the losses."""
    opt = optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    return [train.step(net, opt, *batch(4, 32, np.float64, seed=seed)) for seed in range(count)]


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ["mobilenet-v1-small", "resnet20"])
def test_a_copy_trains_alone_as_the_original_would(name, how, used):
    original = build(name)
    x, _ = batch(3, 32, np.float64)
    if used:
        original(x)
        original.backward(original.forward(x, train=True))
    made = COPIES[how](original)
    assert isinstance(made, fused.FusedNetwork)
    assert made.reference is not original.reference
    assert made.report() == original.report()
    np.testing.assert_array_equal(made(x), original(x))
    for variable, other in zip(made.variables().values(), original.variables().values(), strict=True):
        assert not np.shares_memory(variable.value, other.value)
    before, answer = original.state(), original(x)
    kept = {key: gradient.copy() for key, gradient in gradients(original).items()}
    losses = steps(made)
    assert relative(made(x), answer) > 1e-6
    np.testing.assert_array_equal(original(x), answer)
    for key, array in original.state().items():
        np.testing.assert_array_equal(array, before[key], err_msg=key)
        if key in kept:
            np.testing.assert_array_equal(gradients(original)[key], kept[key], err_msg=key)
    assert steps(original) == losses
    for key, array in original.state().items():
        np.testing.assert_array_equal(array, made.state()[key], err_msg=key)


def test_a_copy_keeps_what_describes_it_and_what_is_frozen():
    original = build()
    original.classes = list("abcdefghij")
    original.freeze_until("conv2_3")
    original.needs_dx = True
    for make in COPIES.values():
        made = make(original)
        assert made.classes == original.classes
        assert made.arch == original.arch
        assert made.needs_dx
        frozen = [name for name, p in made.parameters().items() if p.frozen]
        assert frozen == [name for name, p in original.parameters().items() if p.frozen]
        made.classes[0] = "z"
        assert original.classes[0] == "a"


def test_a_copy_made_between_forward_and_backward_leaves_backward_to_the_original():
    original, x = build(), batch(3, 32, np.float64)[0]
    original.backward(original.forward(x, train=True))
    expected = {name: gradient.copy() for name, gradient in gradients(original).items()}
    original.load_state(build().state())
    for parameter in original.parameters().values():
        parameter.grad[...] = 0
    dy = original.forward(x, train=True)
    made = copy.deepcopy(original)
    made.backward(made.forward(2 * x, train=True))
    original.backward(dy)
    for name, gradient in gradients(original).items():
        np.testing.assert_array_equal(gradient, expected[name], err_msg=name)


@pytest.mark.parametrize("how", COPIES)
def test_a_used_copy_is_never_stale(how):
    """After new weights come into either, both answer with what they have now."""
    original, x = build(), batch(3, 32, np.float64)[0]
    original(x)
    made = COPIES[how](original)
    made(x)
    for net in (made, original):
        for change in range(3):
            before = net(x)
            if change == 0:
                net.load_state({name: 1.1 * array for name, array in net.state().items()})
            elif change == 1:
                net.parameters()["conv2_1.0.weight"].value[...] *= 2
                net.touch()
            else:
                net.forward(x, train=True)
            assert relative(net(x), before) > 1e-6
            for each in (made, original):
                assert relative(each(x), each.reference(x)) < 1e-10


def test_a_shallow_copy_shares_the_network():
    """As `copy.copy` of a reference network does: parameters are the same, what is computed in is not."""
    original, x = build(), batch(3, 32, np.float64)[0]
    made = copy.copy(original)
    assert isinstance(made, fused.FusedNetwork)
    assert made.parameters()["fc.weight"] is original.parameters()["fc.weight"]
    dy = original.forward(x, train=True)
    made.forward(2 * x, train=True)
    original.backward(dy)
    found = {name: gradient.copy() for name, gradient in gradients(original).items()}
    for parameter in original.parameters().values():
        parameter.grad[...] = 0
    original.backward(original.forward(x, train=True))
    for name, gradient in gradients(original).items():
        assert relative(found[name], gradient) < 1e-9, name
    steps(made, 1)
    assert relative(original(x), original.reference(x)) < 1e-10


def test_an_average_of_the_weights_is_kept_in_a_copy():
    """An exponential moving average: the copy is written to after each step, in two ways, and asked in between."""
    net = build()
    average = copy.deepcopy(net)
    opt = optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    x, _ = batch(5, 32, np.float64, seed=9)
    expected = net.state()
    for seed in range(4):
        train.step(net, opt, *batch(4, 32, np.float64, seed=seed))
        now = net.state()
        expected = {name: 0.9 * array + 0.1 * now[name] for name, array in expected.items()}
        if seed % 2:
            average.load_state(expected)
        else:
            for name, variable in average.variables().items():
                variable.value = 0.9 * variable.value + 0.1 * now[name]
        fresh = build()
        fresh.load_state(expected)
        assert relative(average(x), fresh.reference(x)) < 1e-10
        assert relative(net(x), net.reference(x)) < 1e-10
        assert relative(net(x), average(x)) > 1e-6
