"""The fast engine: the reference equations of its kernels in every odd corner, never a stale answer, nothing leaks."""

import functools
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest

from mbnp import MbnpError, backend, fused, models, optim, train
from mbnp.fused import inference, match, windows
from mbnp.layers import (
    AveragePool,
    BatchNorm,
    Conv,
    Depthwise,
    Dropout,
    Flatten,
    Gate,
    GlobalAveragePool,
    HardSigmoid,
    HardSwish,
    Linear,
    MaxPool,
    Pad,
    Pointwise,
    ReLU,
    Residual,
    Sequential,
    Squeeze,
    Subsample,
)
from mbnp.network import Network
from tests.twins import assert_converted, assert_gradients, batch, gradients, kinds, relative, vary

TOLERANCE = {np.float64: 1e-10, np.float32: 1e-4}
DTYPES = [np.float64, np.float32]


def network(stride, padding, channels, max_value, dtype, relu=True):
    """Two separable blocks after a stem, with channel counts that no vector width divides."""
    rng = np.random.default_rng(7)
    c0, c1, c2 = channels
    activation = [ReLU(max_value)] if relu else []
    options = {"bias": False, "rng": rng, "dtype": dtype}
    blocks = {
        "stem": Sequential([Conv(3, c0, 3, 1, padding=1, **options), BatchNorm(c0, dtype=dtype), ReLU(max_value)]),
        "one": Sequential(
            [
                Depthwise(c0, 3, stride, padding, **options),
                BatchNorm(c0, dtype=dtype),
                *activation,
                Pointwise(c0, c1, **options),
                BatchNorm(c1, dtype=dtype),
                ReLU(max_value),
            ]
        ),
        "two": Sequential(
            [
                Depthwise(c1, 3, 3 - stride, padding, **options),
                BatchNorm(c1, dtype=dtype),
                ReLU(max_value),
                Pointwise(c1, c2, **options),
                BatchNorm(c2, dtype=dtype),
                ReLU(max_value),
            ]
        ),
        "pool": GlobalAveragePool(),
        "fc": Linear(c2, 5, rng=rng, dtype=dtype),
    }
    net = Network(blocks, resolution=9)
    net.arch = {"name": "test"}
    return vary(net)


def chain(layers, resolution=9, channels=3):
    """A network of layers in a row, and vary what its BatchNorms hold."""
    return vary(Network({str(i): layer for i, layer in enumerate(layers)}, resolution=resolution, channels=channels))


def images(n, h, w, channels=3):
    return np.random.default_rng(3).standard_normal((n, h, w, channels)).astype(np.float32)


def copy_of(net, build):
    other = build()
    other.load_state(net.state())
    return other


CASES = [
    # stride, padding, channels, max_value, images, height, width
    (1, 1, (5, 7, 3), None, 2, 9, 7),
    (2, 1, (5, 7, 3), 6.0, 3, 8, 9),
    (2, ((0, 1), (0, 1)), (17, 33, 20), None, 1, 12, 11),
    (1, ((2, 0), (1, 2)), (3, 300, 16), 0.9, 2, 6, 5),
    (2, "same", (32, 64, 48), None, 2, 10, 10),
    (1, 0, (16, 16, 16), None, 5, 9, 9),
    (1, 1, (1, 1, 1), None, 4, 5, 4),
    (1, 1, (18, 33, 20), None, 19, 6, 5),
]
SEPARABLE = ["conv", "depthwise", "conv", "depthwise", "conv", "average", "conv"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_reference_equation(case, dtype):
    """Outputs, statistics and every gradient are what the reference layers compute (in float64)."""
    stride, padding, channels, max_value, n, h, w = case
    build = functools.partial(network, stride, padding, channels, max_value)
    fast = assert_converted(build, images(n, h, w), dtype, TOLERANCE[dtype])
    assert kinds(fast) == SEPARABLE
    assert fast.report().splitlines()[1].endswith("  one.0 + one.1 + one.2")


@pytest.mark.parametrize("case", [CASES[2], CASES[-1]])
def test_reference_equation_of_many_small_tiles(case, monkeypatch):
    """Several tiles a group and several groups, whose sizes do not divide the pixels."""
    for name, value in {"TILE": 1, "LEAST": 1, "PIXELS": 7}.items():
        monkeypatch.setattr(windows, name, value)
    test_reference_equation(case, np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [(32, 96, 64), (160, 112, 96), (32, 544, 64), (288, 560, 64)])
@pytest.mark.parametrize("n", [2, 48])
def test_reference_equation_of_panels(n, channels, dtype, monkeypatch):
    """Copies in panels, of tiles and of all pixels where these are few; several panels a task where these are many."""
    for name, value in {"PANEL": 32, "TILE": 1, "LEAST": 30}.items():
        monkeypatch.setattr(windows, name, value)
    whole, flat = [], windows.flat

    def noted(P, C, D, vector, copied):
        whole.append(copied)
        return flat(P, C, D, vector, copied)

    monkeypatch.setattr(windows, "flat", noted)
    build = functools.partial(network, 1, 1, channels, 1.5)
    assert_converted(build, images(n, 5, 4), dtype, TOLERANCE[dtype])
    assert whole == [n == 2 or channels[0] == 288, True, False]


ENDS = [
    # layers after the chain of channels (7, 9, 7) on feature maps of 5 x 5, and the steps that they are
    (lambda **o: {"pool": GlobalAveragePool(), "fc": Linear(7, 4, **o)}, ["average", "conv"]),
    (lambda **o: {"pool": AveragePool(5), "flat": Flatten(), "fc": Linear(7, 4, **o)}, ["average", "conv"]),
    (lambda **o: {"pool": AveragePool(5), "fc": Pointwise(7, 4, **o), "flat": Flatten()}, ["average", "conv", "layer"]),
    (
        lambda **o: {"pool": AveragePool(2), "flat": Flatten(order="CHW"), "fc": Linear(28, 4, **o)},
        ["layer", "layer", "conv"],
    ),
    (
        lambda **o: {"pool": AveragePool(5, padding=1), "flat": Flatten(), "fc": Linear(7, 4, **o)},
        ["layer", "layer", "conv"],
    ),
    (lambda **o: {"pool": GlobalAveragePool(), "fc": Linear(7, 4, bias=False, **o)}, ["average", "conv"]),
    (
        lambda **o: {"pool": GlobalAveragePool(), "hidden": Linear(7, 5, **o), "fc": Linear(5, 4, **o)},
        ["average", "conv", "conv"],
    ),
    (
        lambda **o: {
            "pool": GlobalAveragePool(),
            "hidden": Linear(7, 35, **o),
            "relu": ReLU(),
            "second": Linear(35, 18, bias=False, **o),
            "bn": BatchNorm(18, dtype=o["dtype"]),
            "relu6": ReLU(6),
            "fc": Linear(18, 4, **o),
        },
        ["average", "conv", "conv", "conv"],
    ),
    (lambda **o: {"flat": Flatten(order="HWC"), "fc": Linear(175, 4, **o), "relu": ReLU()}, ["layer", "conv"]),
    (lambda **o: {"fc": Pointwise(7, 4, **o)}, ["conv"]),
    (lambda **o: {"pool": GlobalAveragePool(), "relu": ReLU(0.1)}, ["average", "activation"]),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("frozen", [(), ("fc.weight",), ("fc.bias",), ("fc.weight", "fc.bias")], ids=str)
@pytest.mark.parametrize(("end", "steps"), ENDS)
def test_reference_equation_of_a_networks_end(end, steps, frozen, dtype):
    """In training and in inference, with more images than groups of them."""

    def build(dtype):
        blocks = dict(network(1, 1, (7, 9, 7), None, dtype).layers)
        del blocks["pool"], blocks["fc"]
        return vary(Network({**blocks, **end(rng=np.random.default_rng(2), dtype=dtype)}, resolution=9), seed=2)

    def freeze(net):
        for name in set(frozen) & set(net.parameters()):
            net.parameters()[name].frozen = True

    fast = assert_converted(build, images(19, 9, 9), dtype, TOLERANCE[dtype], prepare=freeze)
    assert kinds(fast) == SEPARABLE[:5] + [{"layer": "its own layer"}.get(step, step) for step in steps]
    assert not any(fast.parameters()[name].grad.any() for name in set(frozen) & set(fast.parameters()))


# -- one layer at a time: as the first one, or after another ---------------------------------------------------------


def alone(first, make, c_in, c_out, bn, activation):
    """A function that builds a network around one convolution; it is the first layer, or reads another's output."""

    def build(dtype):
        options = {"rng": np.random.default_rng(5), "dtype": dtype}
        before = [] if first else [Conv(3, c_in, 1, bias=False, **options), BatchNorm(c_in, dtype=dtype), ReLU()]
        after = [BatchNorm(c_out, dtype=dtype)] * bn + [ReLU(6)] * activation
        ends = [GlobalAveragePool(), Linear(c_out, 4, **options)]
        layers = [*before, make(**options), *after, *ends]
        return chain(layers, resolution=32, channels=c_in if first else 3)

    return build


CONVOLUTIONS = [
    # channels in and out, kernel, stride, padding, bias, height, width
    (3, 8, 1, 1, 0, True, 5, 9),
    (1, 16, 5, 2, 2, True, 12, 11),
    (4, 20, 3, 3, 1, False, 13, 26),
    (3, 33, 7, 2, ((3, 2), (2, 3)), True, 23, 17),
    (2, 5, 3, 2, "same", True, 9, 40),
    (40, 72, 3, 1, 1, False, 7, 6),
    (33, 70, 3, 2, 1, True, 9, 8),
    (20, 34, 3, 3, 0, False, 13, 11),
    (5, 40, 1, 2, 0, True, 9, 8),
    (17, 9, 1, 3, 0, False, 11, 7),
    (16, 24, 5, 1, 2, False, 6, 9),
    (6, 20, 5, 3, 2, True, 11, 10),
    (9, 8, 7, 1, 3, False, 7, 4),
    (4, 9, 7, 3, 3, True, 16, 15),
    (7, 12, (1, 3), 1, ((0, 0), (1, 1)), False, 5, 9),
    (7, 12, (3, 1), 2, ((1, 1), (0, 0)), True, 9, 5),
    (5, 6, (5, 2), 1, 0, True, 9, 6),
    (6, 10, (3, 5), 2, "same", False, 9, 10),
    (6, 10, 4, 2, "same", False, 7, 10),
    (6, 10, 2, 3, 1, True, 10, 10),
    (6, 10, 3, 1, "same", True, 1, 1),
    (6, 10, 5, 2, 2, True, 2, 3),
    (8, 12, 3, 1, 1, False, 40, 37),
    (3, 8, 3, 2, 1, False, 65, 50),
    (96, 128, 3, 1, 1, False, 16, 16),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", ["first", "first, needs dx", "inner"])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_reference_equation_of_convolutions(case, place, dtype):
    c_in, c_out, kernel, stride, padding, bias, h, w = case
    make = functools.partial(Conv, c_in, c_out, kernel, stride, padding, bias)
    build = alone(place != "inner", make, c_in, c_out, bn=True, activation=True)
    x = images(3, h, w, 3 if place == "inner" else c_in)
    fast = assert_converted(build, x, dtype, TOLERANCE[dtype], needs_dx="dx" in place)
    assert kinds(fast) == ["conv"] * (1 + (place == "inner")) + ["average", "conv"]


DEPTHWISE = [
    # channels, kernel, stride, padding, height, width
    (5, 3, 1, 1, 9, 7),
    (5, 3, 2, 1, 9, 8),
    (17, 3, 2, ((0, 1), (0, 1)), 8, 8),
    (16, 3, 1, 1, 1, 1),
    (3, 3, 2, 1, 1, 2),
    (20, 5, 1, 2, 9, 7),
    (20, 5, 2, 2, 9, 8),
    (7, 5, 1, 0, 8, 5),
    (33, 5, 2, "same", 10, 7),
    (4, 5, 1, ((4, 1), (0, 3)), 6, 6),
    (8, 7, 1, 3, 9, 8),
    (8, 7, 2, 3, 9, 10),
    (19, 7, 2, "same", 11, 14),
    (2, 7, 1, 3, 2, 3),
    (2, 7, 2, 3, 3, 1),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", ["first", "first, needs dx", "inner"])
@pytest.mark.parametrize("case", DEPTHWISE, ids=str)
def test_reference_equation_of_depthwise_convolutions(case, place, dtype):
    C, kernel, stride, padding, h, w = case
    make = functools.partial(Depthwise, C, kernel, stride, padding)
    build = alone(place != "inner", make, C, C, bn=True, activation=True)
    x = images(3, h, w, 3 if place == "inner" else C)
    fast = assert_converted(build, x, dtype, TOLERANCE[dtype], needs_dx="dx" in place)
    assert kinds(fast) == ["conv"] * (place == "inner") + ["depthwise", "average", "conv"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1)])
def test_depthwise_convolutions_of_groups_of_images(kernel, stride, dtype):
    make = functools.partial(Depthwise, 5, kernel, stride, kernel // 2)
    build = alone(False, make, 5, 5, bn=True, activation=True)
    assert_converted(build, images(19, 6, 5, 3), dtype, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("bn", "activation"), [(False, True), (True, False), (False, False)])
@pytest.mark.parametrize(
    "kind",
    [Pointwise, functools.partial(Conv, padding=1), functools.partial(Conv, kernel=1, stride=2), Depthwise],
    ids=["pointwise", "3x3", "1x1 at stride 2", "depthwise"],
)
def test_reference_equation_without_batchnorm_or_activation(kind, bn, activation, bias, dtype):
    def make(**options):
        return kind(*[18] * (1 if kind is Depthwise else 2), bias=bias, **options)

    for first in (False, True):
        build = alone(first, make, 18, 18, bn, activation)
        assert_converted(build, images(2, 7, 9, 18 if first else 3), dtype, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(3, 2, 1), (2, 2, 0), (3, 1, "same"), ((2, 3), 2, ((0, 1), (1, 2))), ((1, 9), 3, 0), (3, 3, ((2, 0), (0, 2)))],
    ids=str,
)
@pytest.mark.parametrize("activation", [None, ReLU, HardSwish], ids=str)
def test_reference_equation_of_max_pooling(activation, size, stride, padding, dtype):
    def build(dtype):
        o = {"rng": np.random.default_rng(5), "dtype": dtype}
        before = [*linear(3, 18, o), *([activation()] if activation else [])]
        pooled = [*before, MaxPool(size, stride, padding), Pointwise(18, 5, **o), GlobalAveragePool()]
        return chain(pooled, resolution=9)

    fast = assert_converted(build, images(3, 10, 9), dtype, TOLERANCE[dtype])
    assert kinds(fast) == ["conv", "largest", "conv", "average"]


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_an_infinite_gradient_reaches_every_weight_that_it_should(number):
    o = {"rng": np.random.default_rng(5)}
    layers = [Pointwise(3, 18, **o), Pointwise(18, 18, **o), HardSwish(), Depthwise(18, 3, padding=1, **o), MaxPool(2)]
    net = Network({str(i): layer for i, layer in enumerate(layers)}, resolution=4)
    dy = np.ones((2, 2, 2, 18), np.float32)
    dy[0, 1, 1, 5] = number
    found = []
    for one in (net, fused.convert(net)):
        one.forward(images(2, 4, 4), train=True)
        with np.errstate(invalid="ignore", over="ignore"):
            one.backward(dy)
        found.append({name: ~np.isfinite(gradient) for name, gradient in gradients(net).items()})
        for p in net.parameters().values():
            p.grad[...] = 0
    assert found[0]["0.weight"].all()
    for name, wrong in found[0].items():
        assert not (wrong & ~found[1][name]).any(), name


def test_the_largest_of_equal_pixels_is_the_first_and_nan_is_larger():
    x = images(2, 6, 6, 16)
    x[0, ::2] = x[0, 1::2] = 0.5
    x[1, 2, 3, 4], x[1, 5, 5], x[1, 0, 0] = np.nan, np.inf, -np.inf
    net = Network({"pool": MaxPool(3, 2, 1)}, resolution=6, channels=16)
    net.needs_dx = True
    fast = fused.convert(net)
    np.testing.assert_array_equal(fast.forward(x), net.forward(x))
    y = net.forward(x, train=True)
    np.testing.assert_array_equal(fast.forward(x, train=True), y)
    dy = np.random.default_rng(0).standard_normal(y.shape).astype(np.float32)
    np.testing.assert_array_equal(fast.backward(dy)[0], net.backward(dy)[0])


# -- branches --------------------------------------------------------------------------------------------------------


def block(c_in, c_out, stride, options):
    """A residual's body: two convolutions, the first of which may move by more than one pixel."""
    dtype = options["dtype"]
    return [
        *(Conv(c_in, c_out, 3, stride, padding=1, bias=False, **options), BatchNorm(c_out, dtype=dtype), ReLU()),
        *(Conv(c_out, c_out, 3, 1, padding=1, bias=False, **options), BatchNorm(c_out, dtype=dtype)),
    ]


def linear(c_in, c_out, options):
    return [Pointwise(c_in, c_out, bias=False, **options), BatchNorm(c_out, dtype=options["dtype"])]


def separable(c, options):
    dtype = options["dtype"]
    return [
        *(Pointwise(c, 2 * c, bias=False, **options), BatchNorm(2 * c, dtype=dtype), ReLU(6)),
        *(Depthwise(2 * c, 3, 1, 1, bias=False, **options), BatchNorm(2 * c, dtype=dtype), ReLU(6)),
        *(Pointwise(2 * c, c, bias=False, **options), BatchNorm(c, dtype=dtype)),
    ]


def projection(c_in, c_out, options):
    return Sequential([Conv(c_in, c_out, 1, 2, bias=False, **options), BatchNorm(c_out, dtype=options["dtype"])])


def excite(channels, options):
    few = [Pointwise(channels, 4, **options), ReLU(), Pointwise(4, channels, **options)]
    return Gate([Squeeze(), *few, HardSigmoid()])


RESIDUALS = {
    # what follows 10 channels on 8 x 9 pixels, and the channels that it makes
    "identity": (lambda o: [Residual(block(10, 10, 1, o)), ReLU()], 10),
    "no activation": (lambda o: [Residual(block(10, 10, 1, o))], 10),
    "no activation, then a convolution": (lambda o: [Residual(separable(10, o)), Residual(separable(10, o))], 10),
    "shortcut convolution": (lambda o: [Residual(block(10, 20, 2, o), projection(10, 20, o)), ReLU()], 20),
    "shortcut of one layer": (lambda o: [Residual(block(10, 20, 2, o), Conv(10, 20, 1, 2, **o)), ReLU(6)], 20),
    "shortcut subsamples": (lambda o: [Residual(block(10, 20, 2, o), Subsample(10, 20, 2)), ReLU()], 20),
    "shortcut subsamples whole vectors": (
        lambda o: [
            *block(10, 16, 1, o),
            Residual(block(16, 23, 2, o), Subsample(16, 23, 2)),
            ReLU(),
            Subsample(23, 30),
        ],
        30,
    ),
    "shortcut of the given images": (lambda o: [Residual([Depthwise(10, padding=1, **o)]), ReLU()], 10),
    "nested": (lambda o: [Residual([Residual(block(10, 10, 1, o)), ReLU(), *block(10, 10, 1, o)]), ReLU()], 10),
    "nested, first and last": (lambda o: [Residual([Residual([Residual(block(10, 10, 1, o))])])], 10),
    "empty body": (lambda o: [Residual([]), ReLU()], 10),
    "empty body and shortcut": (lambda o: [Residual([], Sequential([])), *block(10, 10, 1, o)], 10),
    "twice the same": (lambda o: [Residual([]), Residual([], Pointwise(10, 10, **o)), ReLU()], 10),
    "only an activation": (lambda o: [Residual([ReLU()]), ReLU(2)], 10),
    "pooling in both": (
        lambda o: [Residual([AveragePool(2), Pointwise(10, 12, **o)], Sequential([MaxPool(2), Pad(0, (1, 1))]))],
        12,
    ),
    "averages": (lambda o: [Residual([AveragePool((8, 9))], AveragePool((8, 9))), ReLU(), Pointwise(10, 6, **o)], 6),
    "pooling between": (lambda o: [*block(10, 12, 1, o), MaxPool(2), *block(12, 9, 1, o), ReLU(), AveragePool(2)], 9),
    "gate": (lambda o: [*block(10, 12, 1, o), HardSwish(), excite(12, o), *block(12, 7, 1, o)], 7),
    "gate of what is not activated": (lambda o: [*block(10, 12, 1, o), excite(12, o), Pointwise(12, 5, **o)], 5),
    "gate of the given images": (lambda o: [Gate([GlobalAveragePool(), Linear(10, 10, **o), HardSigmoid()])], 10),
    "gate in a residual": (lambda o: [Residual([*separable(10, o), HardSwish(), excite(10, o)]), HardSigmoid()], 10),
    "gate in a gate": (lambda o: [Gate([Squeeze(), Gate([Squeeze(), HardSigmoid()]), HardSigmoid()]), ReLU()], 10),
    "gate of a layer as it is": (lambda o: [Gate([MaxPool((8, 9)), Pointwise(10, 10, **o)]), HardSwish()], 10),
    "hard-swish of a sum": (lambda o: [Residual(block(10, 10, 1, o)), HardSwish(), *block(10, 6, 2, o)], 6),
    "activations alone": (
        lambda o: [*block(10, 12, 1, o), MaxPool(2), HardSwish(), *block(12, 9, 1, o), HardSwish(), ReLU()],
        9,
    ),
    "an activation that the shortcut does not see": (
        lambda o: [Residual([ReLU(6), *separable(10, o)]), Residual([HardSwish(), *block(10, 10, 1, o)])],
        10,
    ),
    "two activations of one map": (
        lambda o: [
            *linear(10, 12, o),
            Residual([HardSwish(), *block(12, 14, 2, o)], Sequential([ReLU(2), *block(12, 14, 2, o)])),
        ],
        14,
    ),
    "hard-swish that two convolutions read": (
        lambda o: [*linear(10, 12, o), HardSwish(), Residual(block(12, 12, 1, o), Pointwise(12, 12, **o))],
        12,
    ),
    "hard-swish and a sum": (lambda o: [*linear(10, 12, o), HardSwish(), Residual(block(12, 12, 1, o))], 12),
    "hard-sigmoid": (lambda o: [Conv(10, 12, 3, padding=1, **o), HardSigmoid(), *block(12, 9, 2, o)], 9),
    "two activations": (lambda o: [Residual(block(10, 10, 1, o)), ReLU(), ReLU(1), *block(10, 7, 1, o)], 7),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", ["first", "first, needs dx", "inner", "inner, needs dx"])
@pytest.mark.parametrize("name", RESIDUALS)
def test_reference_equation_of_branches(name, place, dtype):
    make, c_out = RESIDUALS[name]

    def build(dtype):
        options = {"rng": np.random.default_rng(5), "dtype": dtype}
        before = [] if "first" in place else [Conv(3, 10, 1, bias=False, **options), BatchNorm(10, dtype=dtype), ReLU()]
        layers = [*before, *make(options), GlobalAveragePool(), Linear(c_out, 4, **options)]
        return chain(layers, resolution=8, channels=10 if "first" in place else 3)

    x = images(3, 8, 9, 10 if "first" in place else 3)
    assert_converted(build, x, dtype, TOLERANCE[dtype], needs_dx="dx" in place)


@pytest.mark.parametrize("until", [None, "stem", "one.0", "one", "two", "fc"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_of_the_images_goes_through_frozen_layers(until, dtype):
    build = functools.partial(network, 2, 1, (5, 7, 3), None)

    def freeze(net):
        if until:
            net.freeze_until(until)

    assert_converted(build, images(3, 9, 8), dtype, TOLERANCE[dtype], needs_dx=True, prepare=freeze)


def test_whether_images_need_a_gradient_may_change():
    """On either network, between any two steps."""
    net = network(1, 1, (5, 6, 7), None, np.float64)
    fast, x = fused.convert(net), images(2, 9, 9).astype(np.float64)
    dy = fast.forward(x, train=True)
    assert fast.backward(dy) is None
    fast.needs_dx = True
    assert net.needs_dx
    dy = fast.forward(x, train=True)
    dx = fast.backward(dy)
    net.forward(x, train=True)
    assert relative(dx, net.backward(dy)) < 1e-10
    net.needs_dx = False
    fast.forward(x, train=True)
    assert fast.backward(dy) is None
    kept = dx.copy()
    net.needs_dx = True
    fast.forward(2 * x, train=True)
    fast.backward(dy)
    np.testing.assert_array_equal(dx, kept)  # an array of the caller's own


@pytest.mark.parametrize("wrong", [np.ones((2, 6), np.float32), np.ones((3, 5), np.float32), np.ones((2, 5))], ids=str)
def test_a_gradient_unlike_the_logits_is_refused(wrong):
    fast = fused.convert(network(1, 1, (5, 6, 7), None, np.float32))
    x, _ = batch(2, 9, np.float32)
    fast.forward(x, train=True)
    with pytest.raises(MbnpError, match="dy"):
        fast.backward(wrong)


@pytest.mark.parametrize("channels", [7, 16])
def test_backward_takes_the_weights_of_now(channels):
    """Whether or not channels fill vectors, as the reference layers do."""
    net, other = (network(1, 1, (5, 6, channels), None, np.float64) for _ in range(2))
    fast = fused.convert(other)
    x, _ = batch(3, 9, np.float64)
    for each in (net, fast):
        dy = each.forward(x, train=True)
        for name in ("fc.weight", "two.3.weight", "two.0.weight"):
            each.parameters()[name].value = 2 * each.parameters()[name].value
        each.backward(dy)
    assert_gradients(gradients(fast), gradients(net), 1e-10)


def test_the_average_of_a_large_map_is_exact():
    def build(dtype):
        blocks = [
            Conv(3, 8, 3, padding=1, dtype=dtype),
            BatchNorm(8, dtype=dtype),
            ReLU(),
            GlobalAveragePool(),
        ]
        return vary(Network({str(i): b for i, b in enumerate([*blocks, Linear(8, 4, dtype=dtype)])}, resolution=200))

    exact, fast = build(np.float64), fused.convert(build(np.float32))
    fast.load_state(exact.state())
    x, _ = batch(2, 200, np.float32)
    for mode in (True, False):
        assert relative(fast.forward(x, train=mode), exact.forward(x.astype(np.float64), train=mode)) < 5e-7


def test_a_large_bias_costs_no_precision():
    def build(dtype):
        conv = Conv(3, 16, 7, padding=3, rng=np.random.default_rng(0), dtype=dtype)
        conv.bias.value = np.full(16, 1e3)
        return Network({"conv": conv, "bn": BatchNorm(16, dtype=dtype)}, resolution=16)

    x = np.random.default_rng(0).standard_normal((8, 16, 16, 3)).astype(np.float32)
    with backend.use("numpy"):
        y = build(np.float64).forward(x.astype(np.float64), train=True)
    assert relative(fused.convert(build(np.float32)).forward(x, train=True), y) < 3e-5


@pytest.mark.parametrize("relu", [True, False])
def test_no_activation_between_two_convolutions(relu):
    reference = network(2, 1, (5, 6, 7), None, np.float64, relu)
    fast = fused.convert(copy_of(reference, lambda: network(2, 1, (5, 6, 7), None, np.float64, relu)))
    x, _ = batch(2, 9, np.float64)
    y = reference.forward(x, train=True)
    assert relative(fast.forward(x, train=True), y) < 1e-10
    reference.backward(y)
    fast.backward(y)
    assert_gradients(gradients(fast), gradients(reference), 1e-10)


@pytest.mark.parametrize("spread", [1.0, 0.1])
def test_large_means_do_not_cancel(spread):
    """Mean 1e3 before a BatchNorm: float32 keeps what its input has, in outputs, statistics and gradients."""
    build = lambda dtype: network(1, 1, (8, 8, 8), None, dtype)  # noqa: E731
    exact = build(np.float64)
    conv = exact["stem"].layers["0"]
    conv.weight.value = np.zeros_like(conv.weight.value)
    conv.weight.value[1, 1, 0] = 1  # each channel is the first one of the image
    conv.touch()
    fast = build(np.float32)
    fast.load_state(exact.state())
    fast = fused.convert(fast)
    x = np.random.default_rng(0).normal(1e3, spread, (8, 16, 16, 3)).astype(np.float32)
    dy = np.random.default_rng(1).standard_normal((8, 5))
    with backend.use("numpy"):
        y = exact.forward(x.astype(np.float64), train=True)
        exact.backward(dy)
    assert relative(fast.forward(x, train=True), y) < 1e-5
    fast.backward(dy.astype(np.float32))
    for name in ("stem.1.running_mean", "stem.1.running_var"):
        assert relative(fast.buffers()[name].value, exact.buffers()[name].value) < 1e-5
    for name in ("stem.1.weight", "stem.1.bias", "one.0.weight"):
        assert relative(gradients(fast)[name], gradients(exact)[name]) < 1e-4, name


@pytest.mark.parametrize("what", ["frozen", "all frozen"])
def test_frozen_parameters_and_statistics_stay(what):
    build = lambda: network(1, 1, (5, 6, 7), None, np.float64)  # noqa: E731
    reference, other = build(), build()
    other.load_state(reference.state())
    for net in (reference, other):
        for name, parameter in net.parameters().items():
            parameter.frozen = what == "all frozen" or name.startswith(("stem", "one"))
    fast = fused.convert(other)
    x, _ = batch(3, 9, np.float64)
    y = reference.forward(x, train=True)
    assert relative(fast.forward(x, train=True), y) < 1e-10
    reference.backward(y)
    fast.backward(y)
    assert_gradients(gradients(fast), gradients(reference), 1e-10)
    for name, variable in fast.variables().items():
        np.testing.assert_allclose(variable.value, reference.variables()[name].value, rtol=1e-10, err_msg=name)
    for name, parameter in fast.parameters().items():
        assert not parameter.frozen or not parameter.grad.any(), name


def test_never_a_stale_answer():
    """Every way the interface has of changing weights or statistics, between two inferences."""
    net = vary(models.mobilenet_v1_small(width_mult=0.25, dtype=np.float64))
    fast = fused.convert(net)
    x, y = batch(4, 32, np.float64)
    opt = optim.SGD(net.parameters(), lr=0.1)

    def assign():
        net.parameters()["conv2_1.0.weight"].value = 2 * net.parameters()["conv2_1.0.weight"].value

    def assign_statistics():
        net.buffers()["conv1.1.running_var"].value = 3 * net.buffers()["conv1.1.running_var"].value

    def write_in_place():
        net.parameters()["conv2_8.3.weight"].value[:] *= 0.5
        net.parameters()["conv2_8.3.weight"].touch()

    def write_in_place_and_touch_the_network():
        net.buffers()["conv2_8.4.running_mean"].value[:] += 0.1
        net.touch()

    changes = [
        assign,
        assign_statistics,
        write_in_place,
        write_in_place_and_touch_the_network,
        lambda: setattr(net.parameters()["fc.bias"], "value", np.arange(10.0)),
        lambda: setattr(net["conv2_3"].layers["1"], "eps", 0.1),
        lambda: net.load_state({name: 1.1 * array for name, array in net.state().items()}),
        lambda: net.forward(x, train=True),
        lambda: fast.forward(x, train=True),
        lambda: train.step(net, opt, x, y),
        lambda: train.step(fast, opt, x, y),
    ]
    before = fast(x)
    for i, change in enumerate(changes):
        change()
        after = fast(x)
        assert relative(after, before) > 1e-6, f"change {i} did nothing"
        assert relative(after, net(x)) < 1e-10, f"stale after change {i}"
        before = after


def test_a_training_step_takes_options_and_weights_of_now():
    """As the reference layers do: a BatchNorm's eps and momentum at each forward, weights at backward."""
    reference = vary(models.mobilenet_v1_small(width_mult=0.25, dtype=np.float64))
    fast = fused.convert(vary(models.mobilenet_v1_small(width_mult=0.25, dtype=np.float64)))
    x, _ = batch(4, 32, np.float64)
    for step in range(2):
        for net in (reference, fast):
            dy = np.cos(net.forward(x, train=True))
            for name in ("conv2_1.0", "conv2_1.3", "conv2_4.3"):
                net.parameters()[f"{name}.weight"].value = 1.5 * net.parameters()[f"{name}.weight"].value
            net.backward(dy)
            net["conv2_2"].layers["4"].momentum, net["conv2_3"].layers["1"].eps = 0.5, 0.1
        assert_gradients(gradients(fast), gradients(reference), 1e-10)
        for name, buffer in reference.buffers().items():
            np.testing.assert_allclose(fast.buffers()[name].value, buffer.value, rtol=1e-10, err_msg=f"{step} {name}")


def test_what_it_returns_is_the_callers():
    net = models.mobilenet_v1_small(width_mult=0.25)
    fast = fused.convert(net)
    x, _ = batch(4, 32, np.float32)
    for mode in (False, True):
        first = fast.forward(x, train=mode)
        kept = first.copy()
        fast.forward(2 * x, train=mode)
        np.testing.assert_array_equal(first, kept)


def test_only_two_shapes_keep_buffers():
    fast = fused.convert(models.mobilenet_v1_small(width_mult=0.25))
    for n in (1, 2, 3, 4):
        x = np.zeros((n, 32, 32, 3), np.float32)
        fast(x)
        fast.forward(x, train=True)
    assert [shape[0] for shape, *_ in fast._plans.kept] == [3, 4]
    assert [shape[0] for shape in fast._operations.kept] == [3, 4]
    assert len(fast._programs.kept) <= 4


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
@pytest.mark.parametrize("n", [2, 3, 5, 16, 35])
@pytest.mark.parametrize("name", ["mobilenet-v1-small", "mobilenet-v2-cifar", "mobilenet-v3-small-cifar", "resnet20"])
def test_a_batch_by_images_and_step_by_step(name, n):
    """Where steps are timed all threads run each of them, and otherwise one thread all of them for some images."""
    fast = fused.convert(vary(models.create(name, width_mult=0.25)))
    x, _ = batch(n, 32, np.float32)
    by_images = fast(x)
    with fast.timed() as steps:
        step_by_step = fast(x)
    assert steps
    assert np.array_equal(by_images, step_by_step)


@pytest.mark.parametrize(
    ("n", "side", "threads", "images"),
    [
        (1, 32, 2, 0),  # not enough for two threads
        (2, 32, 2, 1),
        (64, 32, 2, 8),  # as many as a core's cache holds
        (65, 32, 2, 7),  # in an even number of turns
        (16, 224, 2, 1),
        (3, 20, 4, 1),
        (5, 20, 4, 0),  # two turns, in the second of which three threads would be idle
        (64, 20, 1, 16),
    ],
)
def test_how_many_images_a_thread_takes(n, side, threads, images, monkeypatch):
    monkeypatch.setattr("mbnp.backend.get_num_threads", lambda: threads)
    shape = n, side, side, 3
    net = models.create("mobilenet-v1-small" if side < 48 else "mobilenet-v1")
    assert inference.share(match.match(net, shape), shape) == images


def test_dropout_costs_inference_nothing():
    """It is no step, and the layers around it find each other's feature map, with the margin of its reader."""

    def build(dtype):
        rng = np.random.default_rng(1)
        options = {"rng": rng, "dtype": dtype}
        layers = [Conv(3, 5, 3, **options), Dropout(0.5), Depthwise(5, 3, padding=1, **options), Dropout(0.5)]
        return chain([*layers, Pointwise(5, 4, **options), GlobalAveragePool(), Dropout(0.2)], resolution=9)

    net = vary(build(np.float64))
    fast = fused.convert(net)
    x = images(5, 9, 9).astype(np.float64)
    with fast.timed() as steps:
        found = fast(x)
    assert [names for names in steps if names] == [("0",), ("2",), ("4",), ("5",)]
    assert relative(found, net(x)) < 1e-10
    assert relative(fast(x), net(x)) < 1e-10


def test_results_do_not_depend_on_threads():
    """However many there are, and however many of them are used."""
    code = """
    import hashlib
    import sys
    import numpy as np
    from mbnp import fused, models, set_num_threads
    from tests.twins import batch, vary

    for threads in range(1, int(sys.argv[1]) + 1):
        set_num_threads(threads)
        digest = hashlib.sha256()
        for n, width in ((1, 1.0), (3, 0.25), (35, 0.25)):
            fast = fused.convert(vary(models.mobilenet_v1_small(width_mult=width)))
            x, _ = batch(n, 32, np.float32)
            digest.update(fast(x).tobytes())
            if n > 1:
                fast.backward(fast.forward(x, train=True))
            for p in fast.parameters().values():
                digest.update(p.grad.tobytes())
        print(digest.hexdigest())
    """
    digests = set()
    for most in (1, 2, 5):
        environment = os.environ | {"NUMBA_NUM_THREADS": str(most)}
        command = [sys.executable, "-c", textwrap.dedent(code), str(most)]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.split()) == most
        digests |= set(done.stdout.split())
    assert len(digests) == 1


def test_a_second_backward_needs_a_second_forward():
    fast = fused.convert(models.mobilenet_v1_small(width_mult=0.25))
    x, _ = batch(2, 32, np.float32)
    dy = fast.forward(x, train=True)
    fast.backward(dy)
    with pytest.raises(MbnpError, match="call forward"):
        fast.backward(dy)


def test_gradients_add_up():
    fast = fused.convert(models.mobilenet_v1_small(width_mult=0.25, dtype=np.float64))
    x, _ = batch(2, 32, np.float64)
    for _ in range(2):
        fast.backward(np.ones_like(fast.forward(x, train=True)))
    twice = {name: p.grad.copy() for name, p in fast.parameters().items()}
    for p in fast.parameters().values():
        p.grad[:] = 0
    fast.backward(np.ones_like(fast.forward(x, train=True)))
    for name, p in fast.parameters().items():
        np.testing.assert_allclose(twice[name], 2 * p.grad, rtol=1e-9, atol=1e-12, err_msg=name)


def test_views_and_large_batches_are_taken():
    net = vary(models.mobilenet_v1_small(width_mult=0.25, dtype=np.float64))
    fast = fused.convert(net)
    x, _ = batch(130, 32, np.float64)
    assert relative(fast(x[::-1]), net(x)[::-1]) < 1e-10
    with pytest.raises(MbnpError, match="no images"):
        fast(x[:0])


def test_layers_that_the_kernels_do_not_know_run_as_they_are():
    layers = [MaxPool(2), Pad(1), AveragePool(2), BatchNorm(3), ReLU(), Flatten(order="HWC"), HardSigmoid()]
    net = chain(layers, resolution=4)
    fast = fused.convert(net)
    own = "its own layer"
    assert kinds(fast) == ["largest", own, own, own, "activation", own, own]
    x, _ = batch(2, 4, np.float32)
    np.testing.assert_array_equal(fast(x), net(x))
    dy = fast.forward(x, train=True)
    fast.backward(dy)
    found = {name: gradient.copy() for name, gradient in gradients(net).items()}
    for p in net.parameters().values():
        p.grad[...] = 0
    net.forward(x, train=True)
    net.backward(dy)
    assert found["3.weight"].any()
    assert_gradients(found, gradients(net), 1e-6)


@pytest.mark.parametrize(
    ("shortcut", "kind"),
    [
        (Subsample(16, 24, 2), "sample"),
        (Subsample(16, 16), "sample"),
        (Subsample(10, 12, 2), "its own layer"),  # its vectors would reach into the next pixel
        (Subsample(16, 24, (2, 1)), "its own layer"),
    ],
)
def test_shortcuts_that_the_kernel_knows(shortcut, kind):
    channels = 10 if shortcut.before == 1 else 16
    net = chain([Pointwise(3, channels), shortcut], resolution=6)
    fast = fused.convert(net)
    assert kinds(fast) == ["conv", kind]
    x, _ = batch(2, 6, np.float32)
    np.testing.assert_allclose(fast(x), net(x), rtol=0, atol=1e-6)


def test_the_report_is_a_line_a_step():
    report = fused.convert(models.create("resnet20")).report().splitlines()
    assert report[0] == "conv           conv1 + bn1 + relu1"
    assert report[1] == "conv           layer1.0.conv1 + layer1.0.bn1 + layer1.0.relu1"
    assert report[3] == "sum            layer1.0.relu"
    assert [line for line in report if line.startswith("sample")] == [
        "sample         layer2.0.shortcut",
        "sample         layer3.0.shortcut",
    ]
    assert report[-2:] == ["average        pool", "conv           linear"]
    named = [name for line in report for name in line[15:].split(" + ")]
    assert sorted(named) == sorted(name for name, _ in models.create("resnet20").leaves())


def test_a_report_says_what_does_not_fit():
    net = chain([Conv(3, 8, 3), Pointwise(9, 4)])
    assert fused.convert(net).report() == "every layer as it is: Pointwise takes 9 channels, got 8 in (7, 7, 8)"


@pytest.mark.parametrize("frozen", [None, "conv2_2"])
def test_steps_are_timed(frozen):
    net = models.mobilenet_v1_small(width_mult=0.25)
    if frozen:
        net.freeze_until(frozen)
    fast = fused.convert(net)
    x, _ = batch(4, 32, np.float32)
    with fast.timed() as spent:
        y = fast.forward(x, train=True)
        fast.backward(y)
    assert sorted(name for names in spent for name in names) == sorted(name for name, _ in net.leaves())
    for names, timing in spent.items():
        assert timing.forward > 0
        assert (timing.backward > 0) == (not frozen or names[0] > "conv2_3")
    with fast.timed() as inferred:
        fast(x)
        assert inferred == {}  # filled at its end
    assert sum(timing.backward for timing in inferred.values()) == 0
    assert ("conv2_1.0", "conv2_1.1", "conv2_1.2", "conv2_1.3", "conv2_1.4", "conv2_1.5") in inferred
    before = dict(inferred)
    fast(x)
    assert inferred == before
    np.testing.assert_array_equal(fast.forward(x, train=True), y)


@pytest.mark.parametrize(("frozen", "width"), [(False, 1.0), (True, 1.0), (False, 0.3)])
def test_residual_sum_in_float32_and_frozen(frozen, width):
    """At width 0.3 the channels do not fill vectors."""
    exact = vary(models.create("resnet20", width_mult=width, dtype=np.float64))
    net = models.create("resnet20", width_mult=width)
    net.load_state(exact.state())
    for each in (exact, net):
        for name, parameter in each.parameters().items():
            parameter.frozen = frozen and "bn" in name
    fast = fused.convert(net)
    x, _ = batch(4, 32, np.float32)
    y = exact.forward(x.astype(np.float64), train=True)
    assert relative(fast.forward(x, train=True), y) < 1e-4
    dy = np.random.default_rng(0).standard_normal(y.shape)
    exact.backward(dy)
    fast.backward(dy.astype(np.float32))
    assert relative(gradients(fast)["linear.weight"], gradients(exact)["linear.weight"]) < 1e-4
    assert relative(fast(x), exact(x.astype(np.float64))) < 1e-4
    for name, buffer in fast.buffers().items():
        assert relative(buffer.value, exact.buffers()[name].value) < 1e-4, name


def test_nan_shows():
    fast = fused.convert(models.mobilenet_v1_small(width_mult=0.25))
    x, _ = batch(3, 32, np.float32)
    x[1, 5, 5, 0] = np.nan
    assert np.isnan(fast(x)[1]).all()
    assert np.isfinite(fast(x)[[0, 2]]).all()
    assert np.isnan(fast.forward(x, train=True)).all()


def test_both_networks_may_run_between_forward_and_backward():
    """They share parameters, but not what forward saves for backward."""
    net = models.mobilenet_v1_small(width_mult=0.25, dtype=np.float64)
    fast = fused.convert(net)
    (x1, _), (x2, _) = batch(3, 32, np.float64, seed=1), batch(3, 32, np.float64, seed=2)
    dy = fast.forward(x1, train=True)
    fast.backward(dy)
    expected = {name: g.copy() for name, g in gradients(fast).items()}
    for p in net.parameters().values():
        p.grad[:] = 0
    fast.forward(x1, train=True)
    net.forward(x2, train=True)
    net(x2)
    fast(x2)
    fast.backward(dy)
    for name, gradient in gradients(net).items():
        np.testing.assert_array_equal(gradient, expected[name], err_msg=name)


def test_the_description_is_shared():
    net = models.mobilenet_v1_small()
    fast = fused.convert(net)
    fast.classes = ["a"] * 10
    net.preprocessing = {"mean": [0, 0, 0], "std": [1, 1, 1]}
    assert net.classes == ["a"] * 10
    assert fast.preprocessing == net.preprocessing
    assert fused.convert(fast).reference is net


def test_two_threads_wait_for_one_another():
    net = vary(models.mobilenet_v1_small(width_mult=0.25))
    fast = fused.convert(net)
    images_of = [batch(4, 32, np.float32, seed=i)[0] for i in range(2)]
    expected = [fast(x) for x in images_of]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            for y, right in zip(pool.map(fast, images_of), expected, strict=True):
                np.testing.assert_array_equal(y, right)


def test_training_in_one_thread_and_inference_in_another():
    fast = fused.convert(models.mobilenet_v1_small(width_mult=0.25))
    opt = optim.SGD(fast.parameters(), lr=0.01)
    x, y = batch(4, 32, np.float32)
    with ThreadPoolExecutor(2) as pool:
        steps = [pool.submit(train.step, fast, opt, x, y) for _ in range(20)]
        answers = [pool.submit(fast, x) for _ in range(20)]
        assert all(np.isfinite(done.result(timeout=60)).all() for done in steps + answers)


def test_layers_that_do_not_fit_together_say_so():
    def net(**sizes):
        c0, bn, c1 = (sizes.get(name, 16) for name in ("c0", "bn", "c1"))
        blocks = [Conv(3, c0, 3, padding=1), BatchNorm(bn), Depthwise(c0, 3), BatchNorm(c0), Pointwise(c1, 8)]
        return Network({str(i): block for i, block in enumerate([*blocks, BatchNorm(8)])}, resolution=8)

    x = np.zeros((2, 8, 8, 3), np.float32)
    fused.convert(net())(x)
    for wrong in ({"bn": 12}, {"c1": 12}, {"c1": 20}):
        for train_mode in (False, True):
            with pytest.raises(MbnpError):
                fused.convert(net(**wrong)).forward(x, train=train_mode)
    chain = network(1, 1, (5, 6, 7), None, np.float32).layers
    for linear, message in ((Linear(9, 2), "expects 9"), (Linear(7, 2, dtype=np.float64), "float64")):
        for train_mode in (False, True):
            with pytest.raises(MbnpError, match=message):
                fused.convert(Network({**chain, "fc": linear}, resolution=8)).forward(x, train=train_mode)


def test_another_backend_runs_the_reference_network():
    net = models.mobilenet_v1_small(width_mult=0.25)
    fast = fused.convert(net)
    x, _ = batch(2, 32, np.float32)
    with backend.use("numpy"):
        np.testing.assert_array_equal(fast(x), net(x))
        fast.forward(x, train=True)
        fast.backward(np.ones((2, 10), np.float32))
    assert gradients(net)["fc.bias"].any()


def test_a_chain_alone_gives_its_output_away():
    blocks = dict(network(1, 1, (5, 6, 7), None, np.float64).layers)
    del blocks["pool"], blocks["fc"]
    fast = fused.convert(Network(blocks, resolution=9))
    x, _ = batch(2, 9, np.float64)
    first = fast.forward(x, train=True)
    kept = first.copy()
    fast.forward(2 * x, train=True)
    np.testing.assert_array_equal(first, kept)
    with pytest.raises(MbnpError, match="dy"):
        fast.backward(np.ones((1, 1, 1, 7)))


class Leaky(ReLU):
    """A subclass that computes something else."""

    def forward(self, x, train=False):
        return np.where(x > 0, super().forward(x, train), np.float64(0.1) * x).astype(x.dtype)


class Doubled(Conv):
    def forward(self, x, train=False):
        return 2 * super().forward(x, train)


@pytest.mark.parametrize("part", ["stem", "relu"])
def test_a_subclass_of_a_layer_runs_as_it_is(part):
    net = network(1, 1, (16, 16, 16), None, np.float64)
    if part == "stem":
        net.layers["stem"].layers["0"] = Doubled(3, 16, 3, 1, padding=1, bias=False, dtype=np.float64)
    else:
        net.layers["stem"].layers["2"] = Leaky()
    x, _ = batch(2, 8, np.float64)
    fast = fused.convert(net)
    assert relative(fast(x), net(x)) < 1e-10
    y = fast.forward(x, train=True)
    dy = np.random.default_rng(3).standard_normal(y.shape)
    fast.backward(dy)
    found = {name: p.grad.copy() for name, p in net.parameters().items()}
    for p in net.parameters().values():
        p.grad[...] = 0
    assert relative(y, net.forward(x, train=True)) < 1e-10
    net.backward(dy)
    assert_gradients(found, gradients(net), 1e-10)
