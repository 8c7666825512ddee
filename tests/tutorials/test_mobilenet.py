"""MobileNet in one file: short, on NumPy alone, and the same function, gradients and steps as the package's."""

import ast
import dataclasses
import importlib.util

import numpy as np
import pytest

from mbnp import datasets, models, optim
from mbnp.datasets import shapes10
from mbnp.ops import softmax_cross_entropy
from tests.tutorials.helpers import TUTORIALS

FILE = TUTORIALS / "mobilenet.py"
ARRAYS = {"w": "0.weight", "gamma": "1.weight", "beta": "1.bias", "mean": "1.running_mean", "var": "1.running_var"}


@pytest.fixture(scope="module")
def mobilenet():
    spec = importlib.util.spec_from_file_location("mobilenet", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def theirs(name):
    """Return the package's name of an array: `block3.pointwise.w` is `conv2_3.3.weight`."""
    layer, array = name.rsplit(".", 1)
    if layer == "classes":
        return {"w": "fc.weight", "b": "fc.bias"}[array]
    block, _, kind = layer.partition(".")
    index, what = ARRAYS[array].split(".")
    block = block.replace("block", "conv2_").replace("stem", "conv1")
    return f"{block}.{int(index) + 3 * (kind == 'pointwise')}.{what}"


@pytest.fixture
def twins(mobilenet):
    """Return (the package's network, ours) with the same weights and statistics, in float64."""
    rng = np.random.default_rng(1)
    reference = models.mobilenet_v1_small(dtype=np.float64)
    for name, variable in reference.variables().items():
        if "running" in name or ".1." in name or ".4." in name:  # no channel is like another
            variable.value = rng.uniform(0.5, 1.5, variable.value.shape)
    reference["conv1"]["0"].bias.value = np.zeros(32)  # BatchNorm removes it; ours has none
    net = mobilenet.create(dtype=np.float64)
    state = reference.state()
    assert {theirs(name) for name in net} == set(state) - {"conv1.0.bias"}
    return reference, {name: state[theirs(name)] for name in net}


def images(count=4):
    return np.random.default_rng(2).standard_normal((count, 32, 32, 3))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_it_is_short_and_needs_numpy_alone():
    text = FILE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] == ["import numpy as np", "from mbnp.datasets import shapes10"]
    assert "(mobilenet.py)" in (TUTORIALS / "README.md").read_text(encoding="utf-8")


def test_same_inference(mobilenet, twins):
    reference, net = twins
    close(mobilenet.forward(net, images())[0], reference.forward(images()))


def test_same_training_forward_loss_gradients_and_statistics(mobilenet, twins):
    reference, net = twins
    reference.needs_dx = True
    labels = np.array([3, 1, 4, 1])
    scores, back = mobilenet.forward(net, images(), train=True)
    logits = reference.forward(images(), train=True)
    close(scores, logits)
    loss, dscores = mobilenet.cross_entropy(scores, labels)
    close(loss, softmax_cross_entropy.forward(logits, labels))
    dx, gradients = back(dscores)
    close(dx, reference.backward(softmax_cross_entropy.backward(logits, labels)))
    parameters = reference.parameters()
    assert {theirs(name) for name in gradients} == set(parameters) - {"conv1.0.bias"}
    for name, gradient in gradients.items():
        close(gradient, parameters[theirs(name)].grad)
    for name, buffer in reference.buffers().items():
        close(next(array for ours, array in net.items() if theirs(ours) == name), buffer.value)


def test_same_steps(mobilenet, twins):
    reference, net = twins
    labels, velocity = np.array([3, 1, 4, 1]), {}
    opt = optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for rate in (0.1, 0.05, 0.02):
        opt.set(lr=rate)
        opt.zero_grad()
        logits = reference.forward(images(), train=True)
        reference.backward(softmax_cross_entropy.backward(logits, labels))
        opt.step()
        close(mobilenet.step(net, velocity, images(), labels, rate), softmax_cross_entropy.forward(logits, labels))
    state = reference.state()
    for name, array in net.items():
        np.testing.assert_allclose(array, state[theirs(name)], rtol=1e-6, atol=1e-8)


def test_it_trains_and_stays_in_float32(mobilenet):
    drawn, reports = shapes10.make(train=32, test=8), []
    splits = [datasets.Split(s.images[:, 8:24, 8:24], s.labels) for s in (drawn.train, drawn.test)]
    data = dataclasses.replace(drawn, train=splits[0], test=splits[1])
    net = mobilenet.create()
    mobilenet.train(net, data, epochs=2, batch=16, report=reports.append)
    assert ["test accuracy" in line for line in reports] == [True, True]
    x, velocity = mobilenet.normalise(data.train.images, data), {}
    losses = [mobilenet.step(net, velocity, x, data.train.labels, rate=0.05) for _ in range(12)]
    assert losses[-1] < losses[0] / 2, "it does not even memorise 32 images"
    assert {array.dtype for array in net.values()} == {np.dtype(np.float32)}
