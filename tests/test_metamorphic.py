"""Whole networks, changed so that it is known without a second network what must come of it, on every engine."""

import itertools

import numpy as np
import pytest

from mbnp import backend, fused, models
from mbnp.layers import BatchNorm, Conv, Depthwise, GlobalAveragePool, Linear, MaxPool, Pad, Pointwise, ReLU, Residual
from mbnp.network import Network
from tests.twins import assert_close, assert_gradients, gradients, vary

CLASSES, SIZE = 7, 33  # strides of 2 divide 33 pixels evenly, and 17, and 9: no pixel is left out at an end
DOUBLE = {"dtype": np.float64}


def odd():
    """One-sided padding, rectangular strides and kernels, biases before BatchNorm, and a branch with weights."""
    made = DOUBLE | {"rng": np.random.default_rng(0)}
    layers = {
        "stem": Conv(3, 12, (4, 2), (1, 2), ((3, 0), (0, 1)), **made),
        "bn": BatchNorm(12, **DOUBLE),
        "relu": ReLU(6),
        "pad": Pad(((0, 2), (0, 0))),
        "pool": MaxPool((3, 2), (2, 1), ((1, 1), (1, 0))),
        "depthwise": Depthwise(12, 5, 1, ((2, 2), (3, 1)), **made),
        "bn2": BatchNorm(12, **DOUBLE),
        "block": Residual(
            [Pointwise(12, 20, **made), BatchNorm(20, **DOUBLE), ReLU()], Pointwise(12, 20, bias=False, **made)
        ),
        "mean": GlobalAveragePool(),
        "fc": Linear(20, CLASSES, **made),
    }
    return Network(layers, resolution=SIZE)


NETWORKS = {
    "mobilenet": lambda: models.mobilenet_v1(CLASSES, 0.125, **DOUBLE),
    "resnet": lambda: models.resnet20(CLASSES, 0.25, **DOUBLE),
    "odd": odd,
}
ENGINES = ["numpy", "numba", "fused"]


def build(name):
    return vary(NETWORKS[name]())


def images(count=4):
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, SIZE, SIZE, 3)), rng.standard_normal((count, CLASSES))


def outcome(net, engine, x, dy):
    """Return all that an engine makes of a network and images: outputs, gradients, statistics."""
    net.needs_dx = True
    made = fused.convert(net) if engine == "fused" else net
    with backend.use("numba" if engine == "fused" else engine):
        found = {"inference": made.forward(x), "training": made.forward(x, train=True)}
        found["dx"] = made.backward(dy)
    return found | gradients(net) | {name: buffer.value for name, buffer in net.buffers().items()}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    assert_gradients(actual, expected, 1e-9)


def layers(net):
    """Yield the layers with weights and their arrays."""
    for name, layer in net.leaves():
        if layer.variables():
            yield name, layer, layer.variables()


def on_every_engine(test):
    return pytest.mark.parametrize("engine", ENGINES)(pytest.mark.parametrize("name", NETWORKS)(test))


@on_every_engine
def test_the_order_of_a_batch_is_the_order_of_its_outputs(name, engine):
    (x, dy), order = images(), [2, 0, 3, 1]
    expected = outcome(build(name), engine, x, dy)
    actual = outcome(build(name), engine, x[order], dy[order])
    for what in ("inference", "training", "dx"):
        expected[what] = expected[what][order]
    assert_same(actual, expected)
    if engine != "numpy":  # whose BLAS may add up otherwise in other rows
        np.testing.assert_array_equal(actual["inference"], expected["inference"])


@on_every_engine
def test_an_image_does_not_see_its_batch(name, engine):
    x, _ = images(5)
    net = build(name)
    made = fused.convert(net) if engine == "fused" else net
    with backend.use("numba" if engine == "fused" else engine):
        whole, parts = made.forward(x), np.concatenate([made.forward(x[:1]), made.forward(x[1:3]), made.forward(x[3:])])
    assert_close(parts, whole, 1e-12, "parts")
    if engine != "numpy":
        np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("axis", [0, 1])
@on_every_engine
def test_mirrored_kernels_see_mirrored_images(name, engine, axis):
    x, dy = images()
    expected = outcome(build(name), engine, x, dy)
    net = build(name)
    for key, layer, variables in layers(net):
        if type(layer) in (Conv, Depthwise):
            variables["weight"].value = np.flip(variables["weight"].value, axis)
            expected[f"{key}.weight"] = np.flip(expected[f"{key}.weight"], axis)
    for _, layer in net.leaves():  # what is padded above is padded below
        for options in (vars(layer), getattr(layer, "options", {})):
            if isinstance(options.get("padding"), tuple):
                sides = list(options["padding"])
                sides[axis] = sides[axis][::-1]
                options["padding"] = tuple(sides)
    expected["dx"] = np.flip(expected["dx"], 1 + axis)
    assert_same(outcome(net, engine, np.flip(x, 1 + axis), dy), expected)


@on_every_engine
def test_weights_before_a_batchnorm_may_have_any_scale(name, engine):
    """A power of two changes no digit: all but the statistics and these weights' gradients stays as it is."""
    x, dy = images()
    expected = outcome(build(name), engine, x, dy)
    net = build(name)
    chain = list(net.leaves())
    for (key, layer), (after, bn) in itertools.pairwise(chain):
        if not isinstance(bn, BatchNorm) or not layer.parameters():
            continue
        for what, variable in layer.parameters().items():
            variable.value = variable.value * 8
            expected[f"{key}.{what}"] = expected[f"{key}.{what}"] / 8
        bn.eps *= 64
        for buffer, factor in ((bn.running_mean, 8), (bn.running_var, 64)):
            buffer.value = buffer.value * factor
        expected[f"{after}.running_mean"] = expected[f"{after}.running_mean"] * 8
        expected[f"{after}.running_var"] = expected[f"{after}.running_var"] * 64
    actual = outcome(net, engine, x, dy)
    for what, array in expected.items():
        np.testing.assert_array_equal(actual[what], array, err_msg=what)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["mobilenet", "odd"])  # the zeros of resnet20's new channels are at their place
def test_channels_inside_may_have_any_order(name, engine):
    x, dy = images()
    expected = outcome(build(name), engine, x, dy)
    net = build(name)

    def order(count):
        """Return the one order of all feature maps with so many channels, so that branches meet; not of images."""
        return np.arange(count) if count in (3, CLASSES) else np.random.default_rng(count).permutation(count)

    for key, layer, variables in layers(net):
        for what, variable in variables.items():
            at = np.ix_(*(order(size) for size in variable.value.shape[-2:])) if variable.value.ndim > 1 else None
            if at is None or isinstance(layer, Depthwise):
                at = (order(variable.value.shape[-1]),)
            at = (..., *at)
            variable.value = variable.value[at]
            expected[f"{key}.{what}"] = expected[f"{key}.{what}"][at]
    assert_same(outcome(net, engine, x, dy), expected)
