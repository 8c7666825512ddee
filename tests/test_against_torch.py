"""Networks and operations against PyTorch in one call: the models, planted mistakes, names, and bad input."""

import math
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mbnp import MbnpError, fused, gradcheck, layers, models, weights
from mbnp.fused import training
from mbnp.layers import BatchNorm, Conv, Depthwise, GlobalAveragePool, Linear, ReLU, Residual
from mbnp.network import Network
from mbnp.ops import conv
from tests.twins import frozen_twin, torch_network, undropped, vary

CASES = {
    "mobilenet-v1-small": ({}, 32),
    "standard-small": ({}, 32),
    "mobilenet-v1-cifar": ({}, 32),
    "mobilenet-v1": ({"num_classes": 12}, 65),
    "mobilenet-v2": ({"num_classes": 12, "width_mult": 0.35}, 65),
    "mobilenet-v2-cifar": ({"width_mult": 0.25}, 32),
    "mobilenet-v3-large": ({"num_classes": 12, "width_mult": 0.25}, 65),
    "mobilenet-v3-small": ({"num_classes": 12, "width_mult": 0.5}, 65),
    "mobilenet-v3-small-cifar": ({"width_mult": 0.5}, 32),
    "xception": ({"num_classes": 12, "width_mult": 0.125}, 71),
    "xception-cifar": ({"width_mult": 0.5}, 32),
    "resnet20": ({}, 32),
}
ENGINES = {"readable": lambda net: net, "fused": fused.convert}


def batch(size, n=4, dtype=np.float32):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, size, size, 3)).astype(dtype), rng.integers(0, 7, n)


def pair(name="mobilenet-v1-small", **options):
    """A network, by default narrow, and a module of the same layers with other weights."""
    options = options or {"width_mult": 0.25}
    ours, theirs = (models.create(name, seed=seed, **options) for seed in (0, 1))
    return vary(undropped(ours)), torch_network(undropped(theirs))


def own(channels=5):
    """A network of one's own with two convolutions, a residual sum and names that no module can have."""
    body = {"a.conv": Conv(channels, channels, 3, padding=1), "a.bn": BatchNorm(channels), "a.relu": ReLU()}
    parts = {"stem": Conv(3, channels, 3, 2, padding=1), "relu": ReLU(), "block": Residual(body)}
    return Network(parts | {"pool": GlobalAveragePool(), "fc": Linear(channels, 7)}, resolution=12)


class Own(nn.Module):
    """The same in PyTorch."""

    def __init__(self, channels=5):
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, 2, padding=1)
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.last = nn.Linear(channels, 7)

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.last((x + F.relu(self.norm(self.conv(x)))).mean((2, 3)))


OWN_NAMES = {"stem": "first", "block.a.conv": "conv", "block.a.bn": "norm", "fc": "last"}


def test_every_model_is_here():
    assert CASES.keys() == {name for name in models.names() if not models.create(name, width_mult=0.25).detects()}


def test_dropout_is_refused():
    net = models.mobilenet_v3_small_cifar(width_mult=0.25)
    module = torch_network(undropped(models.mobilenet_v3_small_cifar(width_mult=0.25)))
    with pytest.raises(
        MbnpError, match=r"classifier.2 drops at random in training, and others than PyTorch: set its rate"
    ):
        gradcheck.against_torch(net, module, *batch(32))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_every_model_agrees(name, engine):
    options, size = CASES[name]
    net, module = pair(name, **{"width_mult": 1.0} | options)
    x, labels = batch(size)
    before, theirs = net.state(), {key: t.clone() for key, t in module.state_dict().items()}
    errors = gradcheck.against_torch(ENGINES[engine](net), module, x, labels)
    assert list(errors) == ["output", "loss", "dx", *before]
    assert 0 < max(errors.values()) < 1e-9
    text = str(errors)
    assert max(map(len, text.splitlines())) <= 80
    assert "!" not in text
    assert text.split()[:2] == ["error", "-" * 16]
    assert {"layer", "weight", "bias", "running_mean", "running_var"} <= set(text.split())
    # Neither has changed.
    assert net.dtype == np.float32
    assert not any(p.grad.any() for p in net.parameters().values())
    for key, array in net.state().items():
        np.testing.assert_array_equal(array, before[key])
    assert all(torch.equal(t, theirs[key]) for key, t in module.state_dict().items())
    assert all(p.grad is None and p.dtype == torch.float32 for p in module.parameters())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_network_of_ones_own_by_names(dtype):
    net, (x, labels) = own(), batch(12, dtype=dtype)
    names = OWN_NAMES if dtype is np.float32 else {"block.a.conv": "conv", **OWN_NAMES, "fc.bias": "last.bias"}
    errors = gradcheck.against_torch(net, Own(), x, labels, names=names)
    assert max(errors.values()) < 1e-9


def test_a_frozen_part_stays_out_of_it():
    net = vary(models.create("mobilenet-v1-small", width_mult=0.25))
    net.freeze_until("conv2_3")
    x, labels = batch(32)
    errors = gradcheck.against_torch(net, frozen_twin(net), x, labels)
    assert max(errors.values()) < 1e-9
    assert "conv2_3.4.weight" not in errors
    assert {"conv2_3.4.running_mean", "conv2_4.0.weight", "dx"} <= errors.keys()
    with pytest.raises(MbnpError, match=r"conv1\.1 is frozen and .* call eval\(\) on the module's conv1\.1"):
        gradcheck.against_torch(net, torch_network(net), x, labels)


class Nest(nn.Module):
    """Layers under full names, one after another."""

    def __init__(self, parts):
        super().__init__()
        for name, part in parts:
            *path, last = name.split(".")
            place = self
            for step in path:
                if not hasattr(place, step):
                    place.add_module(step, nn.Module())
                place = getattr(place, step)
            place.add_module(last, part)
        self.names = [name for name, _ in parts]

    def forward(self, x):
        for name in self.names:
            x = self.get_submodule(name)(x)
        return x


def test_timms_names():
    net = vary(models.mobilenet_v1(7, 0.125, max_value=6))
    theirs = dict(zip(net.state(), weights.to_torch(net, "timm"), strict=True))
    names = {key.rpartition(".")[0]: other.rpartition(".")[0] for key, other in theirs.items()}
    module = Nest([(names.get(name, name.replace(".", "_")), torch_network(layer)) for name, layer in net.leaves()])
    x, labels = batch(65)
    assert max(gradcheck.against_torch(net, module, x, labels, names="timm").values()) < 1e-9


# -- what is wrong is named --


class WrongWeight(Depthwise):
    def backward(self, dy):
        dx = super().backward(dy)
        self.weight.grad[0, 2, 1] *= 1.001
        return dx


class WrongBias(Linear):
    def backward(self, dy):
        dx = super().backward(dy)
        self.bias.grad[:] /= len(dy)
        return dx


class WrongScale(BatchNorm):
    def backward(self, dy):
        x, mean = self.x, self.mean
        dx = super().backward(dy)
        self.weight.grad += (dy * mean).sum((0, 1, 2)) if x is not None else 0
        return dx


class LeakyBackward(ReLU):
    def backward(self, dy):
        return super().backward(dy) + 1e-5 * dy


class HalfBack(Conv):
    def backward(self, dy):
        return super().backward(dy) / 2


class Off(Depthwise):
    def forward(self, x, train=False):
        return super().forward(x, train) + 1e-6


class NoShortcut(Residual):
    def backward(self, dy):
        self._branch.backward(dy)
        return super(Residual, self).backward(dy)


@pytest.mark.parametrize(
    ("layer", "kind", "message"),
    [
        (
            "conv2_3.0",
            WrongWeight,
            r"the gradient of conv2_3\.0\.weight is wrong at \(0, 2, 1\): mbnp says [-\d.e]+, PyTorch says [-\d.e]+ "
            r"\(error [\d.]+e-\d\d of the largest entry, allowed 1e-09\); 1 of 91 arrays are wrong; finite differences "
            r"find the backward of conv2_3\.0 \(WrongWeight\) wrong, too$",
        ),
        ("fc", WrongBias, r"the gradient of fc\.bias is wrong at \(\d,\).* 1 of 91 .* of fc \(WrongBias\) wrong, too$"),
        ("conv2_5.1", WrongScale, r"gradient of conv2_5\.1\.weight .* of conv2_5\.1 \(WrongScale\) wrong, too$"),
        # The layer has no array: the gradient before it is wrong, and finite differences tell which layer it is.
        (
            "conv2_4.2",
            LeakyBackward,
            r"the gradient of conv2_4\.1\.weight .* of conv2_4\.2 \(LeakyBackward\) wrong, too$",
        ),
        ("conv1.0", HalfBack, r"the gradient of x is wrong .* 1 of 91 .* of conv1\.0 \(HalfBack\) wrong, too$"),
        # The forward comes first: its next statistic is the first array that shows it.
        ("conv2_2.0", Off, r"^conv2_2\.1\.running_mean is wrong at \(\d+,\): mbnp says .* \d+ of 91 arrays are wrong$"),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_planted_mistake_is_found_and_its_layer_named(layer, kind, message, engine):
    net, module = pair()
    dict(net.leaves())[layer].__class__ = kind
    x, labels = batch(32)
    with pytest.raises(MbnpError, match=message) as raised:
        gradcheck.against_torch(ENGINES[engine](net), module, x, labels)
    assert "\n" not in str(raised.value)
    errors = gradcheck.against_torch(ENGINES[engine](net), module, x, labels, tol=math.inf)
    assert max(errors.values()) > 1e-9


class Almost(Linear):
    """Its input's gradient is off by one in ten million."""

    def backward(self, dy):
        return super().backward(dy) * (1 + 1e-7)


def test_a_small_mistake_is_no_rounding():
    net, (x, labels) = own(), batch(12)
    net.layers["fc"].__class__ = Almost
    with pytest.raises(MbnpError, match=r"^the gradient of block\.a\.bn\.bias .* \(error 1\.0e-07"):
        gradcheck.against_torch(net, Own(), x, labels, names=OWN_NAMES)


def test_a_container_that_is_wrong_is_no_layer():
    net, (x, labels) = own(), batch(12)
    net["block"].__class__ = NoShortcut
    message = r"the gradient of stem\.bias .*; each layer from stem to block\.a\.conv agrees with finite differences"
    with pytest.raises(MbnpError, match=message):
        gradcheck.against_torch(net, Own(), x, labels, names=OWN_NAMES)


def test_an_engine_that_is_wrong_has_right_layers(monkeypatch):
    good = training.Plan.backward
    monkeypatch.setattr(training.Plan, "backward", lambda plan, dy, clock: good(plan, 2 * dy, clock))
    net, module = pair()
    message = r"the gradient of fc\.bias .* 54 of 91 .*; fc agrees with finite differences by itself"
    with pytest.raises(MbnpError, match=message):
        gradcheck.against_torch(fused.convert(net), module, *batch(32))


def test_a_statistic_that_is_wrong_is_named():
    net, module = pair()
    net["conv2_4"]["1"].momentum = 0.2
    with pytest.raises(MbnpError, match=r"^conv2_4\.1\.running_mean is wrong .* 2 of 91 arrays are wrong$"):
        gradcheck.against_torch(net, module, *batch(32))


def test_nan_is_an_error():
    net, module = pair()
    x, labels = batch(32)
    x[1, 2, 3, 0] = np.nan
    with pytest.raises(MbnpError, match="mbnp says nan, PyTorch says nan"):
        gradcheck.against_torch(net, module, x, labels)


def test_marks_in_the_table():
    errors = gradcheck.Errors({"output": 1e-12, "a.weight": math.nan, "a.bias": 1e-3, "b.bias": 0.0}, 1e-9)
    assert errors.wrong() == ["a.weight", "a.bias"]
    assert str(errors).splitlines() == [
        "           error",
        "----------------",
        "output  1.0e-12",
        "",
        "layer  weight      bias",
        "-----------------------",
        "a        nan!  1.0e-03!",
        "b              0.0e+00",
    ]


# -- bad input --


class Tuple(Own):
    def forward(self, x):
        return super().forward(x), x


class Detached(Own):
    def forward(self, x):
        return super().forward(x).detach()


class Single(Own):
    def forward(self, x):
        return super().forward(x).float()


class Short(Own):
    def forward(self, x):
        return super().forward(x)[:, :5]


class Broken(Own):
    def forward(self, x):
        return self.last(x)


def changed(attribute, value):
    module = Own()
    setattr(module, attribute, value)
    return module


X, LABELS = batch(12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": Own()}, "net must be a network of mbnp, got Own"),
        ({"net": Conv(3, 5)}, "net must be a network of mbnp, got Conv; for a layer, see gradcheck.layer"),
        ({"module": own()}, r"module must be a torch\.nn\.Module, got Network"),
        ({"module": Own().eval()}, r"the module is in eval mode, .* call module\.train\(\)"),
        (
            {"module": changed("norm", nn.BatchNorm2d(5).eval())},
            r"block\.a\.bn learns, but the module's norm is in eval",
        ),
        (
            {"module": nn.Sequential(Own(), nn.Dropout(0.1))},
            r"the module's 1 drops at random in training: set its p to 0",
        ),
        (
            {"module": changed("conv", nn.Conv2d(5, 5, 1))},
            r"block\.a\.conv\.weight has .* \(5, 5, 3, 3\) .* conv\.weight \(5, 5, 1, 1\)",
        ),
        (
            {"module": changed("last", nn.Linear(5, 7, bias=False))},
            r"no partner for fc\.bias of the network: .* a bias or",
        ),
        (
            {"module": changed("extra", nn.Linear(2, 2))},
            r"no partner for extra\.weight, extra\.bias of the module: the other lacks a layer",
        ),
        (
            {"names": {}},
            r"no partner for stem\.weight, stem\.bias, block\.a\.conv\.weight and 7 more of the network and "
            r"first\.weight, .* of the module: pair layers by names=\{'stem': 'first', \.\.\.\}",
        ),
        (
            {"names": OWN_NAMES | {"head": "last"}},
            "names has 'head', which is no layer of the network: they are stem, relu, block.a.conv and 4 more",
        ),
        ({"names": OWN_NAMES | {"block.a.conv": "first"}}, "no partner for conv.weight, conv.bias of the module"),
        ({"names": "keras"}, "unknown kind of names 'keras'"),
        ({"names": ["conv"]}, r"names must be .* or a dict \{layer of net: layer of module\}, got \['conv'\]"),
        ({"module": Tuple()}, r"the module returns a tuple instead of \(4, 7\)"),
        ({"module": Short()}, r"the module returns \(4, 5\) instead of \(4, 7\)"),
        ({"module": Single()}, r"the module is given float64 and returns torch\.float32"),
        ({"module": Detached()}, "the module returns a tensor without gradients"),
        ({"module": Broken()}, r"the module does not take tensors of \(4, 3, 12, 12\): RuntimeError: "),
        ({"x": X.transpose(0, 3, 1, 2)}, r"channels first; pass x\.transpose\(0, 2, 3, 1\)"),
        ({"x": torch.tensor(X)}, r"x must be a NumPy array \(N, H, W, 3\), got Tensor"),
        ({"x": X[0]}, r"x must have shape \(N, H, W, 3\), got \(12, 12, 3\)"),
        ({"x": X.astype(np.uint8)}, "x is uint8: give normalised images, in float32 or float64"),
        ({"labels": np.eye(7)[LABELS]}, r"labels have the shape \(4, 7\): .* labels\.argmax\(axis=1\)"),
        ({"labels": LABELS.astype(np.float32)}, "labels must be whole numbers, got float32"),
        ({"labels": LABELS[:3]}, r"labels must have the shape \(4,\), got \(3,\)"),
        ({"labels": LABELS + 7}, "labels must be 0 to 6 for 7 classes"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(change, message):
    given = {"net": own(), "module": Own(), "x": X, "labels": LABELS, "names": OWN_NAMES} | change
    with pytest.raises(MbnpError, match=message) as raised:
        gradcheck.against_torch(**given)
    assert "\n" not in str(raised.value)


def test_one_partner_for_two_layers():
    twice = Network({"a": Conv(3, 3, 1), "b": Conv(3, 3, 1), "pool": GlobalAveragePool()}, resolution=4)
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(MbnpError, match="two arrays of the network have the same partner"):
        gradcheck.against_torch(twice, module, *batch(4), names={"a": "0", "b": "0"})


class NoReturn(Network):
    def backward(self, dy):
        super().backward(dy)


def test_a_backward_that_returns_nothing():
    net = own()
    net.__class__ = NoReturn
    with pytest.raises(MbnpError, match="backward returned None instead of the gradient of x"):
        gradcheck.against_torch(net, Own(), X, LABELS, names=OWN_NAMES)


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for call in (
        lambda: gradcheck.against_torch(own(), None, X, LABELS),
        lambda: gradcheck.op_against_torch(np.sin, lambda dy, x: dy * np.cos(x), None, [X]),
    ):
        with pytest.raises(MbnpError, match="install it: pip install torch"):
            call()


# -- operations --

W = np.random.default_rng(1).standard_normal((3, 3, 3, 4))


def forward(x, w):
    return conv.forward(x, w, None, stride=2, padding=1)


def backward(dy, x, w):
    return conv.backward(dy, x, w, stride=2, padding=1)[:2]


def torch_conv(x, w):
    return F.conv2d(x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), stride=2, padding=1).permute(0, 2, 3, 1)


def test_an_operation_agrees():
    before = X.copy(), W.copy()
    errors = gradcheck.op_against_torch(forward, backward, torch_conv, [X, W])
    assert list(errors) == ["output", "dx", "dw"]
    assert max(errors.values()) < 1e-14
    assert np.array_equal(X, before[0])
    assert np.array_equal(W, before[1])
    skipped = gradcheck.op_against_torch(forward, lambda *a: (backward(*a)[0], None), torch_conv, [X, W])
    assert list(skipped) == ["output", "dx"]


def test_an_operation_without_names_and_with_labels():
    labels = np.array([0, 2, 2, 1])
    x = np.random.default_rng(0).standard_normal((4, 3))

    def pick(*inputs):
        return inputs[0][np.arange(4), inputs[1]]

    def back(dy, x, labels):
        dx = np.zeros_like(x)
        dx[np.arange(4), labels] = dy
        return dx, None

    errors = gradcheck.op_against_torch(pick, back, lambda x, labels: x[torch.arange(4), labels], (x, labels))
    assert errors == {"output": 0, "input 0": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"backward": lambda dy, x, w: (backward(dy, x, w)[0], backward(dy, x, w[::-1].copy())[1] * 1.5)},
            r"the gradient of w is wrong at \(\d, \d, \d, \d\): the operation says .*; 1 of 3 arrays are wrong$",
        ),
        ({"forward": lambda x, w: forward(x, w) * 1.01}, r"the output is wrong at \(\d, .*\): the operation says"),
        ({"backward": lambda dy, x, w: dy}, "1 gradients for 2 inputs"),
        ({"backward": lambda dy, x, w: None}, "backward returned None: is its return missing"),
        ({"forward": lambda x, w: None}, "array of numbers, got None: is a return missing"),
        (
            {"backward": lambda dy, x, w: (x, w[0])},
            r"the gradient of w has the shape \(3, 3, 4\), the input \(3, 3, 3, 4\)",
        ),
        (
            {"torch_function": lambda x, w: torch_conv(x, w).permute(0, 3, 1, 2)},
            r"the torch function returns \(4, 4, 6, 6\) instead of \(4, 6, 6, 4\): it permutes",
        ),
        (
            {"torch_function": lambda x, w: F.conv2d(x, w)},
            r"the torch function does not take tensors of \(4, 12, 12, 3\), \(3, 3, 3, 4\): RuntimeError: ",
        ),
        (
            {"torch_function": lambda x, w: forward(x.detach().numpy(), w.detach().numpy())},
            "the torch function returns a ndarray",
        ),
        ({"torch_function": lambda x, w: torch_conv(x, w).detach()}, "returns a tensor without gradients"),
        ({"inputs": None}, "inputs must be a list of arrays, got None"),
    ],
)  # fmt: skip
def test_an_operation_that_does_not_agree(change, message):
    given = {"forward": forward, "backward": backward, "torch_function": torch_conv, "inputs": [X, W]} | change
    with pytest.raises(MbnpError, match=message) as raised:
        gradcheck.op_against_torch(**given)
    assert "\n" not in str(raised.value)


def test_an_input_that_torch_does_not_use_has_no_gradient():
    def zero(dy, x, w):
        return dy, np.zeros_like(w)

    errors = gradcheck.op_against_torch(lambda x, w: x, zero, lambda x, w: x * 1, [X, W])
    assert errors == {"output": 0, "dx": 0, "dw": 0}


def test_layers_of_every_kind_are_their_own_torch():
    """`layers.Layer.torch` says what a layer is in PyTorch; a network of one of each agrees."""
    parts = {"pad": layers.Pad(1), "max": layers.MaxPool(2, 1), "point": layers.Pointwise(3, 4), "relu6": ReLU(6)}
    parts |= {"depth": Depthwise(4, padding="same"), "flat": layers.Flatten(order="HWC"), "fc": Linear(196, 7)}
    net = Network(parts, resolution=6)
    assert max(gradcheck.against_torch(net, torch_network(net), *batch(6)).values()) < 1e-12
