"""The fast engine with frozen layers: what runs as in inference, where backward ends, and that nothing is stale."""

import functools
from collections import Counter

import numpy as np
import pytest

from mbnp import fused, models, optim, train
from mbnp.fused import inference, kernels
from mbnp.fused.kernels import program
from mbnp.layers import BatchNorm, GlobalAveragePool, Pointwise, ReLU
from mbnp.network import Network
from tests.fused.test_fused import CASES, TOLERANCE, images, network
from tests.twins import assert_converted, batch, gradients, relative, vary


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

    for name in ("conv_forward", "conv_backward", "depthwise_forward", "depthwise_backward", "average_backward"):
        monkeypatch.setattr(kernels, name, counting(name, getattr(kernels, name)))
    monkeypatch.setattr(program, "run_program", counting("run_program", program.run_program))
    return counted


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("until", ["stem", "one.0", "one.2", "one", "two.0", "two", "pool", "fc"])
@pytest.mark.parametrize("case", CASES[:5])
def test_reference_equation(case, until, dtype):
    """Outputs, statistics and gradients are what the reference layers compute in float64, at odd sizes."""
    stride, padding, channels, max_value, n, h, w = case
    build = functools.partial(network, stride, padding, channels, max_value)
    assert_converted(build, images(n, h, w), dtype, TOLERANCE[dtype], prepare=lambda net: net.freeze_until(until))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    "frozen",
    ["one.0.weight", "one.1.weight", "one.1.bias", "stem.0.weight stem.1.weight", "two.3.weight two.4.bias", "fc.bias"],
)
def test_reference_equation_with_single_parameters_frozen(frozen, dtype):
    def freeze(net):
        for name in frozen.split():
            net.parameters()[name].frozen = True

    for needs_dx in (False, True):
        build = functools.partial(network, 2, 1, (5, 7, 3), 6.0)
        fast = assert_converted(build, images(3, 8, 9), dtype, TOLERANCE[dtype], needs_dx, prepare=freeze)
        assert not any(fast.parameters()[name].grad.any() for name in frozen.split())


# -- cost --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("until", "forward", "backward"),
    [
        # (convolutions and linear layers, depthwise convolutions) of a training pass; what is before is inference
        (None, (10, 8), (10, 8)),
        ("conv1", (9, 8), (9, 8)),
        ("conv2_3", (6, 5), (6, 5)),
        ("conv2_4.0", (6, 5), (6, 4)),  # its BatchNorm learns
        ("conv2_4.1", (6, 4), (6, 4)),
        ("conv2_7", (2, 1), (2, 1)),
        ("conv2_8", (1, 0), (1, 0)),
        ("fc", (0, 0), (0, 0)),
    ],
)
def test_only_what_learns_runs_backward(until, forward, backward, calls):
    net = vary(models.mobilenet_v1_small(width_mult=0.25))
    freeze(net, until)
    fast = fused.convert(net)
    x, _ = batch(4, 32, np.float32)
    y = fast.forward(x, train=True)
    assert (calls["conv_forward"], calls["depthwise_forward"]) == forward
    assert calls["run_program"] == (until is not None)
    fast.backward(y)
    assert (calls["conv_backward"], calls["depthwise_backward"]) == backward
    assert calls["average_backward"] == (until not in ("conv2_8", "fc"))
    assert calls["run_program"] == (until is not None)


@pytest.mark.parametrize(
    ("until", "first"),
    [
        (None, "conv1"),
        ("layer1.1", "layer1.2.conv1"),
        ("layer1.1.conv1", "layer1.1.conv1"),  # its BatchNorm learns
        ("layer2.0", "layer2.1.conv1"),
        ("layer2.0.bn1", "layer2.0.conv2"),
        ("layer3.2", "linear"),
    ],
)
def test_only_what_learns_of_a_residual_network_runs_backward(until, first):
    net = vary(models.resnet20())
    freeze(net, until)
    fast = fused.convert(net)
    x, _ = batch(2, 32, np.float32)
    with fast.timed() as spent:
        fast.backward(fast.forward(x, train=True))
    steps = [line[15:].split(" + ")[0] for line in fast.report().splitlines()]
    learning = set(steps[steps.index(first) :]) - ({"layer2.0.shortcut"} if until == "layer2.0.bn1" else set())
    assert {names[0] for names, timing in spent.items() if timing.backward > 0} == learning


def test_frozen_blocks_need_no_memory_of_a_training_step():
    net = models.mobilenet_v1_small(width_mult=0.25)
    net.freeze_until("conv2_5")
    fast = fused.convert(net)
    x, _ = batch(4, 32, np.float32)
    fast.forward(x, train=True)
    ((frozen, plan),) = fast._plans.kept.values()
    assert frozen == 11
    assert [step.operation.names[0] for step in plan.steps] == [
        *(f"conv2_{block}.{layer}" for block in (6, 7, 8) for layer in (0, 3)),
        "pool",
        "fc",
    ]


def test_frozen_blocks_are_folded_once(monkeypatch):
    folded = []
    fold = inference.fold
    monkeypatch.setattr(inference, "fold", lambda *layers: folded.append(layers) or fold(*layers))
    net = vary(models.mobilenet_v1_small(num_classes=10, width_mult=0.25))
    net.freeze_until("conv2_3")
    fast, opt = fused.convert(net), optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        train.step(fast, opt, *batch(4, 32, np.float32))
    assert len(folded) == 7


# -- nothing stale -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mobilenet-v1-small", "resnet20"])
def test_freezing_between_steps_takes_effect_at_once(name):
    """A converted network and the reference network take the same steps while what is frozen changes."""
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


@pytest.mark.parametrize("after", [[BatchNorm(10)], [ReLU(0.1), BatchNorm(10)]], ids=["batchnorm", "relu first"])
def test_a_frozen_beginning_may_end_flat(after):
    """What learns first may be a layer without a kernel, which reads (N, C)."""
    net = Network(dict(enumerated(Pointwise(3, 10), GlobalAveragePool(), *after)), resolution=4)
    for parameter in net.layers["0"].parameters().values():
        parameter.frozen = True
    x, fast = images(5, 4, 4), fused.convert(net)
    expected = net.forward(x, train=True)
    net.backward(x[:, 0, 0, :1] * np.ones(10, np.float32))
    found = {name: p.grad.copy() for name, p in net.parameters().items()}
    optim.SGD(net.parameters(), lr=0.1).zero_grad()
    assert relative(fast.forward(x, train=True), expected) < 1e-5
    fast.backward(x[:, 0, 0, :1] * np.ones(10, np.float32))
    for name, p in net.parameters().items():
        assert relative(p.grad, found[name]) < 1e-5 or not found[name].any()


def enumerated(*layers):
    return ((str(i), layer) for i, layer in enumerate(layers))
