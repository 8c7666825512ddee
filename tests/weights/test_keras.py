"""Keras files against Keras itself, and files that are older, damaged or hostile."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path
from types import MappingProxyType

import h5py
import numpy as np
import pytest

from mbnp import MbnpError, fused, weights
from mbnp.layers import Depthwise
from mbnp.weights import keras
from mbnp.weights.keras import files, reader
from tests.tally import NIGHTLY

SCRIPT = Path(__file__).with_name("keras_models.py")
FORMATS = (".h5", ".weights.h5", ".keras")

# Which models there are, and which of them the three formats can tell apart: without a configuration only MobileNet.
MOBILENETS = [
    *("mobilenet-0.25-128-7", "mobilenet-0.5-224-10", "mobilenet-1.0-224-1000", "mobilenet-0.5-97-3"),
    *("mobilenet-no-top", "transfer", "transfer-half-frozen", "numbered-mobilenet"),
]
OTHERS = ["sequential", "rescaled", "handmade", "separable", "one-pixel", "odds-and-ends"]
OTHERS += ["augmented", "resized", "renamed", "old-swish"]
APPLICATIONS = ["v2", "v3-small", "v3-large", "v3-large-minimalistic", "xception"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Return a folder with the files that keras_models.py writes."""
    folder = tmp_path_factory.mktemp("keras")
    environment = os.environ | {"KERAS_BACKEND": "torch"}
    subprocess.run([sys.executable, SCRIPT, folder], env=environment, check=True, capture_output=True)
    return folder


def outputs(folder, name, path):
    """Return the network, logits of the reference and the fast network, and Keras's (after a softmax, logarithms)."""
    net, saved = keras.load(path), np.load(folder / f"{name}.npz")
    mean, std = (np.array(net.preprocessing[key]) for key in ("mean", "std"))
    x = ((saved["pixels"] / 255 - mean) / std).astype(np.float32)
    ours, y = [net(x), fused.convert(net)(x)], saved["y"]
    if y.ndim == 4:  # a body without a classifier: its last feature map, averaged
        y = y.mean((1, 2))
    if saved["activation"] == "sigmoid":
        y = np.log(y / (1 - y))
    if saved["activation"] == "softmax":
        ours, y = [z - np.log(np.exp(z).sum(1, keepdims=True)) for z in ours], np.log(y)
    return net, ours, y


@pytest.mark.parametrize(
    ("name", "suffix"),
    [(name, suffix) for name in MOBILENETS for suffix in FORMATS]
    + [(name, suffix) for name in OTHERS for suffix in (".h5", ".keras")]
    + [(name, suffix) for name in APPLICATIONS for suffix in (".h5", ".keras")],
)
def test_same_outputs_as_keras(folder, name, suffix):
    net, ours, y = outputs(folder, name, folder / f"{name}{suffix}")
    assert y.std() > 0.01  # outputs that hardly differ would prove nothing
    for z in ours:
        np.testing.assert_allclose(z, y, rtol=0, atol=1e-5 * np.abs(y).max() if name in APPLICATIONS else 1e-4)
    assert net.dtype == np.float32


@pytest.mark.parametrize("name", ["preprocessed", *(["v2", "v3-small"] if NIGHTLY else [])])
def test_what_keras_exports_to_onnx(folder, name):
    net, saved = weights.load(folder / f"{name}.onnx"), np.load(folder / f"{name}.npz")
    x = saved["pixels"] / 127.5 - 1
    if name != "v2":  # whose graph begins after the preprocessing
        np.testing.assert_allclose([*net.preprocessing["mean"], *net.preprocessing["std"]], 0.5, rtol=1e-6)
    np.testing.assert_allclose(net(x.astype(np.float32)), saved["y"], rtol=0, atol=2e-5 * np.abs(saved["y"]).max())


def test_what_comes_with_the_weights(folder):
    net = keras.load(folder / "mobilenet-0.25-128-7.keras")
    assert (net.resolution, net.channels, net.classes) == (128, 3, None)
    assert net.preprocessing == {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert list(net.layers) == ["features", "pool", "classifier"]
    leaves = dict(net.leaves())
    bn, relu = leaves["features.13.4"], leaves["features.13.5"]
    assert (bn.eps, bn.momentum, relu.max_value) == (1e-3, 0.01, 6.0)
    strided = [x for x in leaves.values() if isinstance(x, Depthwise) and x.options["stride"] == (2, 2)]
    assert [layer.options["padding"] for layer in strided] == [((0, 1), (0, 1))] * 4
    assert leaves["features.0.0"].options["padding"] == "same"
    bn = dict(keras.load(folder / "handmade.keras").leaves())["features.3.1"]
    assert (bn.eps, bn.momentum) == (1e-3, 0.1)
    assert keras.load(folder / "mobilenet-0.25-128-7.weights.h5").resolution == 224
    scaled = keras.load(folder / "sequential.keras").preprocessing
    np.testing.assert_allclose(scaled["mean"], np.array([120, 110, 100]) / 255)
    np.testing.assert_allclose(scaled["std"], np.sqrt([3600, 3900, 4100]) / 255)


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("augmented", []),
        ("resized", [r"\(Resizing\) is left to mbnp predict", r"\(CenterCrop\) is left", "answers for every class"]),
    ],
)
def test_what_mbnp_does_not_do_is_said(folder, name, notes):
    said = []
    net = weights.load(folder / f"{name}.keras", say=said.append)
    assert net.resolution == {"augmented": 12, "resized": 16}[name]
    assert len(said) == len(notes)
    for line, note in zip(said, notes, strict=True):
        assert re.search(note, line)


def test_becomes_a_checkpoint_and_trains(folder, tmp_path):
    net = weights.load(folder / "mobilenet-0.25-128-7.h5")
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    weights.save(net, tmp_path / "net.safetensors")
    again = weights.load(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(again(x), net(x))
    assert (again.preprocessing, again.resolution) == (net.preprocessing, net.resolution)
    net.backward(np.ones_like(net.forward(x, train=True)))
    assert all(np.abs(p.grad).max() > 0 for p in net.parameters().values())


# --- TensorFlow's Keras 2, whose files these turn Keras 3's into (as TensorFlow 2.4, 2.12 and 2.15 write them) ---


def keras2_config(model):
    """Return a configuration as Keras 2 writes it: nested lists for inputs, TFOpLambda for arithmetic."""
    config = dict(model["config"])
    nested = {e["config"]["name"] for e in config["layers"] if e["class_name"] in ("Functional", "Sequential")}

    def call(history, kwargs):
        name, at, tensor = history
        return [name, at + (name in nested), tensor, kwargs]

    layers = []
    for entry in config["layers"]:
        if entry["class_name"] in ("Functional", "Sequential"):
            entry = keras2_config(entry) | {k: entry[k] for k in ("name", "inbound_nodes") if k in entry}
        kind, settings = entry["class_name"], dict(entry["config"])
        if kind == "InputLayer":
            settings["batch_input_shape"] = settings.pop("batch_shape")
        calls = []
        for node in entry.get("inbound_nodes", ()):
            history = node["args"][0]["config"]["keras_history"]
            if kind in ("TrueDivide", "Subtract"):
                settings["function"] = {"TrueDivide": "math.truediv", "Subtract": "math.subtract"}[kind]
                kind = "TFOpLambda"
                calls.append(call(history, {"y": node["args"][1], "name": None}))
            else:
                calls.append([call(history, {})])
        known = {"name": entry["name"], "inbound_nodes": calls} if "inbound_nodes" in entry else {}
        layers.append({"class_name": kind, "config": settings, **known})
    config["layers"] = layers
    for key in ("input_layers", "output_layers"):
        if key in config:
            config[key] = [call(config[key], {})[:3]]
    return {"class_name": model["class_name"], "config": config}


def copy_arrays(source, target, rename, **storage):
    def visit(path, item):
        if isinstance(item, h5py.Dataset) and not path.startswith("optimizer"):
            target.create_dataset(rename(path), data=item[()], **storage)

    source.visititems(visit)


@pytest.mark.parametrize("name", ["mobilenet-0.25-128-7", "transfer-half-frozen", "sequential", "handmade"])
@pytest.mark.parametrize("whole", [True, False])
def test_files_of_keras_2(folder, tmp_path, name, whole):
    if not whole and name not in MOBILENETS:
        pytest.skip("needs its configuration")
    path = tmp_path / "model.h5"

    def keras2_name(at):
        owner, _, variable = at.rpartition("/")
        depthwise = variable == "kernel" and source[at].ndim == 4 and source[at].shape[3] == 1
        return f"{owner}/{'depthwise_' * depthwise}{variable}:0"

    with h5py.File(folder / f"{name}.h5") as old, h5py.File(path, "w") as new:
        source = old["model_weights"]
        copy_arrays(source, new.create_group("model_weights") if whole else new, keras2_name)
        if whole:
            new.attrs["model_config"] = json.dumps(keras2_config(json.loads(old.attrs["model_config"]))).encode()
    _, ours, y = outputs(folder, name, path)
    np.testing.assert_allclose(ours[0], y, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["numbered-mobilenet", "transfer"])
@pytest.mark.parametrize("slash", ["/", "\\"])
def test_numbers_with_gaps(folder, tmp_path, name, slash):
    """TensorFlow 2.12 to 2.15 counts layers with weights twice; on Windows the first level has backslashes."""
    path = tmp_path / "model.weights.h5"

    def rename(at):
        parts = at.replace("layers", "_layer_checkpoint_dependencies").split("/")
        for i in range(1, len(parts) - 2, 2):
            stem, _, number = parts[i].rpartition("_")
            if number.isdecimal():
                parts[i] = f"{stem}_{2 * int(number)}"
        return slash.join(parts[:2]) + "/" + "/".join(parts[2:])

    with h5py.File(folder / f"{name}.weights.h5") as old, h5py.File(path, "w") as new:
        copy_arrays(old["/"], new, rename)
    _, ours, y = outputs(folder, name, path)
    np.testing.assert_allclose(ours[0], y, rtol=0, atol=1e-4)


def test_compressed_files(folder, tmp_path):
    path = tmp_path / "model.h5"
    with h5py.File(folder / "handmade.h5") as old, h5py.File(path, "w") as new:
        new.attrs["model_config"] = old.attrs["model_config"]
        copy_arrays(old["model_weights"], new.create_group("model_weights"), str, compression="gzip")
    _, ours, y = outputs(folder, "handmade", path)
    np.testing.assert_allclose(ours[0], y, rtol=0, atol=1e-4)


# --- what must not load ---


def config_of(layers):
    names = {"module": "keras.layers", "registered_name": None}
    entries = [{"class_name": kind, "config": {"name": name, **c}, **names} for kind, name, c in layers]
    return {"class_name": "Sequential", "config": {"name": "model", "layers": entries}}


TINY = [
    ("InputLayer", "input", {"batch_shape": [None, 8, 8, 3]}),
    ("Conv2D", "conv", {"filters": 4, "kernel_size": [3, 3], "padding": "same", "activation": "relu"}),
    ("GlobalAveragePooling2D", "pool", {}),
    ("Dense", "dense", {"units": 2, "activation": "softmax"}),
]


@pytest.fixture
def tiny(tmp_path):
    """Return write(layers, config, order, **arrays) -> path: a small whole-model file, written without Keras."""
    path = tmp_path / "tiny.h5"

    def write(layers=TINY, config=None, order=MappingProxyType({}), **arrays):
        plain = {
            "conv/conv/kernel": np.ones((3, 3, 3, 4), "f"),
            "conv/conv/bias": np.zeros(4, "f"),
            "dense/dense/kernel": np.ones((4, 2), "f"),
            "dense/dense/bias": np.zeros(2, "f"),
        }
        with h5py.File(path, "w") as file:
            file.attrs["model_config"] = json.dumps(config_of(layers)) if config is None else config
            for name, array in (plain | {k.replace("__", "/"): v for k, v in arrays.items()}).items():
                if array is not None:
                    file[f"model_weights/{name}"] = array
            for group, names in order.items():
                file[f"model_weights/{group}"].attrs["weight_names"] = np.array(names, "S")
        return path

    return write


@pytest.fixture
def here(monkeypatch):
    """Run the reader without its process, which is slow to start; refusals are tested with it as well."""

    def run(path):
        try:
            return reader.read(path)
        except reader.Refused as error:
            raise MbnpError(str(error)) from None

    monkeypatch.setattr(files, "_run", run)


def refused(path, match):
    with pytest.raises(MbnpError, match=match) as caught:
        keras.load(path)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400 + len(str(path))


def with_layer(at, *layer):
    return TINY[:at] + [layer] + TINY[at:]


ORDER = {"conv": ["conv/kernel", "conv/bias"], "dense": ["dense/kernel", "dense/bias"]}


@pytest.mark.parametrize(
    ("order", "match"),
    [
        (ORDER, None),
        ({"conv": ORDER["conv"]}, "lists 0 arrays for 'dense', whose configuration has 2"),
        (ORDER | {"conv": ["conv/kernel"]}, "lists 1 arrays for 'conv'"),
        (
            ORDER | {"conv": ["conv/bias", "conv/kernel"]},
            "'conv/conv/bias' stands where layer 'conv' .* has its kernel",
        ),
        (ORDER | {"conv": ["conv/kernel", "other/bias"]}, "lists 'conv/other/bias' and does not have it"),
        (ORDER | {"conv": ["conv/kernel", "../dense/dense/bias"]}, "lists 'conv/../dense/dense/bias' and does not"),
    ],
)
def test_arrays_are_taken_in_the_order_that_the_file_lists(here, tiny, order, match):
    if match:
        refused(tiny(order=order), match)
    else:
        assert keras.load(tiny(order=order))(np.zeros((1, 8, 8, 3), np.float32)).shape == (1, 2)


def test_a_list_of_names_that_is_none_is_refused(tiny):
    path = tiny()
    for names in (np.arange(3), np.array([["a"]], "S"), "conv/kernel"):
        with h5py.File(path, "a") as file:
            file["model_weights/conv"].attrs["weight_names"] = names
        refused(path, "'weight_names' of 'conv' is no list of names")


def changed(name, **changes):
    return [(kind, n, {**c, **changes} if n == name else c) for kind, n, c in TINY]


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"epsilon": [0.1, 0.2]}, "epsilon .0.1, 0.2., where one number"),
        ({"": False}, None),  # no option of any array
    ],
)
def test_settings_of_a_batchnorm(here, tiny, config, match):
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    arrays = {f"bn__bn__{name}": np.ones(4, "f") for name in names}
    path = tiny(with_layer(2, "BatchNormalization", "bn", config), **arrays)
    if match:
        refused(path, match)
    else:
        assert keras.load(path)(np.zeros((1, 8, 8, 3), np.float32)).shape == (1, 2)


def test_oblong_images_are_refused_where_only_they_fit(tiny):
    layers = changed("input", batch_shape=[None, 8, 4, 3])
    assert keras.load(tiny(layers))(np.zeros((1, 8, 8, 3), np.float32)).shape == (1, 2)  # pooling takes any
    layers[2] = ("Flatten", "flat", {})
    kernel = np.ones((8 * 4 * 4, 2), "f")
    refused(tiny(layers, dense__dense__kernel=kernel), "takes images of 8 x 4 only")


def test_tiny_file_is_good(tiny):
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    assert keras.load(tiny())(x).shape == (2, 2)


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        (with_layer(2, "Lambda", "f", {"function": ["4wEA", None, None]}), "'f' .Lambda. holds code"),
        (with_layer(2, "LeakyReLU", "leaky", {}), "'leaky' .LeakyReLU. has no counterpart"),
        (with_layer(2, "__init__", "x", {}), "has no counterpart"),
        (with_layer(2, "Pool", "e\nvil\x1b[2J", {}), "has no counterpart"),
        (with_layer(2, "ReLU", "r", {"negative_slope": 0.1}), "negative_slope"),
        (with_layer(2, "ReLU", "r", {"max_value": float("nan")}), "max_value nan, where a number"),
        (with_layer(2, "ZeroPadding2D", "z", {"padding": 10**9}), "padding 1000000000"),
        (with_layer(2, "Rescaling", "r", {"scale": 2.0}), "after other layers"),
        (with_layer(3, "ZeroPadding2D", "z", {}), "'z' .ZeroPadding2D. comes after the pooling"),
        (with_layer(3, "MaxPooling2D", "m", {}), "'m' .MaxPooling2D. comes after the pooling"),
        (
            with_layer(3, "GlobalAveragePooling2D", "g", {}),
            "'g' .GlobalAveragePooling2D. comes after the pooling",
        ),
        (with_layer(1, "Rescaling", "r", {"scale": 0.0}), "scale pixels"),
        (with_layer(4, "Dense", "dense2", {}), "it has no kernel for layer 'dense2'"),
        (with_layer(4, "ReLU", "r", {}), "'r' .ReLU. comes after the closing"),
        (with_layer(2, "Dense", "dense", {}), "two layers 'dense'"),
        (with_layer(2, "Reshape", "r", {"target_shape": [16, 16]}), "makes .16, 16."),
        (TINY[:1] + TINY[2:], "no layer of its configuration takes 'conv/conv/bias' and 1 more"),
        ([TINY[0], TINY[3], TINY[2], TINY[1]], "kernel of layer 'dense' .* shape .4, 2., not .3, any."),
        (changed("conv", strides=[0, 1]), "strides .0, 1."),
        (changed("conv", strides=[2**70, 1]), "strides"),
        (changed("conv", dilation_rate=2), "dilation_rate 2; mbnp reads 1"),
        (changed("conv", groups=3), "groups 3; mbnp reads 1"),
        (changed("conv", data_format="channels_first"), "channels first"),
        (changed("conv", filters=8), "8 filters and has 4"),
        (changed("conv", kernel_size=[5, 5]), "kernel is"),
        (changed("conv", activation="swish"), "activation 'swish'"),
        (changed("conv", activation="softmax"), "of a feature map"),
        (with_layer(1, "AutoContrast", "a", {}), "'a' .AutoContrast. changes images in inference"),
        (with_layer(1, "ContrastLimitedAdaptiveHistogramEqualization", "c", {}), "'c' .* changes images in inference"),
        (with_layer(1, "RandomCrop", "r", {"height": 4, "width": 4}), "'r' .RandomCrop. gets images of .8, 8."),
        (with_layer(2, "Resizing", "r", {"height": 4, "width": 4}), "'r' .Resizing. comes after other layers"),
        (with_layer(1, "Resizing", "r", {"height": 4, "width": 4, "pad_to_aspect_ratio": True}), "pads images"),
        (with_layer(1, "Resizing", "r", {"height": 0, "width": 4}), "height 0, where"),
        (with_layer(3, "GlobalMaxPooling2D", "g", {}), "comes after the pooling"),
        (with_layer(2, "ReLU", "r", {"max_value": [6, 6]}), "max_value .6, 6., where one number"),
        (changed("conv", padding="reflect"), "padding 'reflect'"),
        (changed("dense", units=3), "3 units and has 2"),
        (changed("dense", use_bias=False), "no layer .* takes 'dense/dense/bias'"),
        (changed("input", batch_shape=[None, 10**9, 8, 3]), "a side of 1000000000"),
        (changed("input", batch_shape=[None, 8, 8]), "its input has shape"),
        (changed("input", batch_shape=[None, 8, 8, 4]), "kernel of layer 'conv' .* shape .3, 3, 3, 4., not"),
    ],
)
def test_networks_that_are_refused(here, tiny, layers, match):
    refused(tiny(layers), match)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"conv__conv__bias": None}, "it has no bias for layer 'conv'"),
        ({"conv__conv__bias": np.zeros(5, "f")}, "bias of layer 'conv' .* has shape .5,., not .4."),
        ({"conv__conv__kernel": np.ones((3, 3, 4, 3), "f")}, "kernel of layer 'conv'"),
        ({"conv__conv__kernel": np.ones((0, 3, 3, 4), "f")}, "kernel of layer 'conv'"),
        ({"dense__dense__kernel": np.full((4, 2), np.nan, "f")}, "NaN"),
        ({"dense__dense__kernel": np.ones((4, 2), "i4")}, "int32, not floating point"),
        ({"dense__dense__kernel": np.ones((4, 2), "c8")}, "no plain numbers"),
        ({"conv__other__bias": np.zeros(4, "f")}, "more than one bias for layer 'conv'"),
        (
            {"stray__stray__kernel": np.zeros(4, "f")},
            "no layer of its configuration takes 'stray/stray/kernel'",
        ),
    ],
)
def test_arrays_that_do_not_fit(here, tiny, arrays, match):
    refused(tiny(**arrays), match)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ("[1, 2", "no JSON"),
        ("[]", "a list, not an object"),
        ("[" * 100_000, "nested too deeply|no JSON"),
        ('{"class_name": "Model"}', "says nothing about a 'Model'"),
        ('{"class_name": "Evil", "config": {"name": "m"}}', "it holds a 'Evil'"),
        ('{"class_name": "Sequential", "config": {"name": "m", "layers": []}}', "lists no layers"),
        (
            '{"class_name": "Sequential", "config": {"name": "m", "layers": [7]}}',
            "something that is no layer: 7",
        ),
        (" " * (5 << 20) + "{}", "more than 4,194,304"),
        (np.arange(3), "is no text"),
    ],
)
def test_configurations_that_are_refused(here, tiny, config, match):
    refused(tiny(config=config), match)


def functional(layers, output="c"):
    def entry(name, kind, inputs):
        nodes = [[[source, 0, 0, {}] for source in inputs]] if inputs else []
        return {"class_name": kind, "name": name, "config": {"name": name}, "inbound_nodes": nodes}

    entries = [entry(*layer) for layer in layers]
    return {
        "class_name": "Functional",
        "config": {"name": "m", "layers": entries, "output_layers": [[output, 0, 0]]},
    }


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ([("a", "InputLayer", []), ("b", "ReLU", ["c"]), ("c", "ReLU", ["b"])], "do not lead from one input"),
        ([("a", "InputLayer", []), ("c", "ReLU", ["c"])], "do not lead from one input"),
        ([("a", "InputLayer", []), ("c", "ReLU", ["nowhere"])], "do not lead .* 'nowhere'"),
        ([("a", "InputLayer", []), ("b", "ReLU", ["a"]), ("c", "Concatenate", ["a", "b"])], "'c' .Conc.* has 2 inputs"),
        ([("a", "InputLayer", []), ("b", "ReLU", ["c"]), ("c", "Add", ["a", "b"])], "do not lead from one input"),
        ([("a", "InputLayer", []), ("b", "InputLayer", []), ("c", "Add", ["a", "b"])], "do not lead from one input"),
        ([("a", "InputLayer", []), ("b", "ReLU", ["a"]), ("c", "ReLU", ["a"])], "'b' is not between"),
        ([("a", "InputLayer", []), ("c", "ReLU", [])], "has no input"),
    ],
)
def test_graphs_that_are_no_sequences(here, tiny, layers, match):
    refused(tiny(config=json.dumps(functional(layers))), match)


def test_a_pipeline_is_its_layers(here, tiny):
    """Keras on PyTorch takes seconds to make one."""
    flip = {"class_name": "RandomFlip", "config": {"name": "f"}}
    scale = {"class_name": "Rescaling", "config": {"name": "s", "scale": 0.01, "offset": 0.0}}
    net = keras.load(tiny(with_layer(1, "Pipeline", "p", {"layers": [flip, scale]})))
    assert net.preprocessing == keras.load(tiny(with_layer(1, "Rescaling", "s", {"scale": 0.01}))).preprocessing
    auto = {"class_name": "AutoContrast", "config": {"name": "a"}}
    refused(tiny(with_layer(1, "Pipeline", "p", {"layers": [flip, auto]})), "'a' .AutoContrast. changes images")


@pytest.mark.parametrize("arguments", [{"training": True}, {"kwargs": {"training": True}}])
def test_layers_that_are_called_for_training_are_refused(here, tiny, arguments):
    config = functional([("a", "InputLayer", []), ("c", "Dropout", ["a"])])
    config["config"]["layers"][1]["inbound_nodes"][0][0][3] = arguments
    refused(tiny(config=json.dumps(config)), "'c' .Dropout. is called with training=True")


def test_models_nested_too_deeply(tiny):
    model = config_of(TINY)
    for _ in range(20):
        model = {"class_name": "Sequential", "config": {"name": "m", "layers": [model]}}
    refused(tiny(config=json.dumps(model)), "nested deeper")


@pytest.mark.parametrize(
    ("forge", "match"),
    [
        (
            lambda g: g.create_dataset("x", data=np.array([b"code"], object), dtype=h5py.string_dtype()),
            "no plain",
        ),
        (lambda g: g.create_dataset("x", data=g.ref, dtype=h5py.ref_dtype), "no plain numbers"),
        (lambda g: g.create_dataset("x", (3,), h5py.vlen_dtype("f4")), "no plain numbers"),
        (lambda g: g.create_dataset("x", (2**40,), "f4"), "claims 4,398,046,511,104 bytes"),
        (
            lambda g: g.create_dataset("x", (2**62,), "f4", chunks=(4,)),
            "claims 18,446,744,073,709,551,616 bytes",
        ),
        (lambda g: g.create_dataset("x", data=np.zeros(10**7, "f"), compression="gzip"), "claims 40,000,000"),
        (
            lambda g: g.create_dataset("x", dtype="f4", shape=(9,), external=[("/etc/passwd", 0, 36)]),
            "another file",
        ),
        (lambda g: g.create_virtual_dataset("x", h5py.VirtualLayout((1,), "f4")), "another file"),
        (lambda g: g.create_dataset("x", data=h5py.Empty("f")), "no plain numbers"),
        (lambda g: g.__setitem__("x", h5py.ExternalLink("/etc/passwd", "/")), "a link to elsewhere"),
        (lambda g: g.__setitem__("x", h5py.SoftLink("/model_weights")), "a link to elsewhere"),
        (lambda g: g.__setitem__("x", g), "a second name"),
        (lambda g: g.__setitem__("x", g["conv/kernel"]), "a second name"),
        (lambda g: g.create_dataset("/".join("x" * 40), data=1.0), "nested too deeply"),
    ],
)
def test_hostile_hdf5(tiny, forge, match):
    path = tiny()
    with h5py.File(path, "a") as file:
        forge(file["model_weights/conv"])
    tracemalloc.start()
    with pytest.raises(reader.Refused, match=match):
        reader.read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 << 20


def test_arrays_of_more_bytes_than_the_file(tiny):
    """Truncate a file of twenty contiguous arrays, so that they claim more than there is."""
    path = tiny(**{f"conv__x{i}": np.zeros(4096, "f") for i in range(20)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "damaged|truncated")


def archive(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries:
            file.writestr(name, content)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ([("../../outside.txt", "x")], "leads outside: '../../outside.txt'"),
        ([("/etc/cron.d/x", "x")], "leads outside"),
        ([("assets\\..\\..\\x", "x")], "leads outside"),
        ([("C:/x", "x")], "leads outside"),
        ([("config.json", "{}")], "'config.json' twice"),
    ],
)
def test_hostile_archives(tmp_path, tiny, extra, match):
    good = [("config.json", json.dumps(config_of(TINY))), ("model.weights.h5", tiny().read_bytes())]
    assert keras.load(archive(tmp_path / "good.keras", good)).resolution == 8
    refused(archive(tmp_path / "bad.keras", good + extra), match)
    assert not (tmp_path.parent / "outside.txt").exists()


def test_archives_that_swell(tmp_path):
    config = ("config.json", json.dumps(config_of(TINY)))
    refused(archive(tmp_path / "a.keras", [config]), "no model.weights.h5")
    refused(
        archive(tmp_path / "b.keras", [config, ("model.weights.h5", bytes(50 << 20))]),
        "claims 52,428,800 bytes",
    )
    refused(
        archive(tmp_path / "c.keras", [("config.json", " " * (5 << 20)), ("model.weights.h5", "")]),
        "config.json claims",
    )


def test_an_archive_whose_names_are_damaged_is_not_taken_for_pytorchs(tmp_path, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    config = json.dumps(config_of(TINY))
    path = archive(tmp_path / "a.keras", [("config.jsom", config), ("model.weights.h\xc8", tiny().read_bytes())])
    with pytest.raises(MbnpError, match=r"no config\.json"):
        weights.load(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_files(folder, tmp_path, suffix):
    whole = (folder / f"mobilenet-0.25-128-7{suffix}").read_bytes()
    path = tmp_path / f"model{suffix}"
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:size])
        refused(path, "damaged|truncated|no Keras file")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        keras.load(tmp_path / f"none{suffix}")


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_order_that_does_not_fit(folder, tmp_path, suffix):
    """Let two layers of the same shape change places: only the names that Keras notes can tell."""
    path = tmp_path / f"model{suffix}"
    path.write_bytes((folder / f"handmade{suffix}").read_bytes())
    inner = path
    if suffix == ".keras":
        with zipfile.ZipFile(path) as file:
            config, content = file.read("config.json"), file.read("model.weights.h5")
        inner = tmp_path / "inner.h5"
        inner.write_bytes(content)
    with h5py.File(inner, "a") as file:
        layers = file["layers"]
        first, second = "depthwise_conv2d_2", "depthwise_conv2d_3"
        layers.move(first, "x")
        layers.move(second, first)
        layers.move("x", second)
    if suffix == ".keras":
        archive(path, [("config.json", config), ("model.weights.h5", inner.read_bytes())])
        refused(path, "its order does not fit")
    else:
        refused(path, "no configuration")


def edit(folder, tmp_path, change):
    path = tmp_path / "model.weights.h5"
    path.write_bytes((folder / "numbered-mobilenet.weights.h5").read_bytes())
    with h5py.File(path, "a") as file:
        change(file["layers"])
    return path


def narrow(layers):
    """Change a block's width where the next block agrees: a network, but not MobileNet's strides."""
    for name, shape in (("conv2d_3/vars/0", (1, 1, 32, 64)), ("conv2d_4/vars/0", (1, 1, 64, 64))):
        del layers[name]
        layers[name] = np.ones(shape, "f")


def scalar(layers):
    """Replace the first kernel by one number without axes."""
    del layers["conv2d/vars/0"]
    layers["conv2d/vars/0"] = np.float32(1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda g: g.__delitem__("depthwise_conv2d_5"), "14 convolutions, 12 depthwise ones"),
        (
            lambda g: g.__delitem__("batch_normalization_5/vars/3"),
            "no configuration, .* which the 3 arrays of",
        ),
        (lambda g: g.__delitem__("conv2d_5/vars/0"), "layer 'conv2d_5' .* has no kernel"),
        (lambda g: g.move("dense", "lstm"), "'lstm' is no layer of a MobileNet"),
        (lambda g: g.copy("dense", g, "dense_1"), "more than one layer after the pooling"),
        (lambda g: g.__setitem__("conv2d/vars/2", np.zeros(3, "f")), "which the 3 arrays of layer 'conv2d'"),
        (scalar, "its channels .0, 16, .* are not MobileNet's"),
        (lambda g: g.__setitem__("stray", np.zeros(3, "f")), "where Keras puts none, 'layers/stray'"),
        (narrow, "its channels .* are not MobileNet's"),
    ],
)
def test_weights_without_configuration(folder, tmp_path, change, match):
    refused(edit(folder, tmp_path, change), match)


@pytest.mark.parametrize(
    ("script", "match"),
    [
        ("import time; time.sleep(60)", "damaged: reading it has not ended after 2 seconds"),
        ("import os; os.abort()", "damaged: the HDF5 library failed"),
        ("raise MemoryError", "damaged: the HDF5 library failed"),
    ],
)
def test_a_reader_that_does_not_survive(tiny, tmp_path, monkeypatch, script, match):
    (tmp_path / "reader.py").write_text(script)
    monkeypatch.setattr(reader, "__file__", str(tmp_path / "reader.py"))
    monkeypatch.setattr(files, "SECONDS", 2)
    refused(tiny(), match)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is known to hold on Linux only")
def test_the_reader_gets_no_more_memory_than_the_file_justifies(tiny):
    code = "import sys, pathlib, reader; reader._limit(1000); bytearray(1 << 30)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(reader.__file__).parent, capture_output=True)
    assert b"MemoryError" in done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is known to hold on Linux only")
def test_the_reader_gets_no_more_time_than_the_file_justifies():
    """HDF5 walks some damaged files round and round."""
    code = "import reader\nreader.SECONDS = 0\nreader._limit(1000)\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(reader.__file__).parent, timeout=60)
    assert done.returncode == -signal.SIGXCPU


def test_single_bytes_that_are_wrong(tiny):
    whole, rng = tiny().read_bytes(), np.random.default_rng(0)
    for at in rng.integers(8, len(whole), 25):
        path = tiny()
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.integers(8)]) + whole[at + 1 :])
        with contextlib.suppress(MbnpError):  # no other error; a changed weight is nothing that anybody could see
            keras.load(path)


def test_without_h5py(tiny, monkeypatch):
    path = tiny()
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused(path, r'pip install "mbnp\[keras\]"')
