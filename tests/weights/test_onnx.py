"""ONNX files of good faith: out and in again, from PyTorch's exporters, and operation by operation."""

import builtins
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from mbnp import MbnpError, fused, models, weights
from mbnp.datasets import normalise
from mbnp.layers import (
    AveragePool,
    BatchNorm,
    Conv,
    Depthwise,
    Flatten,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Network,
    Pad,
    Pointwise,
    ReLU,
    Residual,
    Sequential,
    Subsample,
)
from mbnp.weights.onnx import write
from tests.models import papers
from tests.tally import NIGHTLY
from tests.twins import Article, gradients, relative, torch_network, vary
from tests.weights.graphs import assert_same, model, node, rand, run, written

LAYOUTS = pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
FOLD = pytest.mark.parametrize("fold", [True, False], ids=["folded", "kept"])


def small(name, dtype=np.float32):
    options = {"resolution": 33} if "resolution" in models.options(name) else {}
    net = vary(models.create(name, num_classes=4, width_mult=0.25, dtype=dtype, **options))
    net.classes = ["cat", "dog", "écureuil", "鳥"]
    net.preprocessing = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "order": "bgr"}
    return net


@pytest.mark.parametrize("name", [name for name in models.names() if not name.startswith("ssd")])  # written only
@LAYOUTS
@FOLD
def test_models_go_out_and_come_back(tmp_path, name, layout, fold):
    net, path = small(name), tmp_path / "net.onnx"
    weights.save(fused.convert(net), path, layout=layout, fold=fold)
    again = weights.load(path)
    for n in (1, 3):
        assert_same(net, path, n, layout)
        assert_same(again, path, n, layout)
    x = rand(3, net.resolution, net.resolution, 3)
    assert relative(again(x), net(x)) < 1e-5
    assert (again.classes, again.preprocessing, again.resolution) == (
        net.classes,
        net.preprocessing,
        net.resolution,
    )
    if fold:
        assert not any(isinstance(layer, BatchNorm) for _, layer in again.leaves())
        assert again.arch["name"] == "layers"
        return
    assert again.arch == net.arch
    dy = rand(3, 4)
    for each in (net, again):
        each.forward(x, train=True)
        each.backward(dy)
    for key, gradient in gradients(net).items():
        np.testing.assert_array_equal(gradients(again)[key], gradient)


def varied(dtype):
    """Return every kind of layer, with the padding, strides and biases that the models do not have."""
    body = [Conv(6, 5, (1, 3), padding=((0, 0), (1, 1)), dtype=dtype), BatchNorm(5, 1e-3, 0.01, dtype=dtype)]
    shortcut = Sequential([Pointwise(6, 5, bias=False, dtype=dtype), BatchNorm(5, dtype=dtype)])
    return {
        "norm": BatchNorm(2, dtype=dtype),
        "pad": Pad(((1, 0), (2, 1))),
        "stem": Conv(2, 4, (3, 2), (2, 1), ((0, 1), (0, 1)), dtype=dtype),
        "act": ReLU(max_value=0.7),
        "more": Pad(0, (0, 2)),
        "dw": Depthwise(6, 3, 2, "same", dtype=dtype),
        "bn": BatchNorm(6, dtype=dtype),
        "plain": Residual([Depthwise(6, 3, padding=1, bias=False, dtype=dtype), BatchNorm(6, dtype=dtype), ReLU()]),
        "sum": Residual(body, shortcut),
        "zeros": Residual([Conv(5, 8, 3, (1, 2), padding=1, dtype=dtype)], Subsample(5, 8, (1, 2))),
        "max": MaxPool((2, 1), 1, ((1, 0), (0, 0))),
        "mean": AveragePool(3, (1, 2), 1, count_padding=False),
        "means": AveragePool(2, 1, "same"),
    }


@pytest.mark.parametrize("last", ["mean", "CHW", "HWC", "feature map"])
@LAYOUTS
@FOLD
def test_any_public_layer_goes_out_and_comes_back(tmp_path, last, layout, fold):
    path = tmp_path / "net.onnx"
    for dtype in (np.float32, np.float64):
        layers = varied(dtype)
        h, w, c = Sequential(layers).output_shape((13, 13, 2))
        assert h != w
        if last != "feature map":
            layers["flat"] = GlobalAveragePool() if last == "mean" else Flatten(order=last)
            layers["fc"] = Linear(c if last == "mean" else h * w * c, 3, bias=last == "mean", dtype=dtype)
        net = vary(Network(layers, resolution=13, channels=2))
        weights.save(net, path, layout=layout, fold=fold)
        again = weights.load(path)
        assert_same(net, path, 1, layout)
        assert_same(again, path, 2, layout)
        assert fold or again.state().keys() == net.state().keys()


def test_names_and_numbers_can_be_read(tmp_path):
    path = tmp_path / "net.onnx"
    weights.save(small("mobilenet-v1-small"), path, layout="NHWC")
    proto = onnx.load(path)
    (given,), (made,) = proto.graph.input, proto.graph.output
    dims = [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]
    assert (given.name, dims, made.name) == ("images", ["N", 32, 32, 3], "logits")
    assert {n.op_type for n in proto.graph.node} == {
        "Transpose",
        "Conv",
        "Relu",
        "AveragePool",
        "Flatten",
        "Gemm",
    }
    assert "conv2_1.3.weight" in {a.name for a in proto.graph.initializer}
    onnx.checker.check_model(proto, full_check=True)


def test_a_file_is_replaced_by_a_whole_one_or_not_at_all(tmp_path, monkeypatch):
    net, path = small("resnet20"), tmp_path / "net.onnx"
    path.write_bytes(b"before")
    with pytest.raises(MbnpError, match="layout must be 'NCHW' or 'NHWC', got 'CHWN'"):
        weights.save(net, path, layout="CHWN")
    with pytest.raises(MbnpError, match="Own"):
        weights.save(Network({"own": type("Own", (ReLU,), {})(), "fc": Pointwise(3, 4)}, 8), path)
    monkeypatch.setattr(write.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        weights.save(net, path)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert path.read_bytes() == b"before"


def test_the_graph_is_believed_where_the_description_disagrees(tmp_path):
    net, path = small("mobilenet-v1-small"), tmp_path / "net.onnx"
    weights.save(net, path, fold=False)
    proto = onnx.load(path)
    for n in proto.graph.node:
        if n.op_type == "BatchNormalization":
            n.attribute[0].f = 1e-3
    again = weights.load(written(path, proto))
    assert again.arch.get("name") != "mobilenet-v1-small"
    assert_same(again, path, 2)
    proto.metadata_props[1].value = '["one"]'
    with pytest.raises(MbnpError, match="names 1 classes for 4 outputs"):
        weights.load(written(path, proto))
    proto.metadata_props[1].value = "["
    with pytest.raises(MbnpError, match="is damaged"):
        weights.load(written(path, proto))


def test_without_the_package(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "onnx":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    for attempt in (lambda p: weights.load(p), lambda p: weights.save(small("resnet20"), p)):
        (tmp_path / "net.onnx").write_bytes(b"")
        with pytest.raises(MbnpError, match=r'pip install "mbnp\[onnx\]"'):
            attempt(tmp_path / "net.onnx")


# PyTorch's exporters


class Branches(torch.nn.Module):
    """A network that exporters write in several ways: padding, ReLU6, a shortcut in slices, flattening."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, bias=False)
        self.norm = torch.nn.BatchNorm2d(8)
        self.wide = torch.nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.fc = torch.nn.Linear(12 * 3 * 3, 4)

    def forward(self, x):
        x = torch.nn.functional.relu6(self.norm(self.conv(torch.nn.functional.pad(x, (0, 1, 0, 1)))))
        x = self.wide(x) + torch.nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = torch.nn.functional.max_pool2d(x, 2)
        return torch.log_softmax(self.fc(torch.nn.functional.dropout(x, 0.5, self.training).view(x.size(0), -1)), 1)


TORCH = {
    "article": (lambda: Article(), 32),
    "mobilenet-v1": (lambda: torch_network(models.mobilenet_v1(num_classes=5, width_mult=0.25)), 64),
    "resnet20": (lambda: torch_network(models.resnet20(width_mult=0.5)), 32),
    "branches": (Branches, 12),
}
if NIGHTLY:
    TORCH["v3"] = lambda: papers.mobilenet_v3("small", 0.35, 5), 33


def exported(path, name, exporter, batch):
    make, size = TORCH[name]
    torch.manual_seed(0)
    module = make().eval()
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            torch.nn.init.normal_(part.bias, 0, 0.2)
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.2, 1)
    x, options = torch.randn(2, 3, size, size), {}
    if exporter == "dynamo":
        options = {"external_data": False, "verbose": False}
        if batch == "dynamic":
            options["dynamic_shapes"] = ({0: torch.export.Dim("n")},)
    elif batch == "dynamic":
        options = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        torch.onnx.export(module, (x,), str(path), dynamo=exporter == "dynamo", **options)


@pytest.mark.slow
def test_pytorchs_default_export_has_a_file_beside_it(tmp_path):
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Branches().eval(), (torch.randn(1, 3, 12, 12),), str(path), verbose=False)
    assert (tmp_path / "net.onnx.data").exists()
    net = weights.load(path)
    x = rand(1, 12, 12, 3)
    assert relative(torch.log_softmax(torch.from_numpy(net(x)), 1).numpy(), run(path, x)) < 1e-5
    (tmp_path / "net.onnx.data").unlink()
    with pytest.raises(MbnpError, match=r"is in 'net\.onnx\.data', which is not in the folder of this file"):
        weights.load(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("batch", ["dynamic", "fixed"])
def test_exports_of_pytorch(tmp_path, name, exporter, batch):
    path = tmp_path / "net.onnx"
    exported(path, name, exporter, batch)
    net = weights.load(path)
    assert net.resolution == TORCH[name][1]
    if name == "branches":  # ends in a log-softmax: the logits but for a shift
        x = rand(2, 12, 12, 3)
        logits, expected = net(x), run(path, x)
        shift = (logits - expected).mean(axis=1, keepdims=True)
        assert relative(logits - shift, expected) < 1e-5
    else:
        assert_same(net, path, 2)
    if name == "article":
        assert "conv2_1.3.weight" in net.state()
    if name == "resnet20":
        assert "layer3.2.conv2.weight" in net.state()


# Operation by operation, against onnxruntime

CONV, LAST = rand(4, 3, 3, 3) / 5, rand(4, 5)
GLOBAL = [node("GlobalAveragePool", "h", "g"), node("Flatten", "g", "f"), node("MatMul", "f last", "y")]
BN = {"s": 1 + rand(4) ** 2, "b": rand(4, seed=1), "m": rand(4, seed=2), "v": rand(4, seed=3) ** 2 + 0.1}
C = node("Conv", "x w", "h")


def through(op, inputs, opset=17, arrays=(), **attributes):
    """Return a graph of one operation between a convolution and a classifier."""
    nodes = [node("Conv", "x w", "c"), node(op, inputs, "h", **attributes), *GLOBAL]
    return {"nodes": nodes, "arrays": {"w": CONV, "last": LAST, **dict(arrays)}, "opset": opset}


def convolved(w=CONV, opset=17, last=LAST, **attributes):
    nodes = [node("Conv", "x w", "h", **attributes), *GLOBAL]
    return {"nodes": nodes, "arrays": {"w": w, "last": last}, "opset": opset}


def ending(*nodes, opset=17, dims=("N", 3, 6, 6), **arrays):
    """Return a graph of a convolution to (4, 4, 4), and `nodes` from h to y."""
    return {"nodes": [C, *nodes], "arrays": {"w": CONV, **arrays}, "opset": opset, "dims": dims}


def numbered(*operations, start="h"):
    """Return nodes from (operation, inputs): _ is what the one before makes."""
    nodes, at = [], start
    for op, inputs, *attributes in operations:
        made = f"{start}_{len(nodes)}"
        nodes.append(node(op, inputs.replace("_", at) if "_" in inputs else inputs, made, **dict(*attributes)))
        at = made
    return nodes


NUMBERS = {"three": 3.0, "six": 6.0, "sixth": 1 / 6, "zero": 0.0, "half": 0.5, "one": 1.0, "least": -np.finfo("f").max}
NUMBERS = {name: np.float32(value) for name, value in NUMBERS.items()}
SIXTH = {"alpha": 1 / 6, "beta": 0.5}
HARD = {  # how exporters write min(max(x + 3, 0), 6) / 6
    "clip, div": [("Add", "_ three"), ("Clip", "_ zero six"), ("Div", "_ six")],
    "relu, min, mul": [("Add", "three _"), ("Relu", "_"), ("Min", "_ six"), ("Mul", "sixth _")],
    "min, max, div": [("Add", "_ three"), ("Min", "six _"), ("Max", "_ zero"), ("Div", "_ six")],
    "mul, add, clip": [("Mul", "_ sixth"), ("Add", "half _"), ("Clip", "_ zero one")],
    "one operation": [("HardSigmoid", "_", SIXTH)],
    "sub": [("Add", "_ six"), ("Sub", "_ three"), ("Clip", "_ - six"), ("Relu", "_"), ("Div", "_ six")],
}
SWISH = {f"swish: {name}": [*operations, ("Mul", "h _")] for name, operations in HARD.items()} | {
    "swish: mul, div": [*HARD["clip, div"][:2], ("Mul", "_ h"), ("Div", "_ six")],
    "swish: relu, min, mul, mul": [*HARD["relu, min, mul"][:3], ("Mul", "_ h"), ("Mul", "_ sixth")],
    "swish: swish": [("HardSwish", "_")],
}


def swish(operations, before=()):
    """Return a graph with x * hard-sigmoid(x) between a convolution and a classifier; before: what follows that."""
    nodes = [node("Conv", "x w b", "h" if not before else "c"), *before, *numbered(*operations)]
    tail = [node("GlobalAveragePool", nodes[-1].output[0], "g"), *GLOBAL[1:]]
    return {
        "nodes": [*nodes, *tail],
        "arrays": {"w": 5 * CONV, "b": rand(4), "last": LAST, "across": rand(1, 4, 1, 1), **NUMBERS, **SCALED},
    }


SCALED = {"scale": 1 + rand(4, 1, 1) ** 2, "shift": rand(1, 4, 1, 1)}
IDENTICAL = node("Identity", "c", "h")
AS_BATCHNORM = [node("Mul", "c scale", "c1"), node("Add", "shift c1", "h")]


def gated(operations, through="conv", after=()):
    """Return a graph with a squeeze-and-excite whose factors end in `operations`; after: those after the product."""
    arrays = {"few": rand(2, 4, 1, 1), "many": 9 * rand(4, 2, 1, 1), "fb": rand(2), "mb": rand(4), "last": LAST}
    arrays |= {"flat": i64(-1, 4), "whole": i64(0, -1, 1, 1), "m1": rand(4, 2), "m2": 9 * rand(2, 4)}
    if through == "conv":
        ways = [("GlobalAveragePool", "h"), ("Conv", "_ few fb"), ("Relu", "_"), ("Conv", "_ many mb"), *operations]
    else:
        ways = [("ReduceMean", "h", {"axes": [2, 3], "keepdims": 0}), ("Gemm", "_ m1 fb"), ("Relu", "_")]
        ways += [("MatMul", "_ m2"), ("Add", "_ mb"), *operations, ("Reshape", "_ whole")]
    nodes = [node("Conv", "x w b", "h"), *numbered(*ways, ("Mul", "h _"), *after)]
    tail = [node("GlobalAveragePool", nodes[-1].output[0], "g"), *GLOBAL[1:]]
    return {"nodes": [*nodes, *tail], "arrays": {"w": CONV, "b": rand(4), **arrays, **NUMBERS}}


def i64(*values):
    return np.array(values, np.int64)


def bounded(*operations):
    """Return a graph that clips the output of a convolution, whose numbers are small; _ is the value before."""
    numbers = {"zero": 0.0, "most": 0.3, "one": 1.0, "lowest": -3.4028234663852886e38}
    nodes = [node("Conv", "x w", "c")]
    for op, inputs in operations:
        nodes.append(node(op, inputs.replace("_", nodes[-1].output[0]), f"c{len(nodes)}"))
    nodes[-1].output[0] = "h"
    return {
        "nodes": [*nodes, *GLOBAL],
        "arrays": {"w": CONV, "last": LAST} | {k: np.float32(v) for k, v in numbers.items()},
    }


def meaning(*operations):
    """Return a graph that makes one number a channel of a feature map of 4 x 4: by axes, or with a constant."""
    arrays = {"sixteen": np.float32(16), "sixteenth": np.float32(1 / 16), "four": np.float32(4), "last": LAST}
    arrays |= {"pixels": i64(0, 4, -1), "map": i64(0, 4, 4, 4)}
    nodes, at = [C], "h"
    for i, (op, *how) in enumerate(operations):
        if len(how) == 1:
            made = node(op, f"{at} {how[0]}", f"h{i}")
        elif op == "ReduceSum":
            arrays[f"axes{i}"] = i64(*how[1])
            made = node(op, f"{at} axes{i}", f"h{i}", keepdims=how[0])
        elif op == "GlobalMaxPool":
            made = node(op, at, f"h{i}")
        else:
            made = node(op, at, f"h{i}", keepdims=how[0], axes=how[1])
        nodes, at = [*nodes, made], f"h{i}"
    return {"nodes": [*nodes, node("Flatten", at, "f"), GLOBAL[-1]], "arrays": {"w": CONV, **arrays}}


POOLED = node("AveragePool", "h", "p", kernel_shape=[4, 4])
GOOD = {
    "groups": convolved(rand(3, 1, 3, 3), group=3, last=rand(3, 5)),
    "pointwise": convolved(rand(4, 3, 1, 1)),
    "strided-1x1": convolved(rand(4, 3, 1, 1), strides=[2, 2]),
    "same-upper": convolved(auto_pad="SAME_UPPER", strides=[2, 2]),
    "valid": convolved(auto_pad="VALID"),
    "one-sided": convolved(pads=[0, 1, 2, 0], strides=[1, 2]),
    "batchnorm-7": through("BatchNormalization", "c s b m v", 7, BN, epsilon=0.01),
    "batchnorm-9": through("BatchNormalization", "c s b m v", 9, BN),
    "batchnorm-14": through("BatchNormalization", "c s b m v", 14, BN),
    "batchnorm-15": through("BatchNormalization", "c s b m v", 15, BN, momentum=0.99),
    "relu": through("Relu", "c"),
    "clip-6": through("Clip", "c", 10, min=0.0, max=0.5),
    "clip-11": through("Clip", "c low high", 11, {"low": np.float32(0), "high": np.float32(0.5)}),
    "clip-open": through("Clip", "c low", 13, {"low": np.float32(0)}),
    "max": through("MaxPool", "c", kernel_shape=[3, 2], pads=[1, 0, 1, 1], strides=[1, 2]),
    "max-same": through("MaxPool", "c", kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2]),
    "average": through("AveragePool", "c", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "average-counting": through("AveragePool", "c", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "average-same": through("AveragePool", "c", kernel_shape=[2, 2], auto_pad="SAME_UPPER", strides=[3, 3]),
    "pad-2": through("Pad", "c", 10, pads=[0, 0, 1, 2, 0, 0, 0, 3]),
    "pad-11": through("Pad", "c p", 11, {"p": i64(0, 0, 1, 2, 0, 0, 0, 3)}),
    "pad-18": through("Pad", "c p - a", 18, {"p": i64(1, 2, 0, 3), "a": i64(-2, 3)}),
    "pad-then-1x1": ending(
        node("Pad", "h p", "q"),
        node("Conv", "q k", "r"),
        node("Flatten", "r", "f"),
        node("MatMul", "f m", "y"),
        p=i64(0, 0, 1, 1, 0, 0, 1, 1),
        k=rand(4, 4, 1, 1),
        m=rand(144, 5),
    ),
    "dropout-7": through("Dropout", "c", 7, ratio=0.5),
    "dropout-12": through("Dropout", "c r t", 12, {"r": np.float32(0.5), "t": np.False_}),
    "identity": through("Identity", "c"),
    "bias": through("Add", "c b", arrays={"b": rand(4, 1, 1)}),
    "bias-first": through("Add", "b c", arrays={"b": rand(1, 4, 1, 1)}),
    "scalar-bias": through("Add", "c b", arrays={"b": np.float32(0.3)}),
    "mean-13": ending(
        node("ReduceMean", "h", "g", axes=[2, 3], keepdims=0), node("MatMul", "g k", "y"), opset=13, k=LAST
    ),
    "mean-18": ending(
        node("ReduceMean", "h a", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f k", "y"),
        opset=18,
        a=i64(-1, -2),
        k=LAST,
    ),
    "squeeze-11": ending(
        node("GlobalAveragePool", "h", "g"),
        node("Squeeze", "g", "f", axes=[2, 3]),
        node("MatMul", "f k", "y"),
        opset=11,
        k=LAST,
    ),
    "squeeze-13": ending(
        POOLED,
        node("Squeeze", "p a", "q"),
        node("Squeeze", "q a", "f"),
        node("MatMul", "f k", "y"),
        a=i64(2),
        k=LAST,
    ),
    "feature-map-as-logits": ending(POOLED, node("Conv", "p k", "q"), node("Flatten", "q", "y"), k=rand(5, 4, 1, 1)),
    "pooled-1x1": ending(
        node("GlobalAveragePool", "h", "g"),
        node("Conv", "g k b", "q"),
        node("Flatten", "q", "y"),
        k=rand(5, 4, 1, 1),
        b=rand(5),
    ),
    "gemm": ending(
        node("Flatten", "h", "f"),
        node("Gemm", "f k b", "y", alpha=0.5, beta=2.0, transB=1),
        k=rand(5, 64),
        b=rand(1, 5),
    ),
    "gemm-plain": ending(node("Flatten", "h", "f", axis=-3), node("Gemm", "f k", "y"), k=rand(64, 5)),
    "matmul-bias": ending(
        node("Reshape", "h s", "f"),
        node("MatMul", "f k", "m"),
        node("Add", "m b", "y"),
        s=i64(0, -1),
        k=rand(64, 5),
        b=rand(5),
    ),
    "reshape-minus-one": ending(node("Reshape", "h s", "f"), node("MatMul", "f k", "y"), s=i64(-1, 64), k=rand(64, 5)),
    "reshape-fixed": ending(
        node("Reshape", "h s", "f"),
        node("MatMul", "f k", "y"),
        dims=(2, 3, 6, 6),
        s=i64(2, 64),
        k=rand(64, 5),
    ),
    "reshape-to-1x1": ending(
        node("GlobalAveragePool", "h", "g"),
        node("Reshape", "g s", "f"),
        node("Reshape", "f t", "m"),
        node("Conv", "m k", "q"),
        node("Reshape", "q s", "y"),
        s=i64(-1, 4),
        t=i64(0, 4, 1, 1),
        k=rand(4, 4, 1, 1),
    ),
    "shape-arithmetic": ending(
        node("Shape", "h", "s"),
        node("Gather", "s zero", "n", axis=0),
        node("Unsqueeze", "n axes", "m"),
        node("Concat", "m rest", "t", axis=0),
        node("Reshape", "h t", "f"),
        node("MatMul", "f k", "y"),
        zero=np.int64(0),
        axes=i64(0),
        rest=i64(-1),
        k=rand(64, 5),
    ),
    "weights-in-nodes": ending(
        node("Constant", "", "k", value=onnx.numpy_helper.from_array(rand(5, 64))),
        node("Transpose", "k", "t", perm=[1, 0]),
        node("Reshape", "t s", "i"),
        node("Flatten", "h", "f"),
        node("MatMul", "f i", "y"),
        s=i64(0, 5),
    ),
    "channels-last": {
        "nodes": [
            node("Pad", "x p", "x1"),
            node("Transpose", "x1", "x2", perm=[0, 3, 1, 2]),
            node("Conv", "x2 w", "c"),
            node("Transpose", "c", "h", perm=[0, 2, 3, 1]),
            node("Add", "h b", "h1"),
            node("Relu", "h1", "h2"),
            node("MatMul", "h2 k", "h3"),
            node("Reshape", "h3 s", "f"),
            node("MatMul", "f z", "y"),
        ],
        "arrays": {
            "p": i64(0, 0, 0, 0, 0, 1, 1, 0),
            "w": CONV,
            "b": rand(4),
            "k": rand(4, 6),
            "s": i64(-1, 150),
            "z": rand(150, 5),
        },
        "dims": ("N", 6, 6, 3),
    },
    "channels-last-mean": {
        "nodes": [
            node("Transpose", "x", "x1", perm=[0, 3, 1, 2]),
            node("Conv", "x1 w", "c"),
            node("Transpose", "c", "h", perm=[0, 2, 3, 1]),
            node("ReduceMean", "h", "g", axes=[1, 2]),
            node("MatMul", "g k", "m"),
            node("Reshape", "m s", "y"),
        ],
        "arrays": {"w": CONV, "k": rand(4, 5), "s": i64(-1, 5)},
        "dims": ("N", 6, 6, 3),
    },
    "three-branches": ending(
        node("Conv", "h a", "p"),
        node("Conv", "h b", "q"),
        node("Add", "p q", "r"),
        node("Add", "r h", "h2"),
        node("Flatten", "h2", "f"),
        node("MatMul", "f k", "y"),
        a=rand(4, 4, 1, 1),
        b=rand(4, 4, 1, 1, seed=1),
        k=rand(64, 5),
    ),
    "nested-branches": ending(
        node("Conv", "h a", "p"),
        node("Relu", "p", "q"),
        node("Conv", "q b", "r"),
        node("Add", "q r", "s"),
        node("Add", "h s", "t"),
        node("Flatten", "t", "f"),
        node("MatMul", "f k", "y"),
        a=rand(4, 4, 1, 1),
        b=rand(4, 4, 1, 1, seed=1),
        k=rand(64, 5),
    ),
    "branches-from-the-input": {
        "nodes": [node("Conv", "x a", "p"), node("Add", "p x", "h"), *GLOBAL],
        "arrays": {"a": rand(3, 3, 1, 1), "last": rand(3, 5)},
    },
    "relu6-min": bounded(("Relu", "c"), ("Min", "_ most")),
    "relu6-min-first": bounded(("Min", "most c"), ("Relu", "_")),
    "relu6-max-min": bounded(("Max", "c zero"), ("Min", "most _")),
    "relu6-min-max": bounded(("Min", "c most"), ("Max", "zero _")),
    "relu6-clip-above": bounded(("Relu", "c"), ("Clip", "_ - most")),
    "relu6-clip-first": bounded(("Clip", "c lowest most"), ("Relu", "_")),
    "relu6-twice": bounded(("Clip", "c zero one"), ("Clip", "_ zero most")),
    "clip-of-nothing": bounded(("Clip", "c")),
    "mean-then-mean": meaning(("ReduceMean", 1, [2]), ("ReduceMean", 1, [3])),
    "mean-then-mean-0": meaning(("ReduceMean", 0, [3]), ("ReduceMean", 0, [-1])),
    "mean-then-mean-mixed": meaning(("ReduceMean", 0, [2]), ("ReduceMean", 1, [2])),
    "shape-between-the-means": ending(
        node("ReduceMean", "h", "g", axes=[2]),
        node("Shape", "g", "s"),
        node("Gather", "s two", "one", axis=0),
        node("Concat", "rest one", "t", axis=0),
        node("ReduceMean", "g", "m", axes=[3]),
        node("Reshape", "m t", "r"),
        node("Flatten", "r", "f"),
        node("MatMul", "f k", "y"),
        two=i64(2),
        rest=i64(0, 4),
        k=LAST,
    ),
    "max-at-once": meaning(("ReduceMax", 0, [2, 3])),
    "sum-divided": meaning(("ReduceSum", 1, [2, 3]), ("Div", "sixteen")),
    "sum-multiplied": meaning(("ReduceSum", 0, [2, 3]), ("Mul", "sixteenth")),
    "sum-then-sum": meaning(("ReduceSum", 0, [2]), ("ReduceSum", 0, [2]), ("Div", "four"), ("Div", "four")),
    "map-in-one-axis": meaning(("Reshape", "pixels"), ("ReduceMean", 0, [2])),
    "map-in-one-axis-sum": meaning(("Reshape", "pixels"), ("ReduceSum", 1, [-1]), ("Mul", "sixteenth")),
    "map-in-one-axis-and-back": meaning(("Reshape", "pixels"), ("Reshape", "map"), ("GlobalMaxPool", 1, [])),
    "map-in-one-axis-flat": ending(
        node("Reshape", "h s", "p"),
        node("Flatten", "p", "f"),
        node("MatMul", "f k", "y"),
        s=i64(0, 4, -1),
        k=rand(64, 5),
    ),
    "map-in-one-axis-last": ending(
        node("Reshape", "h s", "p"),
        node("Transpose", "p", "q", perm=[0, 2, 1]),
        node("MatMul", "q k", "r"),
        node("ReduceMean", "r", "y", axes=[1], keepdims=0),
        s=i64(0, 4, 16),
        k=LAST,
    ),
    "global-max": meaning(("GlobalMaxPool", 1, [])),
    **{name: swish(operations) for name, operations in SWISH.items()},
    "swish: a sixth of x": swish([*HARD["clip, div"][:2], ("Mul", "_ s")], [IDENTICAL, node("Mul", "h sixth", "s")]),
    "swish: after a batchnorm": swish(SWISH["swish: clip, div"], AS_BATCHNORM),
    **{f"gate: {name}": gated(operations) for name, operations in HARD.items()},
    "gate: gemm": gated(HARD["clip, div"], "gemm"),
    "gate: div at the end": gated(HARD["clip, div"][:2], after=[("Div", "_ six")]),
    "gate: no hard-sigmoid": gated([("Relu", "_")]),
    "gate: 3 in the bias": gated(HARD["clip, div"][1:]),
    "gate: other slope": gated([("HardSigmoid", "_")]),
    "batchnorm-as-mul-and-add": swish([("Relu", "_")], AS_BATCHNORM),
    "add-3-and-relu6": swish(HARD["clip, div"][:2]),
    "unused-nodes": ending(
        node("Relu", "h", "dead"), node("Flatten", "h", "f"), node("MatMul", "f k", "y"), k=rand(64, 5)
    ),
    "two-slices": {
        "nodes": [
            C,
            node("Slice", "h zero last two steps", "h1"),
            node("Slice", "h1 zero last three steps", "h2"),
            node("Pad", "h2 p", "h3"),
            node("Flatten", "h3", "f"),
            node("MatMul", "f k", "y"),
        ],
        "arrays": {
            "w": CONV,
            "zero": i64(0),
            "last": i64(1 << 62),
            "two": i64(2),
            "three": i64(3),
            "steps": i64(3),
            "p": i64(0, 1, 0, 0, 0, 2, 0, 0),
            "k": rand(28, 5),
        },
    },
}


@pytest.mark.parametrize("case", GOOD)
def test_operations_are_those_of_onnxruntime(tmp_path, case):
    path = written(tmp_path / "net.onnx", model(**GOOD[case]))
    net = weights.load(path)
    assert_same(net, path, 2, "NHWC" if case.startswith("channels-last") else "NCHW")
    weights.save(net, tmp_path / "net.safetensors")
    np.testing.assert_array_equal(weights.load(tmp_path / "net.safetensors")(rand(2, 6, 6, 3)), net(rand(2, 6, 6, 3)))
    net.forward(rand(2, 6, 6, 3), train=True)
    net.backward(rand(2, net.num_classes))
    assert all(np.isfinite(p.grad).all() for p in net.parameters().values())


def test_padding_becomes_the_convolutions_own(tmp_path):
    pad, margin = node("Pad", "x p", "x1"), {"p": i64(0, 0, 0, 0, 0, 0, 1, 1)}
    nodes = [pad, node("Conv", "x1 w", "h", pads=[1, 0, 1, 0], strides=[2, 2]), *GLOBAL]
    path = written(tmp_path / "net.onnx", model(nodes, {"w": CONV, "last": LAST, **margin}))
    net = weights.load(path)
    assert next(iter(net.layers.values())).options["padding"] == ((1, 2), (0, 1))
    assert_same(net, path, 2)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("of_feature_map", [False, True], ids=["logits", "feature-map"])
@pytest.mark.parametrize("opset", [11, 17])
def test_a_softmax_at_the_end_is_left_out(tmp_path, op, of_feature_map, opset):
    nodes, arrays = convolved()["nodes"], convolved()["arrays"] | {"k": rand(5, 4, 1, 1)}
    axis = {} if opset == 11 else {"axis": 1}  # axis 1 is what used to go without saying
    if of_feature_map:
        nodes = [
            *nodes[:2],
            node("Conv", "g k", "logits"),
            node(op, "logits", "p", **axis),
            node("Flatten", "p", "y"),
        ]
        plain = [*nodes[:3], node("Flatten", "logits", "y")]
    else:
        plain = nodes
        nodes = [
            *nodes[:-1],
            node("MatMul", "f last", "logits"),
            node(op, "logits", "p"),
            node("Identity", "p", "y"),
        ]
    x = rand(2, 6, 6, 3)
    expected = run(written(tmp_path / "plain.onnx", model(plain, arrays)), x)
    net = weights.load(written(tmp_path / "net.onnx", model(nodes, arrays, opset=opset)))
    assert relative(net(x), expected) < 1e-5


@pytest.mark.parametrize("classes", [1, 5])
def test_a_sigmoid_at_the_end_is_left_out(tmp_path, classes):
    nodes = [node("Conv", "x w", "h"), *GLOBAL[:2], node("MatMul", "f last", "z"), node("Sigmoid", "z", "y")]
    path = written(tmp_path / "net.onnx", model(nodes, {"w": CONV, "last": LAST[:, :classes]}))
    notes = []
    net, x = weights.load(path, say=notes.append), rand(2, 6, 6, 3)
    assert relative(1 / (1 + np.exp(-net(x))), run(path, x)) < 1e-5
    assert len(notes) == (classes > 1)


MEAN, STD = np.float32([0.5, 0.4, 0.3]), np.float32([0.2, 0.25, 0.3])
PIXELS = {
    "to 1": ([("Sub", MEAN), ("Div", STD)], 1),
    "to 1, one number": ([("Mul", np.float32(2)), ("Add", np.float32(-1))], 1),
    "to 255": ([("Div", np.float32(127.5)), ("Sub", np.float32(1))], 255),
    "to 255, two steps": ([("Mul", np.float32(1 / 255)), ("Sub", MEAN), ("Div", STD)], 255),
    "to 255, the mean": ([("Sub", 255 * MEAN)], 255),
    "to 255, division only": ([("Div", np.float32(255))], 255),
}


@pytest.mark.parametrize("case", PIXELS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_arithmetic_at_the_start_is_preprocessing(tmp_path, case, layout):
    operations, most = PIXELS[case]
    nodes, arrays = [], {"w": CONV, "last": LAST}
    for i, (op, constant) in enumerate(operations):
        arrays[f"a{i}"] = constant.reshape(-1, 1, 1) if constant.ndim and layout == "NCHW" else constant
        nodes.append(node(op, f"x{i} a{i}" if op != "Mul" else f"a{i} x{i}", f"x{i + 1}"))
    nodes[0].input[list(nodes[0].input).index("x0")] = "x"
    last, dims = f"x{len(operations)}", ("N", 3, 6, 6)
    if layout == "NHWC":
        nodes, last, dims = [*nodes, node("Transpose", last, "t", perm=[0, 3, 1, 2])], "t", ("N", 6, 6, 3)
    path = written(tmp_path / "net.onnx", model([*nodes, node("Conv", f"{last} w", "h"), *GLOBAL], arrays, dims=dims))
    notes = []
    net = weights.load(path, say=notes.append)
    assert notes == [f"its arithmetic before all layers is taken for preprocessing, of pixels from 0 to {most}"]
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3)).astype(np.uint8)
    x = normalise(images, **net.preprocessing)
    assert relative(net(x), run(path, (images * (most / 255)).astype(np.float32), layout)) < 1e-5


def test_half_precision_becomes_float32(tmp_path):
    nodes = [node("Conv", "x w b", "h"), *GLOBAL[:2], node("Gemm", "f last", "y", alpha=0.3)]
    arrays = {"w": CONV.astype(np.float16), "b": rand(4).astype(np.float16), "last": LAST.astype(np.float16)}
    net = weights.load(written(tmp_path / "half.onnx", model(nodes, arrays, kind=TensorProto.FLOAT16)))
    assert net.dtype == np.float32
    arrays = {name: a.astype(np.float32) for name, a in arrays.items()}
    assert_same(net, written(tmp_path / "net.onnx", model(nodes, arrays)), 2)


def test_double_precision_stays(tmp_path):
    arrays = {"w": rand(4, 3, 3, 3, dtype=np.float64), "last": rand(4, 5, dtype=np.float64)}
    nodes = [node("Conv", "x w", "h"), *GLOBAL]
    net = weights.load(written(tmp_path / "net.onnx", model(nodes, arrays, kind=TensorProto.DOUBLE)))
    np.testing.assert_array_equal([*net.parameters().values()][-1].value, arrays["last"])


def test_momentum_and_eps_are_the_numbers_that_were_meant(tmp_path):
    case = through("BatchNormalization", "c s b m v", 15, BN, momentum=0.99, epsilon=1e-3)
    net = weights.load(written(tmp_path / "net.onnx", model(**case)))
    (bn,) = (layer for _, layer in net.leaves() if isinstance(layer, BatchNorm))
    assert (bn.eps, bn.momentum) == (1e-3, 0.01)


def test_images_of_any_size_get_a_resolution_that_fits(tmp_path):
    case = convolved()
    path = tmp_path / "net.onnx"
    assert weights.load(written(path, model(**case, dims=("N", 3, "h", "w")))).resolution == 224
    case = ending(
        node("AveragePool", "h", "p", kernel_shape=[30, 30]),
        node("Flatten", "p", "f"),
        node("MatMul", "f k", "y"),
        k=LAST,
    )
    net = weights.load(written(path, model(**case | {"dims": ("N", 3, "h", "w")})))
    assert net.resolution == 32
    assert_same(net, path, 1)


def test_oblong_images(tmp_path):
    path = written(tmp_path / "net.onnx", model(**convolved(), dims=("N", 3, 9, 7)))
    net = weights.load(path)
    assert net.resolution == 7
    assert_same(net, path, 2, size=(9, 7))
    case = ending(node("Flatten", "h", "f"), node("MatMul", "f k", "y"), dims=("N", 3, 9, 7), k=rand(140, 5))
    with pytest.raises(MbnpError, match="takes images of 9 x 7 only"):
        weights.load(written(path, model(**case)))


def test_no_two_arrays_get_one_name(tmp_path):
    names = ["a.weight", "a.b.weight", "a.weight.weight", "a.b.c.weight", "..weight", "é/ü.weight"]
    nodes = [node("Conv", f"h{i} {name}", f"h{i + 1}") for i, name in enumerate(names)]
    nodes += [node("Conv", f"h{len(names)} a.b.weight", "q"), node("Add", "q h2", "s")]
    nodes = [node("Conv", "x w", "h0"), *nodes, node("Flatten", "s", "y")]
    arrays = {name: rand(4, 4, 1, 1, seed=i) for i, name in enumerate(names)}
    path = written(tmp_path / "net.onnx", model(nodes, {"w": CONV, **arrays}))
    net = weights.load(path)
    assert len(net.state()) == len(net.variables()) == len(nodes) - 2
    assert_same(net, path, 2)
    weights.save(net, tmp_path / "net.safetensors")
    assert_same(weights.load(tmp_path / "net.safetensors"), path, 2)


def test_what_is_unknown_is_named_all_at_once(tmp_path):
    nodes = [
        C,
        node("Tanh", "h", "s"),
        node("Elu", "s", "m"),
        helper.make_node("Elu", ["m"], ["n"]),
        node("Flatten", "n", "y"),
    ]
    nodes.append(helper.make_node("Magic", ["h"], ["z"], "magic", domain="com.example"))
    path = written(tmp_path / "net.onnx", model(nodes, {"w": CONV}))
    with pytest.raises(MbnpError) as caught:
        weights.load(path)
    line = str(caught.value)
    assert "Tanh ('the tanh'), Elu ('the elu', 'n'), com.example.Magic ('magic')" in line
    assert "\n" not in line


BAD = {
    "SAME_LOWER": convolved(auto_pad="SAME_LOWER"),
    r"dilations \[2, 2\]": convolved(dilations=[2, 2]),
    "2 groups for 4 channels": ending(node("Conv", "h k", "y", group=2), k=rand(4, 2, 1, 1)),
    "3 groups for 3 channels and 6 outputs": convolved(rand(6, 1, 3, 3), group=3),
    "for 3 channels": convolved(rand(4, 5, 3, 3)),
    "clips to -1.0 and 1.0": through("Clip", "c", 10, min=-1.0, max=1.0),
    "comes after a clip to None and 6.0": through("Clip", "c - high", 13, {"high": np.float32(6)}),
    "Min 'the min': mbnp has it with one number": bounded(("Min", "c w")),
    "comes after a clip to None and 0.3": bounded(("Min", "c most"), ("Identity", "_")),
    "'y': it comes after a clip to None": ending(node("Flatten", "h", "f"), node("Min", "f m", "y"), m=np.float32(6)),
    "comes after a mean over H alone": meaning(("ReduceMean", 1, [2])),
    r"takes the max over the axes \[?\(?2": meaning(("ReduceMax", 1, [2])),
    "comes after a sum over pixels which no division": meaning(("ReduceSum", 1, [2, 3]), ("Div", "four")),
    "Mul 'the mul' is before it, which scales by a constant": swish([("Relu", "_"), ("Mul", "_ six")]),
    "GlobalAveragePool .*: Mul 'the mul' is before it": swish([*HARD["clip, div"][:2], ("Mul", "h _")]),
    "Add 'the add' is before it, which adds a constant after": swish([("Relu", "_"), ("Add", "_ six")]),
    "or one by itself": swish([("Mul", "h h")]),
    "tensors that are both computed": swish(
        [("Mul", "r s")], [IDENTICAL, node("Relu", "h", "r"), node("HardSwish", "h", "s")]
    ),
    "multiplies what comes from a sigmoid": gated([("Sigmoid", "_")]),
    "mbnp has a factor for each channel": swish([("Conv", "_ across"), ("Mul", "h _")]),
    "turns pixels over": {
        "nodes": [node("Mul", "x m", "x1"), node("Conv", "x1 w", "h"), *GLOBAL],
        "arrays": {"m": np.float32(-1), "w": CONV, "last": LAST},
    },
    "Sub 'the sub': mbnp has it with one input": {
        "nodes": [node("Sub", "m x", "x1"), node("Conv", "x1 w", "h"), *GLOBAL],
        "arrays": {"m": np.float32(1), "w": CONV, "last": LAST},
    },
    r"it makes \[16, 4\] of an image": ending(node("Reshape", "h s", "p"), node("Flatten", "p", "y"), s=i64(0, 16, 4)),
    "Sigmoid 'the sigmoid': it is of a feature map": ending(node("Sigmoid", "h", "s"), node("Flatten", "s", "y")),
    "ceil_mode": through("MaxPool", "c", kernel_shape=[2, 2], ceil_mode=1),
    "not smaller than its window": through("MaxPool", "c", kernel_shape=[2, 2], pads=[2, 2, 2, 2]),
    "pads in mode reflect": through("Pad", "c p", 13, {"p": i64(0, 0, 1, 1, 0, 0, 1, 1)}, mode="reflect"),
    "padding .* out of bounds": through("Pad", "c p", 13, {"p": i64(0, 0, 1 << 40, 1, 0, 0, 1, 1)}),
    "exported for training": through("BatchNormalization", "c s b m v", 17, BN)
    | {
        "nodes": [
            node("Conv", "x w", "c"),
            node("BatchNormalization", "c s b m v", "h j k", training_mode=1),
            *GLOBAL,
        ]
    },
    "a variance is negative": through("BatchNormalization", "c s b m v", 15, BN | {"v": -BN["v"]}),
    "holds NaN": convolved(np.full((4, 3, 3, 3), np.nan, np.float32)),
    r"mean over the axes \(1,\)": ending(node("ReduceMean", "h", "g", axes=[1]), node("Flatten", "g", "y"), opset=13),
    "is over axis 1 of NCHW": through("Softmax", "c", axis=1),
    "comes after a softmax": ending(
        node("GlobalAveragePool", "h", "g"),
        node("Softmax", "g", "s", axis=1),
        node("Relu", "s", "r"),
        node("Flatten", "r", "y"),
    ),
    "adds what comes from a softmax": ending(
        node("Flatten", "h", "f"),
        node("MatMul", "f k", "l"),
        node("Softmax", "l", "s"),
        node("Relu", "l", "r"),
        node("Add", "s r", "y"),
        k=rand(64, 5),
    ),
    "Add 'the add': it comes after a softmax": ending(
        node("Flatten", "h", "f"),
        node("MatMul", "f k", "l"),
        node("Softmax", "l", "s"),
        node("Add", "s b", "y"),
        k=rand(64, 5),
        b=rand(5),
    ),
    "transA 1": ending(node("Flatten", "h", "f"), node("Gemm", "f k", "y", transA=1), k=rand(64, 5)),
    "mbnp flattens each image": ending(node("Reshape", "h s", "y"), s=i64(1, -1)),
    "flattens from axis 2": ending(node("Flatten", "h", "y", axis=2)),
    "which adds a constant after a layer without a bias": through("Add", "c b", arrays={"b": rand(4, 1, 1)})
    | {"nodes": [node("Conv", "x w", "c0"), node("Relu", "c0", "c"), node("Add", "c b", "h"), *GLOBAL]},
    "no bias of 4 channels": through("Add", "c b", arrays={"b": rand(4, 4, 4)}),
    "by two branches": ending(
        node("Conv", "h a", "p"),
        node("Relu", "h", "r"),
        node("Add", "p r", "q"),
        node("Relu", "p", "s"),
        node("Add", "s q", "t"),
        node("Flatten", "t", "y"),
        a=rand(4, 4, 1, 1),
    ),
    "adds a tensor to itself": ending(node("Add", "h h", "s"), node("Flatten", "s", "y")),
    "adds feature maps of": ending(
        node("Conv", "h a", "p"), node("Add", "p h", "q"), node("Flatten", "q", "y"), a=rand(1, 4, 1, 1)
    ),
    "mbnp every s-th row": ending(
        node("Slice", "h o l", "s"), node("Flatten", "s", "y"), o=i64(0, 0, 1), l=i64(9, 9, 9)
    ),
    "constants after it": ending(node("Concat", "h h", "y", axis=1)),
    "moves the axes": ending(node("Transpose", "h", "t", perm=[1, 0, 2, 3]), node("Flatten", "t", "y")),
    "it has no weights": {"nodes": [node("Flatten", "x", "y")]},
}


@pytest.mark.parametrize("message", BAD)
def test_what_mbnp_does_not_have_is_refused(tmp_path, message):
    path = written(tmp_path / "net.onnx", model(**BAD[message]))
    with pytest.raises(MbnpError, match=message) as caught:
        weights.load(path)
    assert "\n" not in str(caught.value)
