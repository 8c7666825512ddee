"""Old names of public things work for a release, and say what to write now."""

import functools

import numpy as np
import pytest

import mbnp.network
from mbnp import backend, fused, layers, models, parameter
from mbnp.network import Skipped
from mbnp.ops import relu

old = functools.partial(pytest.warns, DeprecationWarning)
SMALL = {"num_classes": 2, "width_mult": 0.1}


def test_keywords():
    with old(match="cap is called max_value now"):
        layer = layers.ReLU(cap=6)
    assert layer.max_value == 6
    x = np.array([-1.0, 3.0, 9.0])
    with old(match="max_value"):
        np.testing.assert_array_equal(relu.forward(x, cap=6), relu.forward(x, 6))
    with old(match="max_value"):
        np.testing.assert_array_equal(relu.backward(x, x, cap=6), relu.backward(x, x, 6))
    for build in (models.mobilenet_v1, functools.partial(models.create, "mobilenet-v1")):
        with old(match="relu_cap is called max_value now"):
            net = build(relu_cap=6, resolution=32, **SMALL)
        assert {layer.max_value for _, layer in net.leaves() if isinstance(layer, layers.ReLU)} == {6}


def test_a_keyword_under_both_names_is_an_error():
    for pass_both in (lambda: layers.ReLU(6, cap=6), lambda: layers.ReLU(max_value=6, cap=6)):
        with old(match="cap"), pytest.raises(TypeError, match=r"multiple values for .*max_value"):
            pass_both()


def test_attributes():
    skipped, layer = Skipped(("a",), ("b",), ("c",)), layers.ReLU(6)
    for name, value in (("missing", ("a",)), ("left_over", ("b",)), ("misfits", ("c",))):
        with old(match=name):
            assert getattr(skipped, name) == value
    with old(match="max_value"):
        layer.cap = 0.5
    with old(match="max_value"):
        assert layer.cap == layer.max_value == 0.5
    net = models.mobilenet_v1_small(**SMALL)
    with old(match="reference"):
        assert fused.convert(net).readable is net


def test_modules():
    for name in ("Parameter", "Buffer", "Variable"):
        with old(match=f"mbnp.parameter.{name}"):
            assert getattr(mbnp.network, name) is getattr(parameter, name)
    with old(match=r"backend\.use "), backend.using("loops"):
        assert backend.current() == "loops"
    for module in (mbnp.network, backend):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            module.nothing  # noqa: B018
