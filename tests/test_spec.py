"""Networks as plain JSON: any network round-trips, and a hostile description ends in one line."""

import copy
import json
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy

from mbnp import MbnpError, layers, models, weights
from mbnp.errors import short
from mbnp.layers import Gate, Network, Residual, Sequential
from mbnp.spec import KINDS, build, describe
from tests.twins import batch, vary


def every_kind(dtype=np.float32):
    """A network with a layer of every kind, and with options that are not the defaults."""
    main = {
        "pad": layers.Pad(((0, 1), (0, 1)), (0, 1)),
        "conv": layers.Conv(4, 5, (3, 5), (2, 1), "same", dtype=dtype),
        "bn": layers.BatchNorm(5, eps=1e-3, momentum=0.01, dtype=dtype),
        "act.capped": layers.ReLU(6),
        "same": Residual({"dw": layers.Depthwise(5, 3, 1, ((0, 2), (2, 0)), bias=False, dtype=dtype)}),
        "less": Residual(
            Sequential([layers.Pointwise(5, 9, dtype=dtype), layers.MaxPool(3, 2, 1)]).layers,
            layers.Subsample(5, 9, 2),
        ),
        "inner": Sequential([layers.AveragePool(2, 1, 1, count_padding=False), layers.ReLU()]),
        "swish": layers.HardSwish(),
        "gate": Gate({"mean": layers.Squeeze(), "fc": layers.Pointwise(9, 9, dtype=dtype), "s": layers.HardSigmoid()}),
        "square": Sequential({"deep": Sequential([layers.Conv(9, 4, 1, dtype=dtype)])}),
        "flat": layers.Flatten("a hint", order="CHW"),
        "dropout": layers.Dropout(0.3, seed=0),
        "head": layers.Linear(4 * 6 * 10, 3, dtype=dtype),
    }
    return vary(Network(main, resolution=17))


def test_every_kind_of_layer_is_described():
    described = {type(layer) for _, layer in every_kind().leaves()} | {layers.GlobalAveragePool}
    assert described == set(KINDS.values())
    public = {getattr(layers, name) for name in layers.__all__}
    containers = {layers.Network, layers.Sequential, layers.Residual, layers.Gate, layers.Pyramid}
    rest = containers | {layers.Layer, layers.Parameter, layers.Buffer}
    assert described == public - rest


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_network_of_its_own_round_trips_through_a_file(tmp_path, dtype):
    net = every_kind(dtype)
    net.classes = ["cat", "dog", "eel"]
    net.preprocessing = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0], "order": "bgr"}
    weights.save(net, tmp_path / "net.safetensors")
    again = weights.load(tmp_path / "net.safetensors")
    x, _ = batch(2, 17, dtype)
    np.testing.assert_array_equal(again(x), net(x))
    assert again.arch == json.loads(json.dumps(describe(net))) == describe(again)
    assert (again.classes, again.preprocessing, again.resolution) == (net.classes, net.preprocessing, 17)


@pytest.mark.parametrize("name", models.names())
def test_models_are_described_too(name):
    net = vary(models.create(name, num_classes=3, width_mult=0.25))
    again = build(describe(net))
    again.load_state(net.state())
    x, _ = batch(2, 32, np.float32)
    np.testing.assert_array_equal(again(x), net(x))


def test_a_changed_network_is_saved_as_it_is(tmp_path):
    net = models.create("mobilenet-v1-small", num_classes=3, width_mult=0.25)
    net.layers["fc"] = layers.Linear(128, 5)
    net.layers["conv1"].layers["2"] = layers.ReLU(6)
    weights.save(net, tmp_path / "net.safetensors")
    again = weights.load(tmp_path / "net.safetensors")
    assert (again.num_classes, again.layers["conv1"]["2"].max_value) == (5, 6)
    x, _ = batch(2, 32, np.float32)
    np.testing.assert_array_equal(again(x), net(x))


def test_what_cannot_be_described(tmp_path):
    class Own(layers.ReLU):
        pass

    net = Network({"a": layers.Pointwise(3, 2), "b": Sequential([Own()])}, resolution=8)
    with pytest.raises(MbnpError, match=r"layer b\.0 is a Own, and a checkpoint can hold Conv, "):
        weights.save(net, tmp_path / "net.safetensors")
    net = Network({"a": layers.Pointwise(3, 2), "b": layers.BatchNorm(3)}, resolution=8)
    with pytest.raises(MbnpError, match=r"b cannot follow .*: BatchNorm normalises 3 channels, got 2"):
        weights.save(net, tmp_path / "net.safetensors")
    net = models.create("mobilenet-v1-small", num_classes=3, width_mult=0.25)
    net.classes = ["a"]
    with pytest.raises(MbnpError, match="it names 1 classes for 3 outputs"):
        weights.save(net, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


# -- hostile descriptions ----------------------------------------------------------------------------------

CONV = {
    "name": "c",
    "kind": "conv",
    "c_in": 3,
    "c_out": 2,
    "kernel": 3,
    "stride": 1,
    "padding": 1,
    "bias": True,
}
BN = {"name": "n", "kind": "batchnorm", "channels": 2, "eps": 1e-5, "momentum": 0.1}
RELU = {"name": "r", "kind": "relu", "cap": None}
GOOD = {"name": "layers", "resolution": 8, "channels": 3, "layers": [CONV, BN, RELU]}


def nested(depth):
    inner = [RELU]
    for _ in range(depth):
        inner = [{"name": "s", "kind": "sequential", "layers": inner}]
    return inner


def seq(name, *inner):
    return {"name": name, "kind": "sequential", "layers": list(inner)}


def residual(name, inner, shortcut):
    return {"name": name, "kind": "residual", "layers": inner, "shortcut": shortcut}


BAD = [
    (3, "its architecture is 3"),
    ({"name": "layers"}, "lacks 'channels'"),
    (GOOD | {"more": 1}, "has an unknown 'more'"),
    (GOOD | {"resolution": "8"}, "the resolution of the network is '8'"),
    (GOOD | {"channels": True}, "the channels of the network is True"),
    (GOOD | {"layers": []}, "lists no layers"),
    (GOOD | {"layers": {"c": CONV}}, "lists no layers"),
    (GOOD | {"layers": [RELU]}, "no layer with weights"),
    (GOOD | {"layers": ["conv"]}, "a layer of the network is 'conv'"),
    (GOOD | {"layers": [CONV, RELU | {"kind": "rely"}]}, "did you mean 'relu'"),
    (GOOD | {"layers": [CONV, RELU | {"kind": ["relu"]}]}, "unknown kind of layer r"),
    (GOOD | {"layers": [CONV, RELU | {"kind": "__import__('os')"}]}, "unknown kind"),
    (GOOD | {"layers": [CONV, RELU | {"cap": float("nan")}]}, "the cap of r is nan"),
    (GOOD | {"layers": [CONV, RELU | {"cap": -1}]}, "the cap of r is -1"),
    (GOOD | {"layers": [CONV, RELU | {"cap": 10**400}]}, "the cap of r is 1000"),
    (GOOD | {"layers": [CONV, BN | {"eps": "0"}]}, "the eps of n is '0'"),
    (GOOD | {"layers": [CONV, BN | {"eps": None}]}, "the eps of n is None"),
    (GOOD | {"layers": [CONV, BN | {"dtype": "object"}]}, "has an unknown 'dtype'"),
    (GOOD | {"layers": [CONV | {"kernel": [3]}]}, "the kernel of c"),
    (GOOD | {"layers": [CONV | {"stride": 0}]}, "the stride of c is 0"),
    (GOOD | {"layers": [CONV | {"padding": "valid"}]}, "the padding of c is 'valid'"),
    (GOOD | {"layers": [CONV | {"padding": -1}]}, "the padding of c is -1"),
    (GOOD | {"layers": [CONV | {"padding": 1.5}]}, "the padding of c is 1.5"),
    (GOOD | {"layers": [CONV | {"bias": 1}]}, "the bias of c is 1"),
    (GOOD | {"layers": [CONV | {"c_out": 10**30}]}, "the c_out of c"),
    (GOOD | {"layers": [CONV | {"c_out": 999_999, "c_in": 999_999, "kernel": 999_999}]}, "its layers need"),
    (GOOD | {"layers": [CONV | {"padding": 999_999}]}, "make feature maps of"),
    (GOOD | {"layers": [CONV | {"kernel": 20}]}, "does not fit"),
    (GOOD | {"layers": [CONV, CONV]}, "two layers have the name c"),
    (GOOD | {"layers": [CONV, seq("s", RELU), seq("s", BN)]}, "two layers have the name s"),
    (GOOD | {"layers": [CONV, seq("c.d", RELU)]}, "below that of layer c"),
    (GOOD | {"layers": [CONV, RELU | {"name": "c.weight"}]}, "below that of layer c"),
    (
        GOOD | {"layers": [seq("a", CONV | {"name": "b"}), RELU | {"name": "a.b"}]},
        "two layers have the name a.b",
    ),
    (
        GOOD | {"layers": [CONV, residual("q", [RELU | {"name": "shortcut"}], RELU | {"name": "shortcut"})]},
        "two",
    ),
    (GOOD | {"layers": [CONV, residual("q", [RELU], RELU | {"name": "other"})]}, "shortcut"),
    (GOOD | {"layers": [CONV, residual("q", [CONV | {"c_in": 2, "c_out": 1}], None)]}, "adds feature maps"),
    (GOOD | {"layers": [CONV, BN | {"channels": 3}]}, "normalises 3 channels, got 2"),
    (GOOD | {"layers": [CONV, CONV | {"name": "d"}]}, "takes 3 channels, got 2"),
    *[
        (GOOD | {"layers": [CONV, RELU | {"name": name}]}, "has the name")
        for name in ("", ".", "a..b", "a.", "x" * 201, "a\nb", 5, None, ["a"])
    ],
    (GOOD | {"layers": [CONV, *nested(16)]}, "more than 16 deep"),
    (GOOD | {"layers": [CONV, *[RELU | {"name": str(i)} for i in range(10_000)]]}, "more than 10,000 layers"),
]


@pytest.mark.parametrize(("description", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_descriptions_are_refused_before_they_cost_memory(tmp_path, description, message):
    before = copy.deepcopy(description)
    net = build(GOOD)
    path = tmp_path / "net.safetensors"
    metadata = {"format": "mbnp 1", "arch": json.dumps(description), "resolution": "8", "classes": "null"}
    spare = {"spare": np.zeros(10_000, np.float32)}
    safetensors.numpy.save_file(net.state() | spare, path, metadata | {"preprocessing": "null"})
    tracemalloc.start()
    with pytest.raises(MbnpError, match="not a usable checkpoint") as caught:
        weights.load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert peak < 20_000_000
    assert description == before


@pytest.mark.parametrize(
    "arch",
    [{}, 3, {"name": ["resnet20"]}, {"name": "resnet20", "num_classes": None}, {"name": "resnet20", "width_mult": "x"}]
    + [{"name": "resnet20", "num_classes": "a", "width_mult": 1e11}, {"name": "resnet20", "width_mult": 1e300}]
    + [{"name": "resnet20", "seed": True}, {"name": "resnet21"}, {"name": "resnet20", "depth": 3}],
    ids=str,
)
def test_what_no_builder_takes_is_refused(arch):
    with pytest.raises(MbnpError):
        models.from_description(arch, numbers=1000)


def test_a_value_of_any_size_fits_a_message():
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    for value in (10**5000, nested, ["x"] * 10**6, "\n" * 10**6, {"k": [1] * 9}, float("nan")):
        assert short(value).isprintable()
        assert len(short(value)) <= 60


def test_the_good_one_is_good(tmp_path):
    net = build(GOOD | {"layers": [CONV, BN, RELU, *nested(15)]})
    weights.save(net, tmp_path / "net.safetensors")
    assert weights.load(tmp_path / "net.safetensors").num_classes == 2


# -- new heads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in models.names() if not name.startswith("ssd")])
@pytest.mark.parametrize("num_classes", [3, 5])
def test_a_new_head_keeps_the_body(name, num_classes):
    net = vary(models.create(name, num_classes=3, width_mult=0.25))
    net.classes, net.preprocessing = list("abc"), {"mean": [0.5] * 3, "std": [0.5] * 3}
    before = net.state()
    *_, head = (name for name, layer in net.leaves() if layer.parameters())
    new = models.with_new_head(net, num_classes, seed=1)
    assert new.arch == net.arch | {"num_classes": num_classes}
    assert (new.classes, new.preprocessing, new.resolution) == (None, net.preprocessing, net.resolution)
    for key, array in new.state().items():
        same = array.shape == before[key].shape and np.array_equal(array, before[key])
        assert same == (not key.startswith(f"{head}.")), key
        new.variables()[key].value[...] = 7
        np.testing.assert_array_equal(net.state()[key], before[key])


def test_a_new_head_learns_and_what_was_frozen_stays_frozen():
    net = models.mobilenet_v1_small(width_mult=0.25)
    net.freeze_until("fc")
    net.parameters()["conv2_8.3.weight"].frozen = False
    frozen = {name: p.frozen for name, p in models.with_new_head(net, 3).parameters().items()}
    assert frozen == {n: n not in ("conv2_8.3.weight", "fc.weight", "fc.bias") for n in frozen}


def test_new_heads_depend_on_the_seed_alone():
    net = every_kind()
    one, two, again = (models.with_new_head(net, 4, seed).state()["head.weight"] for seed in (1, 2, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - two).max() > 0


def test_the_head_may_be_a_1x1_convolution_and_nothing_else():
    stem = layers.Conv(3, 8, 3)
    for head in (layers.Pointwise(8, 2), layers.Conv(8, 2, 1)):
        net = Network({"stem": stem, "head": head, "pool": layers.GlobalAveragePool()}, resolution=8)
        x, _ = batch(2, 8, np.float32)
        assert models.with_new_head(net, 6)(x).shape == (2, 6)
    net = Network({"stem": stem, "pool": layers.GlobalAveragePool()}, resolution=8)
    with pytest.raises(MbnpError, match="no head to replace: its last weights are in stem, a conv"):
        models.with_new_head(net, 6)
    with pytest.raises(MbnpError, match="num_classes must be"):
        models.with_new_head(every_kind(), 0)


# -- what could not be built again is not described --------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("conv", "conv.relu"), "below that of layer conv"),
        (("conv", ""), "has the name"),
        (("a" * 300, "b"), "name"),
    ],
)
def test_names_that_would_be_refused_are_refused_before_they_are_saved(tmp_path, names, message):
    first, second = names
    net = Network({first: layers.Conv(3, 4, 3), second: layers.ReLU()}, resolution=8)
    with pytest.raises(MbnpError, match=message):
        weights.save(net, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())
