"""Networks that are dropped free their memory at once, without Python's collector; used ones take no more and more."""

import gc
import weakref

import numpy as np
import psutil
import pytest

from mbnp import fused, models, optim, train
from tests.tally import NIGHTLY, tally


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


def test_memory_is_flat_over_steps_and_shapes():
    """2,000 training steps, and 200 shapes of images in training and inference; the largest shapes come first."""
    net, rng = fused.convert(models.create("mobilenet-v1-cifar", width_mult=0.25)), np.random.default_rng(0)
    opt = optim.SGD(net.parameters(), lr=0.01)
    steps, shapes = (2000, 200) if NIGHTLY else (200, 32)
    images = rng.normal(size=(8, 64, 64, 3)).astype(np.float32)

    def after(n, height, width):
        train.step(net, opt, images[:n, :height, :width], np.arange(n))
        return psutil.Process().memory_info().rss

    by_steps = [after(8, 32, 32) for _ in range(steps)]
    by_shapes = []
    for k in range(shapes):
        shape = 8 - k % 8, 64 - k // 8, 64 - k % 7
        net.forward(images[: shape[0], : shape[1], : shape[2]])
        by_shapes.append(after(*shape))
    more = [(max(sizes[-16:]) - max(sizes[:16])) >> 10 for sizes in (by_steps, by_shapes)]
    tally("memory, in kB", steps=steps, more_at_the_end=more[0], shapes=shapes, more_after_the_last=more[1])
    assert more[0] < 4000, f"{more[0]} kB"
    assert more[1] < 16000, f"{more[1]} kB"
