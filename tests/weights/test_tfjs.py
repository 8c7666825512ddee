"""TensorFlow.js's weights: against TensorFlow.js itself and PyTorch, and files that are damaged or hostile.

tests/fixtures/tfjs has a model of the layers format and one of the graph format, and what TensorFlow.js computes.
"""

import copy
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mbnp import MbnpError, fused, weights
from mbnp.weights.tfjs import manifest
from tests.weights import tfjs_files

FIXTURES = Path(__file__).parents[1] / "fixtures" / "tfjs"
OUTPUTS = json.loads((FIXTURES / "outputs.json").read_text())
X = np.sin(np.linspace(-1, 1, 12 * 12 * 3, dtype=np.float64)).reshape(1, 12, 12, 3)


def refused(path, problem):
    """Check that a file is refused in one line that says the problem, and that no memory was taken."""
    tracemalloc.start()
    try:
        with pytest.raises((MbnpError, FileNotFoundError), match=problem) as error:
            weights.load(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert str(error.value).isprintable()


# --- numbers ---


@pytest.mark.parametrize("quantised", [None, "float16", "uint8", "uint16"])
def test_numbers_are_those_that_were_meant(tmp_path, quantised):
    rng = np.random.default_rng(0)
    arrays = {"a": rng.standard_normal((3, 4, 5)), "b": rng.standard_normal(7), "empty": np.zeros((0, 3)), "c": [[2.5]]}
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    if quantised in ("uint8", "uint16"):
        del arrays["empty"]
    found = manifest.read(tfjs_files.write(tmp_path / "m.json", arrays, quantised, shards=3)).arrays
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (np.float32, array.shape)
        tolerance = {None: 0, "float16": 2e-3, "uint8": 0.02, "uint16": 1e-4}[quantised]
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance)


def test_whole_numbers_groups_and_shards(tmp_path):
    """Arrays of several types; one begins in one shard and ends in the next; a group for itself."""
    first = [
        {"name": "int", "shape": [2], "dtype": "int32"},
        {"name": "flag", "shape": [3], "dtype": "bool"},
        {"name": "few", "shape": [3], "dtype": "int32", "quantization": {"dtype": "uint8", "scale": 0.4, "min": -0.9}},
        {"name": "x", "shape": [2, 2], "dtype": "float32"},
    ]
    second = [{"name": "y", "shape": [], "dtype": "float32"}]
    x = np.array([1.5, -2, 3e5, 4], "<f4")
    data = np.array([-7, 2**31 - 1], "<i4").tobytes() + bytes([1, 0, 1]) + bytes([0, 1, 255]) + x.tobytes()
    (tmp_path / "a.bin").write_bytes(data[:17])
    (tmp_path / "b.bin").write_bytes(data[17:])
    (tmp_path / "c.bin").write_bytes(np.array(0.25, "<f4").tobytes())
    groups = [{"paths": ["a.bin", "b.bin"], "weights": first}, {"paths": ["c.bin"], "weights": second}]
    (tmp_path / "manifest.json").write_text(json.dumps(groups))
    found = manifest.read(tmp_path / "manifest.json").arrays
    assert found["int"].tolist() == [-7, 2**31 - 1]
    assert found["flag"].tolist() == [True, False, True]
    assert found["few"].tolist() == [-1, 0, 101]  # -0.9, -0.5 and 101.1, as JavaScript's Math.round
    np.testing.assert_array_equal(found["x"], x.reshape(2, 2))
    assert found["y"].shape == ()
    assert found["y"] == 0.25


# --- the layers and the graph format ---


@pytest.mark.parametrize("kind", ["layers", "graph"])
def test_same_outputs_as_tensorflow_js(kind):
    net = weights.load(FIXTURES / f"{kind}.json")
    x = X
    if kind == "graph":  # which has its preprocessing in the graph
        x = (X - np.array(net.preprocessing["mean"])) / np.array(net.preprocessing["std"])
    for engine in (net, fused.convert(net)):
        y = np.exp(engine.forward(x.astype(np.float32)))
        np.testing.assert_allclose((y / y.sum())[0], OUTPUTS[kind], rtol=0, atol=2e-6)


def test_what_is_read_can_be_saved(tmp_path):
    for kind in ("layers", "graph"):
        net = weights.load(FIXTURES / f"{kind}.json")
        weights.save(net, tmp_path / "net.safetensors")
        np.testing.assert_array_equal(weights.load(tmp_path / "net.safetensors")(X.astype("f")), net(X.astype("f")))


def test_layers_have_the_names_of_the_file():
    assert list(weights.load(FIXTURES / "layers.json").layers)[:3] == ["stem", "filter", "norm"]
    assert {"stem", "dw", "fc"} < set(weights.load(FIXTURES / "graph.json").layers)


def graph_without(tmp_path, change):
    """Return the path of the graph after a change of its JSON."""
    content = json.loads((FIXTURES / "graph.json").read_text())
    nodes = {node["name"].rpartition("/")[2]: node for node in content["modelTopology"]["node"]}
    change(content, nodes)
    for file in FIXTURES.glob("*.bin"):
        shutil.copy(file, tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(content))
    return tmp_path / "model.json"


GRAPHS = {
    "operation": (lambda c, n: n["relu"].update(op="Elu"), r"does not have the operations Elu \('net/relu'\) of its"),
    "circle": (lambda c, n: n["pw"].update(input=["net/relu", "net/pw/w"]), "no order in which node"),
    "itself": (lambda c, n: n["sum"].update(input=["net/sum", "net/relu"]), "no order in which node"),
    "inputs": (lambda c, n: n["sum"].update(input=["net/dw"] * 100_000), "lists no nodes"),
    "nowhere": (lambda c, n: n["fc"].update(input=["net/mean", "net/fc/w", "net/none"]), "no order in which"),
    "two inputs": (lambda c, n: n["half"].update(op="Placeholder"), "has 2 inputs where mbnp takes one"),
    "no array": (lambda c, n: n["half"].update(name="other"), "manifest has no 'other'"),
    "dilated": (lambda c, n: n["stem"]["attr"]["dilations"]["list"].update(i=["1", "2", "2", "1"]), "has dilations"),
    "channels first": (lambda c, n: n["stem"]["attr"]["data_format"].update(s="TkNIVw=="), "data_format 'NCHW'"),
    "no base64": (lambda c, n: n["stem"]["attr"]["padding"].update(s="?"), "is not as TensorFlow has it"),
    "training": (lambda c, n: n["bn"]["attr"]["is_training"].update(b=True), "is exported for training"),
    "fused": (lambda c, n: n["stem"]["attr"]["fused_ops"]["list"].update(s=["RWx1"]), "has the fused_ops"),
    "rank": (lambda c, n: n["images"]["attr"]["shape"]["shape"].update(dim=[{"size": "3"}]), "must be images: four"),
    "attributes": (lambda c, n: n["stem"].update(attr=[]), "lists no nodes"),
    "nodes": (lambda c, n: c["modelTopology"].update(node={}), "lists no nodes"),
    "strides": (lambda c, n: n["stem"]["attr"].pop("strides"), "is not as TensorFlow has it"),
    "topology": (lambda c, n: c.update(modelTopology=None), "modelTopology is None"),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_a_graph_that_mbnp_cannot_compute_is_one_line(tmp_path, case):
    change, problem = GRAPHS[case]
    refused(graph_without(tmp_path, change), problem)


def test_many_operations_that_are_not_known_are_one_short_line(tmp_path):
    def change(content, nodes):
        content["modelTopology"]["node"] += [{"name": f"n{i}" * 50, "op": f"Op{i}" * 50} for i in range(3000)]

    refused(graph_without(tmp_path, change), "and 2995 more of its graph")


def test_a_keras_layer_that_mbnp_does_not_have_is_named(tmp_path):
    content = json.loads((FIXTURES / "layers.json").read_text().replace('"ReLU"', '"LeakyReLU"'))
    shutil.copy(FIXTURES / "layers.bin", tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(content))
    refused(tmp_path, r"layer 'clip' \(LeakyReLU\) has no counterpart")


# --- the face detector ---


@pytest.fixture(scope="module")
def arrays():
    return tfjs_files.detector()


def in_pytorch(arrays, x):
    """Return face-api's forward, written once more: offsets y, x, h, w and three logits of each anchor."""

    def conv(name, x, stride, groups=1):
        w = torch.from_numpy(arrays[name].transpose(2, 3, 0, 1) if groups > 1 else arrays[name].transpose(3, 2, 0, 1))
        kernel = w.shape[2]
        total = max((-(-x.shape[2] // stride) - 1) * stride + kernel - x.shape[2], 0)
        x = F.pad(x, (total // 2, total - total // 2) * 2)
        return F.conv2d(x, w.double(), stride=stride, groups=groups)

    def pointwise(name, x, stride):
        y = conv(f"{name}/weights", x, stride)
        return (y + torch.from_numpy(arrays[f"{name}/convolution_bn_offset"])[:, None, None]).clamp(0, 6)

    x = pointwise("MobilenetV1/Conv2d_0_pointwise", torch.from_numpy(x.transpose(0, 3, 1, 2)), 2)
    maps = []
    for i, (_, stride) in enumerate(tfjs_files.BLOCKS, start=1):
        name = f"MobilenetV1/Conv2d_{i}_depthwise"
        x = conv(f"{name}/depthwise_weights", x, stride, groups=x.shape[1])
        gamma, beta, mean, variance = (
            torch.from_numpy(arrays[f"{name}/BatchNorm/{kind}"]).double()
            for kind in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        x = F.batch_norm(x, mean, variance, gamma, beta, eps=0.001).clamp(0, 6)
        x = pointwise(f"MobilenetV1/Conv2d_{i}_pointwise", x, 1)
        maps += [x] if i in (11, 13) else []
    for i in range(4):
        x = pointwise(f"Prediction/Conv2d_{2 * i}_pointwise", x, 1)
        x = pointwise(f"Prediction/Conv2d_{2 * i + 1}_pointwise", x, 2)
        maps.append(x)
    rows = []
    for i, x in enumerate(maps):
        of_head = []
        for kind, columns in (("BoxEncoding", 4), ("Class", 3)):
            name = f"Prediction/BoxPredictor_{i}/{kind}Predictor"
            y = conv(f"{name}/weights", x, 1) + torch.from_numpy(arrays[f"{name}/biases"])[:, None, None]
            of_head.append(y.permute(0, 2, 3, 1).reshape(len(y), -1, columns))
        rows.append(torch.cat(of_head, dim=2))
    return torch.cat(rows, dim=1).numpy()


def test_the_detector_is_face_apis(tmp_path, arrays):
    path = tfjs_files.write(tmp_path / "ssd-weights_manifest.json", arrays, shards=2)
    net = weights.load(tmp_path)
    np.testing.assert_array_equal(
        weights.load(path).state()["pyramid.0.0.0.weight"], net.state()["pyramid.0.0.0.weight"]
    )
    x = np.random.default_rng(1).standard_normal((1, 512, 512, 3)).astype(np.float32)
    y, x_, h, w, background, face, _ = np.moveaxis(in_pytorch(arrays, x.astype(np.float64)), 2, 0)
    expected = np.stack([x_, y, w, h, background, face], axis=2)
    assert expected.std() > 0.1
    for engine in (net, fused.convert(net)):
        found = engine.forward(x)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert net.classes == ["face"]
    assert (net.detection["scores"], net.detection["resize"]) == ("sigmoid", "pad")
    for found, of_head in zip(net.detection["anchors"], tfjs_files.sizes(), strict=True):
        np.testing.assert_allclose(found, of_head[:, ::-1], atol=1e-6)
    weights.save(net, tmp_path / "net.safetensors")
    again = weights.load(tmp_path / "net.safetensors")
    assert again.detection == net.detection
    np.testing.assert_array_equal(again(x), net(x))


def changed(name, value):
    def change(arrays):
        if value is None:
            del arrays[name]
        else:
            arrays[name] = value(arrays[name])

    return change


FILTER, HEAD = "MobilenetV1/Conv2d_3_depthwise", "Prediction/BoxPredictor_1/ClassPredictor"
DETECTORS = {
    "missing": (changed(f"{FILTER}/BatchNorm/gamma", None), f"it has no {FILTER}/BatchNorm/gamma"),
    "short": (changed(f"{FILTER}/BatchNorm/gamma", lambda a: a[:2]), r"BatchNorm/gamma has shape \(2,\), not \(4,\)"),
    "multiplier": (changed(f"{FILTER}/depthwise_weights", lambda a: np.repeat(a, 2, 3)), "is no weight of a Depthwise"),
    "axes": (changed(f"{FILTER}/depthwise_weights", lambda a: a[0]), "is no weight of a Depthwise"),
    "bias": (changed("MobilenetV1/Conv2d_3_pointwise/convolution_bn_offset", lambda a: a[:1]), "and a bias"),
    "channels": (changed("Prediction/Conv2d_2_pointwise/weights", lambda a: a[:, :, 1:]), "cannot follow|takes"),
    "logits": (changed(f"{HEAD}/weights", lambda a: a[..., :-1]), "not 3 for each anchor"),
    "heads": (changed(f"{HEAD}/weights", lambda a: a[..., :-3]), "not 3 for each anchor"),
    "integers": (changed(f"{HEAD}/weights", lambda a: a.astype(np.int32)), "holds int32, not float32"),
    "variance": (changed(f"{FILTER}/BatchNorm/moving_variance", lambda a: -a), "negative variance"),
    "NaN": (changed(f"{FILTER}/depthwise_weights", lambda a: a * np.nan), "holds NaN"),
    "few anchors": (changed("Output/extra_dim", lambda a: a[:, :-1]), r"shape \(1, 5117, 4\), and its heads make 5118"),
    "moved": (changed("Output/extra_dim", lambda a: a + np.float32(0.01)), "not at the cells' centres"),
    "order": (changed("Output/extra_dim", lambda a: a[:, ::-1].copy()), "not at the cells' centres"),
    "sizes": (
        changed("Output/extra_dim", lambda a: a + np.float32([-0.1, 0, 0.1, 0]) * (np.arange(5118) == 7)[:, None]),
        "not at the cells' centres, or not of the same size everywhere",
    ),
    "nothing": (changed("Output/extra_dim", lambda a: a * np.float32(np.nan)), "not at the cells' centres"),
}


@pytest.mark.parametrize("case", DETECTORS)
def test_a_detector_that_does_not_fit_is_one_line(tmp_path, arrays, case):
    change, problem = DETECTORS[case]
    arrays = dict(arrays)
    change(arrays)
    refused(tfjs_files.write(tmp_path / "manifest.json", arrays), problem)


# --- which file is meant ---


def test_a_folder_of_several_manifests_means_the_one_that_is_known(tmp_path, arrays):
    """As the folder `model` of the package has them."""
    tfjs_files.write(tmp_path / "a-weights_manifest.json", {"dense/weights": np.zeros((2, 2), np.float32)})
    tfjs_files.write(tmp_path / "b-weights_manifest.json", arrays)
    (tmp_path / "c-weights_manifest.json").write_text("{")
    assert weights.load(tmp_path).classes == ["face"]
    tfjs_files.write(tmp_path / "d-weights_manifest.json", arrays)
    refused(tmp_path, "several manifests .* and mbnp knows 2 of them: name one")
    for name in "bd":
        (tmp_path / f"{name}-weights_manifest.json").unlink()
    refused(tmp_path, "several manifests .* and mbnp knows 0 of them: name one")
    (tmp_path / "c-weights_manifest.json").unlink()
    refused(tmp_path, r"says nothing of its network, and its names \('dense/weights'")


def test_a_folder_with_a_model_means_that(tmp_path):
    graph_without(tmp_path, lambda content, nodes: None)
    assert weights.load(tmp_path).num_classes == 3
    weights.save(weights.load(FIXTURES / "layers.json"), tmp_path / "model.safetensors")
    assert "stem" in weights.load(tmp_path).layers, "as a run folder has it"
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "neither model.safetensors")


# --- hostile and damaged files ---

ONE = {"name": "a", "shape": [2], "dtype": "float32"}
GOOD = [{"paths": ["a.bin"], "weights": [ONE]}]


def with_entry(**changes):
    content = copy.deepcopy(GOOD)
    content[0]["weights"][0].update(changes)
    return content


def with_paths(*paths):
    return [{"paths": list(paths), "weights": [ONE]}]


def quantised(**how):
    return with_entry(quantization=how)


BAD = {
    "no JSON": ("[{", "is no JSON"),
    "not text": (b"[\xff\xfe]", "is no JSON"),
    "deep": ("[" * 100_000, "nested too deeply|is no JSON"),
    "a number of many digits": ("[" + "9" * 5000 + "]", "is no JSON|no manifest"),
    "empty": ([], "no manifest"),
    "an object": ({}, "no manifest"),
    "a config": ({"architectures": ["x"]}, "no manifest"),
    "no topology": ({"weightsManifest": GOOD}, "modelTopology is"),
    "no groups": ([3], "no manifest"),
    "no weights": ([{"paths": ["a.bin"]}], "has the weights None"),
    "no paths": ([{"weights": [ONE]}], "has the paths None"),
    "no entry": ([{"paths": ["a.bin"], "weights": [7]}], "an array without a name"),
    "no name": (with_entry(name=None), "an array without a name"),
    "a list for a name": (with_entry(name=["a"]), "an array without a name"),
    "a shape below 0": (with_entry(shape=[-2]), r"has the shape"),
    "a shape of text": (with_entry(shape="2"), "has the shape"),
    "a shape of truths": (with_entry(shape=[True]), "has the shape"),
    "a shape of fractions": (with_entry(shape=[2.0]), "has the shape"),
    "a large shape": (with_entry(shape=[1 << 40]), "has the shape"),
    "a shape that is too large": (with_entry(shape=[1 << 30, 1 << 30]), r"need \d+ bytes, and a.bin holds 8"),
    "a shape larger than any number": (with_entry(shape=[1 << 30] * 8), "bytes, and a.bin holds 8"),
    "many axes": (with_entry(shape=[1] * 70), "has the shape"),
    "text": (with_entry(dtype="string"), "is of the type 'string'; mbnp reads float32"),
    "complex": (with_entry(dtype="complex64"), "is of the type"),
    "a list for a type": (with_entry(dtype=["float32"]), "is of the type"),
    "quantised to bits": (quantised(dtype="uint4", scale=1, min=0), "quantised as"),
    "quantised to nothing": (quantised(), "quantised as"),
    "quantised as text": (with_entry(quantization="uint8"), "quantised as"),
    "without a scale": (quantised(dtype="uint8", min=0), "the scale None, no finite number"),
    "without a minimum": (quantised(dtype="uint8", scale=1), "the min None, no finite number"),
    "NaN": ('[{"paths": ["a.bin"], "weights": [{"name": "a", "shape": [8], "dtype": "float32", "quantization": '
            '{"dtype": "uint8", "scale": NaN, "min": 0}}]}]', "the scale nan, no finite number"),
    "a large scale": (quantised(dtype="uint8", scale=10**400, min=0), "no finite number"),
    "too short": (with_entry(shape=[3]), "need 12 bytes, and a.bin holds 8"),
    "too long": (with_entry(shape=[1]), "need 4 bytes, and a.bin holds 8"),
    "no file": (with_paths("b.bin"), "which is not in its folder"),
    "no files": (with_paths(), "need 8 bytes, and no file holds 0"),
    "a folder": (with_paths("folder"), "which is not in its folder"),
    "a pipe": (with_paths("pipe"), "which is not in its folder"),
    "twice the same file": (with_paths("a.bin", "a.bin"), "names a file of numbers twice"),
    "up": (with_paths("../a.bin"), "in the same folder only"),
    "inside": (with_paths("folder/a.bin"), "in the same folder only"),
    "absolute": (with_paths("/etc/passwd"), "in the same folder only"),
    "Windows": (with_paths("..\\a.bin"), "in the same folder only"),
    "the folder itself": (with_paths("."), "in the same folder only"),
    "no path": (with_paths(""), "which is not in its folder"),
    "NUL": (with_paths("a.bin\x00"), "in the same folder only"),
    "a terminal": (with_paths("\x1b[2Ja.bin"), "in the same folder only"),
    "a link": (with_paths("link.bin"), "in the same folder only"),
    "a number for a path": (with_paths(3), "has the paths"),
    "two of a name": ([{"paths": ["a.bin"], "weights": [ONE, ONE]}], "lists 'a' twice"),
    "many arrays": ([{"paths": ["a.bin"], "weights": [ONE | {"name": str(i)} for i in range(20_001)]}], "20,001"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_manifest_is_one_line(tmp_path, case):
    content, problem = BAD[case]
    (tmp_path / "a.bin").write_bytes(np.array([1, 2], "<f4").tobytes())
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.bin").symlink_to(tmp_path / "a.bin")
    path = tmp_path / "manifest.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(MbnpError, match=problem) as error:
        weights.load(path)
    assert str(error.value).isprintable()


def test_a_manifest_that_would_fill_the_memory_is_not_read(tmp_path):
    path = tmp_path / "manifest.json"
    with path.open("wb") as file:
        file.write(b"[")
        file.truncate(1 << 30)
    refused(path, "bytes of JSON, more than")
    with (tmp_path / "a.bin").open("wb") as file:
        file.truncate(1 << 40)
    path.write_text(json.dumps(GOOD))
    refused(path, "need 8 bytes, and a.bin holds 1,099,511,627,776")
