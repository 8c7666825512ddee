"""MobileNetV2, MobileNetV3 and Xception against models in PyTorch that are written from the papers."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mbnp import cost, fused, models, optim, train, weights
from mbnp.fused import ahead
from tests.models import papers
from tests.tally import NIGHTLY
from tests.twins import assert_gradients, batch, gradients, relative, tensor, torch_network, undropped, vary

COUNTS = [  # parameters, and MACs at the paper's resolution
    ("mobilenet-v2", 3_504_872, 300_774_272),
    ("mobilenet-v3-large", 5_483_032, 216_589_760),
    ("mobilenet-v3-small", 2_542_856, 56_510_400),
    ("xception", 22_855_952, 8_357_403_496),
]


@pytest.mark.parametrize(("name", "params", "macs"), COUNTS)
def test_counts(name, params, macs):
    counted = cost.of(models.create(name))
    assert (counted.params, counted.macs) == (params, macs)


def test_counts_that_differ_between_codes():
    assert cost.of(models.mobilenet_v2_cifar()).params == 2_296_922
    assert cost.of(models.mobilenet_v3_large(width_mult=0.75)).params == 3_993_528  # Keras's, and the paper's 4.0 M
    assert sum(a.size for a in models.xception().state().values()) == 22_910_480  # Keras counts statistics, too
    for name, expected in (("mobilenet-v3-large", 215_082_560), ("mobilenet-v3-small", 56_051_648)):
        net = models.create(name)
        rows = cost.of(net).rows
        assert sum(row.macs for row in rows if ".fc" not in row.name) == expected  # without squeeze-and-excite


WIDTHS = {"mobilenet-v2": (0.35, 1.4), "mobilenet-v2-cifar": (0.25, 1.0), "xception": (1.0,)}
WIDTHS |= dict.fromkeys(("mobilenet-v3-large", "mobilenet-v3-small"), (0.5, 1.25))
PAPERS = {
    "mobilenet-v2": papers.mobilenet_v2,
    "mobilenet-v2-cifar": papers.MobileNetV2Cifar,
    "mobilenet-v3-large": lambda width, classes: papers.mobilenet_v3("large", width, classes),
    "mobilenet-v3-small": lambda width, classes: papers.mobilenet_v3("small", width, classes),
    "xception": lambda width, classes: papers.Xception(classes),
}
# Images so large that every BatchNorm has 16 numbers a channel or more.
SIZE = {"mobilenet-v2": 67, "mobilenet-v2-cifar": 31, "xception": 75} | dict.fromkeys(list(PAPERS)[2:4], 66)
IMAGES = 4
CASES = [(name, width, "readable") for name, widths in WIDTHS.items() for width in (widths if NIGHTLY else widths[:1])]
# Xception is large, and the engine meets its kind of block in xception-cifar, too.
CASES += [(name, width, "fused") for name, width, _ in CASES if NIGHTLY or name != "xception"]


def pair(name, width, classes=7):
    """Ours and the paper's, with the same weights, in float64."""
    net = undropped(vary(models.create(name, num_classes=classes, width_mult=width, dtype=np.float64)))
    other = PAPERS[name](width, classes).double()
    for module in other.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    state = weights.to_torch(net)
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    return net, other


@pytest.mark.parametrize(("name", "width", "engine"), CASES)
def test_a_network_is_that_of_its_paper(name, width, engine):
    net, other = pair(name, width)
    run = fused.convert(net) if engine == "fused" else net
    x, _ = batch(IMAGES, SIZE[name], np.float64)
    with torch.no_grad():
        assert relative(run.forward(x), other.eval()(tensor(x)).numpy()) < 1e-10
    y, expected = run.forward(x, train=True), other.train()(tensor(x))
    assert relative(y, expected.detach().numpy()) < 1e-10
    dy = np.random.default_rng(5).standard_normal(y.shape)
    run.backward(dy)
    expected.backward(torch.from_numpy(dy))
    ours = models.create(name, num_classes=7, width_mult=width, dtype=np.float64)
    weights.from_torch(ours, other.state_dict())
    for key, buffer in net.buffers().items():
        assert relative(buffer.value, ours.buffers()[key].value) < 1e-10, key
    weights.from_torch(ours, other.state_dict() | {key: p.grad for key, p in other.named_parameters()})
    assert_gradients(gradients(net), {key: p.value for key, p in ours.parameters().items()}, 1e-10)


@pytest.mark.parametrize("name", PAPERS if NIGHTLY else ["mobilenet-v3-small"])
@pytest.mark.parametrize("engine", ["readable", "fused"])
def test_ten_training_steps(name, engine):
    net, other = pair(name, WIDTHS[name][0])
    run = fused.convert(net) if engine == "fused" else net
    options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
    opt, torch_opt = optim.SGD(net.parameters(), **options), torch.optim.SGD(other.train().parameters(), **options)
    for i in range(10):
        x, y = batch(16, SIZE[name], np.float64, seed=i, classes=7)  # of fewer, rounding grows a hundred times faster
        loss = train.step(run, opt, x, y)
        torch_opt.zero_grad()
        expected = F.cross_entropy(other(tensor(x)), torch.from_numpy(y))
        expected.backward()
        torch_opt.step()
        assert loss == pytest.approx(expected.item(), rel=1e-8)


@pytest.mark.parametrize("name", ["mobilenet-v3-small-cifar", "xception-cifar"])
def test_the_small_ones_for_32_pixels(name):
    """Of no paper: against what their layers say of themselves."""
    net = undropped(vary(models.create(name, dtype=np.float64, width_mult=0.5)))
    other = torch_network(net).double().train()
    x, _ = batch(IMAGES, 32, np.float64)
    for run in (net, fused.convert(net)):
        for p in net.parameters().values():
            p.grad[...] = 0
        y, expected = run.forward(x, train=True), other(tensor(x))
        assert relative(y, expected.detach().numpy()) < 1e-10
        dy = np.random.default_rng(5).standard_normal(y.shape)
        run.backward(dy)
        other.zero_grad()
        expected.backward(torch.from_numpy(dy))
        theirs = models.create(name, dtype=np.float64, width_mult=0.5)
        weights.from_torch(theirs, other.state_dict() | {key: p.grad for key, p in other.named_parameters()})
        assert_gradients(gradients(net), {key: p.value for key, p in theirs.parameters().items()}, 1e-10)


def test_every_convolution_of_mobilenet_v2_is_in_a_fused_step():
    operations = [line.split()[0] for line in fused.convert(models.mobilenet_v2()).report().splitlines()]
    assert operations.count("conv") == 36
    assert operations.count("depthwise") == 17
    assert operations.count("sum") == 10


@pytest.mark.parametrize("engine", [lambda net: net, fused.convert])
def test_dropout_is_the_same_in_both_engines(engine):
    nets = [models.mobilenet_v3_small_cifar(num_classes=5, width_mult=0.25, dtype=np.float64) for _ in range(2)]
    ahead.signatures(nets[1])  # rehearses the engine, and draws nothing
    run = engine(nets[1])
    x, y = batch(8, 32, np.float64, classes=5)
    opts = [optim.SGD(net.parameters(), 0.01) for net in nets]
    for _ in range(3):
        assert train.step(nets[0], opts[0], x, y) == pytest.approx(train.step(run, opts[1], x, y), rel=1e-9)
