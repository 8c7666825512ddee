"""Random networks: layers of all kinds in any order compute what the reference network does, in every gradient."""

import numpy as np
import pytest

from mbnp import MbnpError, backend, fused
from mbnp.fused import match
from mbnp.layers import (
    AveragePool,
    BatchNorm,
    Conv,
    Depthwise,
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
from mbnp.network import Layer, Network
from tests.tally import NIGHTLY
from tests.twins import assert_close, assert_gradients, gradients, vary

TOLERANCE = 1e-9


class Wave(Layer):
    """A layer that the engine does not know."""

    def forward(self, x, train=False):
        self.x = x if train else None
        return x + 0.3 * np.sin(3 * x)

    def backward(self, dy):
        return dy * (1 + 0.9 * np.cos(3 * self.pop_saved("x")))


class Leaky(ReLU):
    """A subclass of a layer that the engine knows, which computes something else."""

    def forward(self, x, train=False):
        self.x = x if train else None
        return np.where(x > 0, x, 0.1 * x)

    def backward(self, dy):
        return np.where(self.pop_saved("x") > 0, dy, 0.1 * dy)


class Generator:
    """Layers that fit the shape (H, W, C) or (C,) of what is there so far."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.options = {"rng": self.rng, "dtype": np.float64}

    def one_of(self, *values):
        return values[self.rng.integers(len(values))]

    def chance(self, probability):
        return self.rng.random() < probability

    def channels(self, same):
        return self.one_of(same, same, 1, 3, 8, 12, 17, 24)

    def padding(self, kernel):
        """Return padding of any kind that layers take; some of it is wider than the engine takes."""
        kh, kw = kernel
        margins = ((kh // 2, kh - 1 - kh // 2), (kw // 2, (kw - 1) // 2))
        wide = self.one_of(((kh, 0), (1, kw)), ((0, kh), (0, 0)), ((0, 0), (kw, 0)))
        return self.one_of("same", "same", margins, margins, margins, ((kh - 1, kh - 1), (0, kw - 1)), 0, wide, wide)

    def batchnorm(self, channels):
        # So large an eps because few pixels may hardly vary: rounding would be amplified in both networks.
        return BatchNorm(channels, eps=self.one_of(0.01, 0.1), momentum=self.one_of(0.1, 0.3), dtype=np.float64)

    def activation(self):
        return self.one_of(ReLU, ReLU, lambda: ReLU(6), lambda: ReLU(0.7), HardSwish, HardSigmoid, Leaky, Wave)()

    def window(self, kind, shape):
        """Return a convolution, or what takes its place where it does not fit."""
        c, square = shape[2], self.one_of(1, 3, 3, 3, 5, 5, 7, 2)
        kernel = (square, square) if kind is Depthwise or self.chance(0.7) else (self.one_of(1, 3, 4), square)
        stride, padding = self.one_of(1, 1, 1, 2, 2, 3, (2, 1)), self.padding(kernel)
        sizes = (c,) if kind is Depthwise else (c, self.channels(c))
        layer = kind(*sizes, kernel, stride, padding, bias=self.chance(0.3), **self.options)
        try:
            fits = min(layer.output_shape(shape)) > 0
        except ValueError:
            fits = False
        return layer if fits else Pointwise(c, self.channels(c), **self.options)

    def weighted(self, shape):
        if len(shape) == 1:
            layer = Linear(shape[0], self.channels(shape[0]), bias=self.chance(0.7), **self.options)
        else:
            kind = self.one_of(Conv, Depthwise, Pointwise)
            if kind is Pointwise:
                layer = Pointwise(shape[2], self.channels(shape[2]), bias=self.chance(0.3), **self.options)
            else:
                layer = self.window(kind, shape)
        layers = [layer]
        if self.chance(0.7):
            layers.append(self.batchnorm(layer.output_shape(shape)[-1]))
        if self.chance(0.7):
            layers.append(self.activation())
        return layers

    def other(self, shape):
        h, w, c = shape
        pad = Pad(self.one_of(1, ((0, 1), (2, 0))), (1, 0))
        layers = [Wave, lambda: ReLU(1), lambda: self.batchnorm(c), lambda: pad]
        if min(h, w) >= 2:
            layers += [
                lambda: MaxPool(2),
                lambda: MaxPool(2, 1, ((0, 1), (1, 0))),
                lambda: AveragePool(2),
                lambda: AveragePool(3, 1, 1),
            ]
        layers.append(lambda: AveragePool((h, w)))
        layers.append(lambda: Gate([Squeeze(), Pointwise(c, c, **self.options), *[HardSigmoid()] * self.chance(0.7)]))
        return [self.one_of(*layers)()]

    def shortcut(self, shape, out):
        """Return a chain from one shape to the other, or None where it may be left out."""
        (h, w, c), (oh, ow, d) = shape, out
        if shape == out:
            return self.one_of(None, None, Sequential([]), Pointwise(c, d, **self.options), self.activation())
        if (oh, ow) == (-(-h // 2), -(-w // 2)) and d >= c and self.chance(0.5):
            return Subsample(c, d, 2)
        if (oh, ow) == (-(-h // 2), -(-w // 2)):
            layers = [Conv(c, d, 1, 2, bias=self.chance(0.5), **self.options)]
        else:
            more = ((0, max(oh - h, 0)), (max(ow - w, 0), 0))
            kernel = max(h - oh, 0) + 1, max(w - ow, 0) + 1
            layers = [Conv(c, d, kernel, 1, bias=False, **self.options)]
            if np.any(more):
                layers.insert(0, Pad(more))
        return Sequential([*layers, *[self.batchnorm(d)] * self.chance(0.5)])

    def residual(self, shape, depth):
        body = self.chain(shape, int(self.rng.integers(0, 4)), depth + 1, branch=True)
        out = Sequential(body).output_shape(shape)
        shortcut = self.shortcut(shape, out)
        return [Residual(body, shortcut), *[self.activation()] * self.chance(0.6)]

    def chain(self, shape, length, depth=0, branch=False):
        layers = []
        for _ in range(length):
            if len(shape) == 1:
                new = self.weighted(shape)
            elif depth < 3 and self.chance(0.25):
                new = self.residual(shape, depth)
            elif self.chance(0.2):
                new = self.other(shape)
            elif not branch and self.chance(0.08):
                new = [self.one_of(GlobalAveragePool(), Flatten(order="HWC"))]
            elif self.chance(0.1):
                new = [Sequential(self.weighted(shape))]
            else:
                new = self.weighted(shape)
            layers += new
            for layer in new:
                shape = layer.output_shape(shape)
        return layers

    def network(self):
        shape = (int(self.rng.integers(5, 9)), int(self.rng.integers(5, 9)), self.one_of(3, 3, 1, 8, 10))
        layers = self.chain(shape, int(self.rng.integers(1, 9)))
        if not any(layer.variables() for layer in layers):
            layers.insert(0, Pointwise(shape[2], shape[2], **self.options))
        net = Network({str(i): layer for i, layer in enumerate(layers)}, resolution=shape[0], channels=shape[2])
        out = net.output_shape(shape)
        if self.chance(0.5) and len(out) == 3:
            net.layers |= {"pool": GlobalAveragePool(), "fc": Linear(out[2], 4, **self.options)}
        net.needs_dx = self.chance(0.3)
        self.freeze(net)
        return vary(net, seed=int(self.rng.integers(100))), shape

    def freeze(self, net):
        what = self.one_of("nothing", "nothing", "a beginning", "here and there", "everything")
        leaves = [name for name, layer in net.leaves() if layer.parameters()]
        if what == "a beginning":
            net.freeze_until(self.one_of(*leaves))
        for parameter in net.parameters().values():
            parameter.frozen |= what == "everything" and self.chance(0.9)
            parameter.frozen |= what == "here and there" and self.chance(0.4)


@pytest.mark.parametrize("seed", range(300))
def test_a_random_network_is_its_reference(seed):
    """In inference and two training steps on batches of different sizes, whose gradients add up."""
    exact, shape = Generator(seed).network()
    fast = fused.convert(Generator(seed).network()[0])
    rng = np.random.default_rng(seed)
    what = f"{exact}\n{match.report(match.match(exact, (1, *shape)))}\nneeds_dx={exact.needs_dx}, frozen: " + ", ".join(
        name for name, parameter in exact.parameters().items() if parameter.frozen
    )
    try:
        for n in (3, 5):
            x = rng.standard_normal((n, *shape))
            with backend.use("numpy"):
                inferred, expected = exact.forward(x), exact.forward(x, train=True)
                dy = rng.standard_normal(expected.shape)
                dx_expected = exact.backward(dy)
            assert_close(fast.forward(x), inferred, TOLERANCE, "inference")
            assert_close(fast.forward(x, train=True), expected, TOLERANCE, "training")
            dx = fast.backward(dy)
            for name, buffer in fast.buffers().items():
                assert_close(buffer.value, exact.buffers()[name].value, TOLERANCE, name)
            assert_gradients(gradients(fast), gradients(exact), TOLERANCE)
            assert (dx is not None) == exact.needs_dx
            if exact.needs_dx:
                assert_close(dx, dx_expected, TOLERANCE, "dx")
    except Exception as error:
        raise AssertionError(f"{error}\n{what}") from error


@pytest.mark.parametrize("array", ["weight", "bias"])
def test_an_array_of_another_type_is_refused_by_both(array):
    net = Network({name: Pointwise(3, 3, dtype=np.float64) for name in "ab"}, resolution=4)
    net.variables()[f"b.{array}"].cast(np.float32)
    for each in (net, fused.convert(net)):
        with pytest.raises(MbnpError, match=f"{array[0]} is float32 where the input is float64"):
            each.forward(np.ones((2, 4, 4, 3)))


@np.errstate(all="ignore")
@pytest.mark.parametrize("seed", range(300 if NIGHTLY else 40))
def test_what_is_not_finite_shows(seed):
    """The engine may have more that is not finite, but hides nothing, and lets no other image see it in inference."""
    (exact, shape), (net, _) = Generator(seed).network(), Generator(seed).network()
    fast, number = fused.convert(net), (np.nan, np.inf, -np.inf, 1e200)[seed % 4]
    x = np.random.default_rng(seed).standard_normal((3, *shape))
    clean = fast.forward(x)
    x[1, shape[0] // 2, 0, 0] = number
    for train in (False, True):
        with backend.use("numpy"):
            expected = exact.forward(x, train)
        y = fast.forward(x, train)
        shown = ~np.isfinite(expected)
        assert not np.isfinite(y[shown]).any()
        if np.isnan(number):
            np.testing.assert_array_equal(~np.isfinite(y), shown)
        if not train:
            np.testing.assert_array_equal(y[[0, 2]], clean[[0, 2]])
    with backend.use("numpy"):
        exact.backward(np.ones_like(expected))
    fast.backward(np.ones_like(y))
    for name, gradient in gradients(exact).items():
        hidden = ~np.isfinite(gradient) & np.isfinite(gradients(fast)[name])
        assert not gradients(fast)[name][hidden].any(), name  # a bias before BatchNorm, whose gradient is 0


def test_the_networks_are_of_all_kinds():
    """What is generated has every kind of step, and branches within branches."""
    found, sizes, nested = set(), [], 0
    for seed in range(300):
        net, shape = Generator(seed).network()
        found |= {operation.kind for operation in match.match(net, (1, *shape))}
        sizes.append(len(list(net.leaves())))
        nested += any("shortcut" in name and name.count(".") > 3 for name, _ in net.leaves())
    assert found == {"conv", "depthwise", "sum", "average", "largest", "sample", "activation", "gate", "layer"}
    assert np.mean(sizes) > 8
    assert nested > 5
