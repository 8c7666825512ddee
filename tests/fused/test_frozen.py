"""The fast engine with frozen layers: what runs as in inference, where backward ends, and that nothing is stale."""

from collections import Counter

import numpy as np
import pytest

from mbnp import fused, models, optim, train
from mbnp.fused import kernels
from mbnp.layers import Pointwise
from mbnp.network import Network
from tests.fused.test_fused import CASES, copy_of, network
from tests.twins import assert_gradients, batch, gradients, relative, vary

TOLERANCE = {np.float64: 1e-10, np.float32: 1e-4}


def freeze(net: Network, until: str | None) -> None:
    if until is None:
        for parameter in net.parameters().values():
            parameter.frozen = False
    else:
        net.freeze_until(until)


@pytest.fixture
def calls(monkeypatch):
    """How often each kernel runs."""
    counted: Counter[str] = Counter()

    def counting(name, kernel):
        return lambda *arguments: counted.update([name]) or kernel(*arguments)

    for name in vars(kernels):
        if name.endswith(("_forward", "_backward", "_inference")) and not name.startswith("_"):
            monkeypatch.setattr(kernels, name, counting(name, getattr(kernels, name)))
    return counted


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("until", ["stem", "one.0", "one.2", "one", "two.0", "two"])
@pytest.mark.parametrize("case", CASES[:5])
def test_law(case, until, dtype):
    """Outputs, statistics and gradients are what the readable layers compute in float64, at odd sizes."""
    stride, padding, channels, cap, n, h, w = case
    readable = network(stride, padding, channels, cap, np.float64)
    other = copy_of(readable, lambda: network(stride, padding, channels, cap, dtype))
    freeze(readable, until)
    freeze(other, until)
    fast = fused.convert(other)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((n, h, w, 3)).astype(np.float32)
    dy = rng.standard_normal((n, 5)).astype(np.float32)
    expected = readable.forward(x.astype(np.float64), train=True)
    readable.backward(dy.astype(np.float64))
    assert relative(fast.forward(x.astype(dtype), train=True), expected) < TOLERANCE[dtype]
    fast.backward(dy.astype(dtype))
    assert_gradients(gradients(fast), gradients(readable), TOLERANCE[dtype])
    for name, buffer in fast.buffers().items():
        assert relative(buffer.value, readable.buffers()[name].value) < TOLERANCE[dtype], name


# -- cost --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("until", "forward", "backward"),
    [
        # folded blocks, then stages that learn (and what of a block is frozen alone): depthwise, pointwise
        (None, (0, 8, 8), (1, 8, 8)),
        ("conv1", (1, 8, 8), (0, 8, 8)),
        ("conv2_3", (4, 5, 5), (0, 5, 5)),
        ("conv2_4.0", (4, 5, 5), (0, 4, 5)),  # its BatchNorm learns
        ("conv2_4.1", (4, 5, 5), (0, 4, 5)),
        ("conv2_7", (8, 1, 1), (0, 1, 1)),
        ("conv2_8", (9, 0, 0), (0, 0, 0)),
    ],
)
def test_only_what_learns_runs_backward(until, forward, backward, calls):
    net = vary(models.mobilenet_v1_small(width_mult=0.25))
    freeze(net, until)
    fast = fused.convert(net)
    x, _ = batch(4, 32, np.float32)
    y = fast.forward(x, train=True)
    ran = (
        calls["stem_inference"] + calls["separable_inference"],
        calls["depthwise_forward"],
        calls["pointwise_forward"],
    )
    assert ran == forward
    assert calls["stem_forward"] == (until is None)
    fast.backward(y)
    assert (calls["stem_backward"], calls["depthwise_backward"], calls["pointwise_backward"]) == backward


def test_only_what_learns_of_a_residual_network_runs_backward(calls):
    net = vary(models.resnet20())
    net.freeze_until("layer2.0")
    fast = fused.convert(net)
    x, _ = batch(2, 32, np.float32)
    fast.backward(fast.forward(x, train=True))
    assert calls["normalise_backward"] == 2 * 5  # two BatchNorms in each of layer2.1 to layer3.2
    for layer in fast._tail[:5]:
        assert getattr(layer, "x", None) is None


def test_frozen_blocks_need_no_buffers_of_a_training_step():
    net = models.mobilenet_v1_small(width_mult=0.25)
    net.freeze_until("conv2_5")
    fast = fused.convert(net)
    x, _ = batch(4, 32, np.float32)
    fast.forward(x, train=True)
    (plan,) = fast._plans.kept.values()
    assert [stage.conv for stage in plan.stages] == [triple.conv for triple in fast._triples[11:]]


def test_frozen_blocks_are_folded_once(monkeypatch):
    folded = []
    for block in (fused.inference.Stem, fused.inference.Separable):
        monkeypatch.setattr(block, "fold", lambda self, fold=block.fold: folded.append(self) or fold(self))
    net = vary(models.mobilenet_v1_small(num_classes=10, width_mult=0.25))
    net.freeze_until("conv2_3")
    fast, opt = fused.convert(net), optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        train.step(fast, opt, *batch(4, 32, np.float32))
    assert len(folded) == 4


# -- nothing stale -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mobilenet-v1-small", "resnet20"])
def test_freezing_between_steps_takes_effect_at_once(name):
    """A converted network and a readable one take the same steps while what is frozen changes."""
    nets = [vary(models.create(name, width_mult=0.25, dtype=np.float64)) for _ in range(2)]
    nets[1].load_state(nets[0].state())
    engines = nets[0], fused.convert(nets[1])
    opts = [optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=1e-2) for net in nets]
    blocks = {"mobilenet-v1-small": ["conv2_2", "conv2_6", "conv2_2.1", "conv2_8", "conv1"]}
    for i, until in enumerate([None, *blocks.get(name, ["conv1", "bn1", "layer2.0.bn1", "layer3"]), None, "conv1"]):
        for net in nets:
            freeze(net, until)
        before = nets[1].state()
        x, y = batch(6, 32, np.float64, seed=i)
        losses = [train.step(engine, opt, x, y) for engine, opt in zip(engines, opts, strict=True)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-9), until
        frozen = {key for key, p in nets[1].parameters().items() if p.frozen}
        for key, array in nets[1].state().items():
            assert relative(array, nets[0].state()[key]) < 1e-8, (until, key)
            stays = key in frozen or key.rpartition(".running")[0] + ".weight" in frozen
            assert np.array_equal(array, before[key]) == stays, (until, key)
        assert relative(engines[1](x), engines[0](x)) < 1e-8, until


def test_a_frozen_weight_that_is_written_to_is_folded_again():
    net = vary(models.mobilenet_v1_small(width_mult=0.25, dtype=np.float64))
    net.freeze_until("conv2_3")
    fast = fused.convert(net)
    x, _ = batch(2, 32, np.float64)
    fast.forward(x, train=True)
    weight = net.parameters()["conv2_2.3.weight"]
    weight.value = 1.5 * weight.value
    mean = net.buffers()["conv2_1.1.running_mean"]
    mean.value = mean.value + 0.1
    assert relative(fast.forward(x, train=True), net.forward(x, train=True)) < 1e-10


def test_an_inference_between_forward_and_backward_changes_nothing():
    net = vary(models.mobilenet_v1_small(width_mult=0.25, dtype=np.float64))
    net.freeze_until("conv2_3")
    fast = fused.convert(net)
    (x1, _), (x2, _) = batch(3, 32, np.float64, seed=1), batch(3, 32, np.float64, seed=2)
    dy = fast.forward(x1, train=True)
    fast.backward(dy)
    expected = {name: g.copy() for name, g in gradients(net).items()}
    for p in net.parameters().values():
        p.grad[...] = 0
    fast.forward(x1, train=True)
    fast(x2)
    net.forward(x2, train=True)
    fast.backward(dy)
    for name, gradient in gradients(net).items():
        np.testing.assert_array_equal(gradient, expected[name], err_msg=name)


def test_a_whole_chain_that_is_frozen_gives_its_output_away():
    blocks = dict(network(1, 1, (5, 6, 7), None, np.float64).layers)
    del blocks["pool"], blocks["fc"]
    net = Network(blocks | {"mix": Pointwise(7, 7, dtype=np.float64)}, resolution=9)
    net.freeze_until("two")
    fast = fused.convert(net)
    x, _ = batch(2, 9, np.float64)
    first = fast.forward(x, train=True)
    kept = first.copy()
    fast.forward(2 * x, train=True)
    np.testing.assert_array_equal(first, kept)
