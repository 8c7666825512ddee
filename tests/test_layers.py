"""Parameters, versions, states, containers, and what they say of bad input."""

import numpy as np
import pytest

from mbnp import MbnpError, cost, datasets, fused, gradcheck, models
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
    Network,
    Pad,
    Parameter,
    Pointwise,
    ReLU,
    Residual,
    Sequential,
    Squeeze,
    Subsample,
)
from mbnp.ops import softmax_cross_entropy


def gate(*layers):
    return Gate([*layers, HardSigmoid()])


def test_a_gate_wants_a_factor_for_each_channel():
    with pytest.raises(MbnpError, match=r"a gate needs a factor for each of 3 channels, .* make \(1, 1, 2\)"):
        gate(Squeeze(), Pointwise(3, 2)).output_shape((4, 4, 3))


def test_a_gate_shows_what_is_inside():
    net = Network({"se": gate(Squeeze()), "pool": GlobalAveragePool()}, 4)
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)
    found = net.activations(x)
    assert list(found) == ["se.0", "se.1", "se", "pool"]
    np.testing.assert_array_equal(found["se"], x * found["se.1"])
    assert [name for name, *_ in net.walk((4, 4, 3))] == ["se.0", "se.1", "pool"]


def test_assignment_copies_and_raises_the_version():
    p = Parameter(np.zeros((2, 3), np.float32))
    array, version = p.value, p.version
    p.value = np.arange(6.0).reshape(2, 3)
    assert p.value is array
    assert p.value.dtype == np.float32
    assert p.version > version
    with pytest.raises(MbnpError, match=r"shape \(2, 3\), got \(3,\)"):
        p.value = np.zeros(3)


def test_a_cast_takes_another_dtype():
    p = Parameter(np.ones(3, np.float32))
    p.add_grad(np.ones(3, np.float32))
    p.frozen, version = True, p.version
    p.cast(np.float64)
    assert p.value.dtype == p.grad.dtype == np.float64
    assert p.frozen
    assert p.version > version
    np.testing.assert_array_equal(p.value, np.ones(3))
    np.testing.assert_array_equal(p.grad, np.zeros(3))


def test_load_state_changes_all_or_nothing():
    net = models.create("mobilenet-v1-small", width_mult=0.25)
    before = net.state()
    state = {name: array + 1 for name, array in before.items()}
    wrong = state | {"fc.bias": np.zeros(3), "extra": np.zeros(1)}
    del wrong["fc.weight"]
    with pytest.raises(MbnpError, match=r"missing fc.weight, unexpected extra, fc.bias has shape \(3,\)"):
        net.load_state(wrong)
    for name, array in net.state().items():
        np.testing.assert_array_equal(array, before[name])
    net.load_state(state)
    np.testing.assert_array_equal(net.state()["conv1.1.running_mean"], state["conv1.1.running_mean"])


def test_state_is_a_copy():
    net = models.create("resnet20", width_mult=0.25)
    net.state()["linear.bias"][:] = 7
    assert not np.any(net.state()["linear.bias"] == 7)


def test_activations_have_every_layer_by_name():
    net = models.create("resnet20", width_mult=0.25)
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    activations = net.activations(x)
    assert {"conv1", "layer2.0.conv1", "layer2.0", "layer2.0.relu", "linear"} <= set(activations)
    assert activations["layer2.0"].shape == (2, 16, 16, 8)
    np.testing.assert_array_equal(activations["linear"], net(x))
    residual = net["layer2"].layers["0"]
    np.testing.assert_array_equal(activations["layer2.0"], residual(activations["layer1.2.relu"]))


def test_walk_and_forward_agree_on_shapes():
    for name in ("mobilenet-v1-small", "resnet20", "standard-small"):
        net = models.create(name, width_mult=0.25)
        activations = net.activations(np.zeros((1, 32, 32, 3), np.float32))
        rows = list(net.walk((32, 32, 3)))
        assert len(rows) > 20
        for layer, _, _, shape in rows:
            assert activations[layer].shape[1:] == shape, layer


def test_walk_names_the_bad_shape():
    with pytest.raises(MbnpError, match="takes 3 channels, got 4"):
        list(models.create("resnet20").walk((32, 32, 4)))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Residual([Conv(3, 3, padding=1, dtype=np.float64), ReLU(max_value=0.7)]), (2, 4, 4, 3)),
        (Residual([Conv(2, 5, 3, 2, padding=1, dtype=np.float64)], Subsample(2, 5, 2)), (2, 5, 4, 2)),
        (Sequential([Depthwise(3, 3, (2, 1), "same", dtype=np.float64), MaxPool(2, 1)]), (2, 6, 5, 3)),
        (Sequential([Pointwise(3, 4, dtype=np.float64), BatchNorm(4, dtype=np.float64)]), (3, 2, 2, 3)),
        (AveragePool(3, 2, padding=1, count_padding=False), (2, 5, 5, 2)),
        (Sequential([Pad(((1, 0), (2, 3)), (1, 2)), Flatten(order="CHW")]), (2, 3, 2, 2)),
        (Sequential([Pad(1), Flatten(order="HWC")]), (2, 1, 3, 2)),
        (Subsample(2, 5, (3, 2)), (2, 5, 4, 2)),
        (gate(Squeeze(), Pointwise(3, 3, dtype=np.float64)), (2, 4, 3, 3)),
        (gate(GlobalAveragePool(), Linear(3, 3, dtype=np.float64)), (2, 4, 3, 3)),
        (Sequential([HardSwish(), Residual([HardSigmoid()])]), (2, 3, 3, 2)),
    ],
)
def test_gradients_agree_with_finite_differences(layer, shape):
    x = np.random.default_rng(1).standard_normal(shape)

    def backward(dy, x):
        layer.forward(x, train=True)
        return layer.backward(dy)

    gradcheck.compare(lambda x: layer.forward(x, train=True), backward, [x])


def masked(*shape):
    return np.ma.masked_array(np.ones(shape, np.float32), np.zeros(shape))


@pytest.mark.parametrize(
    "take",
    [
        lambda: Network({"conv": Conv(3, 4)}, resolution=4)(masked(2, 4, 4, 3)),
        lambda: fused.convert(Network({"conv": Conv(3, 4)}, resolution=4))(masked(2, 4, 4, 3)),
        lambda: Pad(1)(masked(2, 4, 4, 3)),
        lambda: Subsample(3, 4)(masked(2, 4, 4, 3)),
        lambda: Conv(3, 4)(masked(2, 4, 4, 3)),
        lambda: setattr(Parameter(np.ones(3)), "value", masked(3)),
        lambda: setattr(Parameter(np.ones(3)), "grad", masked(3)),
        lambda: BatchNorm(3).load_state({"weight": masked(3)}, strict=False),
        lambda: datasets.Split(masked(2, 4, 4, 3).astype(np.uint8), np.zeros(2, np.int64)),
        lambda: datasets.Split(np.zeros((2, 4, 4, 3), np.uint8), masked(2).astype(np.int64)),
        lambda: softmax_cross_entropy.forward(np.ones((2, 3)), masked(2).astype(np.int64)),
    ],
)
def test_a_masked_array_is_refused(take):
    with pytest.raises(MbnpError, match=r"is a masked array, and its mask would be lost: pass its \.filled"):
        take()


def test_gradients_add_up_and_frozen_ones_stay():
    layer = Pointwise(3, 2, dtype=np.float64)
    x, dy = np.ones((1, 2, 2, 3)), np.ones((1, 2, 2, 2))
    for _ in range(2):
        layer.forward(x, train=True)
        layer.backward(dy)
    np.testing.assert_array_equal(layer.weight.grad, np.full((3, 2), 8.0))
    layer.bias.frozen = True
    layer.forward(x, train=True)
    layer.backward(dy)
    np.testing.assert_array_equal(layer.bias.grad, [8.0, 8.0])


def test_a_shortcut_with_weights_is_counted():
    net = Network({"r": Residual([Conv(3, 8, 3, 2, padding=1)], Conv(3, 8, 1, 2))}, resolution=4)
    assert [name for name, *_ in net.walk((4, 4, 3))] == ["r.0", "r.shortcut"]
    assert cost.of(net).params == sum(p.value.size for p in net.parameters().values())
    assert set(net.activations(np.zeros((1, 4, 4, 3), np.float32))) == {"r.0", "r.shortcut", "r"}


def test_layers_made_without_a_generator_differ():
    assert not np.array_equal(Pointwise(4, 4).weight.value, Pointwise(4, 4).weight.value)


def test_a_frozen_batchnorm_is_a_constant():
    bn = BatchNorm(3, dtype=np.float64)
    bn.weight.frozen = bn.bias.frozen = True
    x = np.random.default_rng(0).standard_normal((4, 2, 2, 3)) + 5
    np.testing.assert_array_equal(bn.forward(x, train=True), bn.forward(x))
    bn.forward(x, train=True)
    np.testing.assert_allclose(bn.backward(np.ones_like(x)), 1 / np.sqrt(1 + bn.eps))
    np.testing.assert_array_equal(bn.running_mean.value, np.zeros(3))


def test_backward_needs_its_own_forward():
    layer = Sequential([ReLU()])
    layer.forward(np.ones((1, 1, 1, 1)), train=True)
    layer.backward(np.ones((1, 1, 1, 1)))
    with pytest.raises(MbnpError, match=r"ReLU\.backward has nothing to go back through"):
        layer.backward(np.ones((1, 1, 1, 1)))


@pytest.mark.parametrize(
    "layer",
    [
        Conv(3, 3, 1),
        Depthwise(3, 1),
        Pointwise(3, 3),
        BatchNorm(3),
        ReLU(),
        MaxPool(1),
        AveragePool(1),
        Flatten(order="HWC"),
        Subsample(3, 3),
        Linear(3, 3),
        GlobalAveragePool(),
        HardSigmoid(),
        HardSwish(),
        Dropout(),
        Squeeze(),
        gate(Squeeze()),
        Sequential([ReLU()]),
        Residual([ReLU()]),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_forward_is_inference_unless_it_is_told(layer):
    """It saves nothing, which takes memory, and of a training forward before it nothing is left."""
    x = np.ones((2, 3) if isinstance(layer, Linear) else (2, 1, 1, 3), np.float32)
    layer.forward(x, train=True)
    y = layer.forward(x)
    with pytest.raises(MbnpError, match=r"\.backward has nothing to go back through"):
        layer.backward(y)


def test_flatten_orders_its_entries_as_it_is_told():
    x = np.arange(24.0).reshape(2, 2, 3, 2)
    np.testing.assert_array_equal(Flatten(order="HWC")(x), x.reshape(2, 12))
    np.testing.assert_array_equal(Flatten(order="CHW")(x), x.transpose(0, 3, 1, 2).reshape(2, 12))
    with pytest.raises(MbnpError, match=r"Flatten takes \(N, 1, 1, C\), got \(N, 2, 3, 2\)"):
        Flatten()(x)
    with pytest.raises(MbnpError, match="order must be 'HWC', 'CHW' or None, got 'WHC'"):
        Flatten(order="WHC")


def test_a_shortcut_to_fewer_channels_is_refused():
    with pytest.raises(MbnpError, match="takes none away, got 32 in and 16 out"):
        Subsample(32, 16, 2)


def test_pad_puts_zeros_where_it_says():
    x = np.ones((1, 2, 2, 1))
    y = Pad(((1, 0), (0, 2)), (2, 1))(x)
    assert y.shape[1:] == Pad(((1, 0), (0, 2)), (2, 1)).output_shape((2, 2, 1)) == (3, 4, 4)
    np.testing.assert_array_equal(y[:, 1:, :2, 2:3], x)
    assert y.sum() == x.sum()
    for wrong in ({"padding": -1}, {"padding": "same"}, {"channels": (0, -1)}):
        with pytest.raises(MbnpError, match="padding"):
            Pad(**wrong)


@pytest.mark.parametrize("name", models.names())
def test_a_printed_network_lists_layers_shapes_and_parameters(name):
    net = models.create(name, num_classes=7)
    first, head, rule, *rows = str(net).splitlines()
    counted = cost.of(net)
    size = f"images of {net.resolution} x {net.resolution}"
    assert first == f"{name}, {size}; {counted.params:,} parameters"
    assert head.split() == ["layer", "kind", "output", "parameters"]
    assert set(rule) == {"-"}
    assert [row.split()[0] for row in rows] == [row.name for row in counted.rows]
    numbers = [row.split()[-1] for row, counts in zip(rows, counted.rows, strict=True) if counts.params]
    assert sum(int(number.replace(",", "")) for number in numbers) == counted.params
    assert len({len(row) for row, counts in zip(rows, counted.rows, strict=True) if counts.params}) == 1  # aligned
    assert max(map(len, str(net).splitlines())) <= 80
    assert str(fused.convert(net)) == str(net)


def test_a_network_that_does_not_take_its_own_resolution_is_printed_without_shapes():
    net = models.mobilenet_v1_small(num_classes=2, width_mult=0.1)
    net.resolution = 64
    assert "conv1.0  " in str(net)
    assert "x16" not in str(net)


def test_the_options_of_pooling_are_attributes_too():
    for counted in (False, True):
        layer = AveragePool(2, count_padding=counted)
        assert layer.count_padding is layer.config()["count_padding"] is counted


def test_a_network_without_parameters_has_a_type_and_runs():
    net = Network({"relu": ReLU()}, resolution=4)
    assert net.dtype == np.float32
    x = np.linspace(-1, 1, 48, dtype=np.float32).reshape(1, 4, 4, 3)
    np.testing.assert_array_equal(fused.convert(net)(x), np.maximum(x, 0))
