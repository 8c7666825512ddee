"""Networks that are dropped free their memory at once, without Python's collector of cycles."""

import gc
import weakref

import numpy as np
import psutil
import pytest

from mbnp import fused, models, optim, train


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def converted_and_trained(readable=False):
    net = models.create("resnet20", num_classes=3, width_mult=0.5)
    run = net if readable else fused.convert(net)
    opt = optim.SGD(net.parameters(), lr=0.1)
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    train.step(run, opt, images, np.array([0, 1, 2, 0]))
    run.forward(images)
    run.forward(images, train=True)  # and not backward: what was kept for it goes, too
    return [weakref.ref(each) for each in (net, run, opt)]


@pytest.mark.parametrize("readable", [False, True])
def test_nothing_is_left_of_a_network(readable, no_collector):
    converted_and_trained(readable)  # compiling leaves cycles of its own
    gc.collect()
    assert [found() for found in converted_and_trained(readable)] == [None] * 3
    assert gc.collect() < 200


def test_a_loop_that_converts_trains_and_drops_does_not_grow(no_collector):
    converted_and_trained()
    gc.collect()
    before = psutil.Process().memory_info().rss
    for _ in range(5):
        converted_and_trained()
    assert (
        psutil.Process().memory_info().rss - before < 20e6
    )  # with a reference to itself each would leave 11 million bytes
