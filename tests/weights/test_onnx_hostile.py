"""ONNX files that are damaged or hostile: one clear line, nothing opened outside their folder, no needless memory."""

import contextlib
import json
import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mbnp import MbnpError, models, weights
from tests.weights.graphs import model, node, rand, written

END = [node("GlobalAveragePool", "h", "g"), node("Flatten", "g", "y")]


def good():
    return model([node("Conv", "x w", "h"), *END], {"w": rand(4, 3, 3, 3)})


def change(**fields):
    """Return a good graph whose weights have other fields."""
    proto = good()
    tensor = proto.graph.initializer[0]
    for name, value in fields.items():
        tensor.ClearField(name)
        if isinstance(value, list):
            getattr(tensor, name).extend(value)
        else:
            setattr(tensor, name, value)
    return proto


def elsewhere(location, in_a_node=False, times=1, **place):
    proto = good()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **place}.items():
        tensor.external_data.add(key=key, value=str(value))
    if in_a_node:
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], "constant", value=tensor))
        proto.graph.initializer.pop()
    for i in range(1, times):
        proto.graph.initializer.add().CopyFrom(tensor)
        proto.graph.initializer[i].name = f"w{i}"
    return proto


def no_text():
    proto = good()
    proto.metadata_props.add(key="key", value="value")
    content = proto.SerializeToString().replace(b"key", b"\xff\xfe\xff")
    return type("Raw", (), {"SerializeToString": lambda self: content})()


def with_function():
    proto = good()
    sevens = [helper.make_node("Relu", ["a"], ["b"])]
    proto.functions.append(helper.make_function("local", "Seven", ["a"], ["b"], sevens, [helper.make_opsetid("", 17)]))
    proto.opset_import.append(helper.make_opsetid("local", 1))
    return proto


def with_branch():
    inner = helper.make_graph([node("Relu", "x", "z")], "inner", [], [helper.make_empty_tensor_value_info("z")])
    nodes = [node("If", "c", "h", then_branch=inner, else_branch=inner), *END]
    return model(nodes, {"c": np.True_})


def with_two(what):
    proto = good()
    values = getattr(proto.graph, what)
    values.add().CopyFrom(values[0])
    values[1].name = {"input": "x2", "output": "g"}[what]
    return proto


def with_weights_twice():
    proto = good()
    proto.graph.initializer.add().CopyFrom(proto.graph.initializer[0])
    return proto


def with_sparse_weights():
    proto = good()
    sparse = proto.graph.sparse_initializer.add()
    sparse.values.CopyFrom(onnx.numpy_helper.from_array(rand(1), "sparse"))
    sparse.indices.CopyFrom(onnx.numpy_helper.from_array(np.array([0]), "indices"))
    sparse.dims.append(1 << 40)
    return proto


def repeated(times):
    """Use the same square weights over and over: a small file that would be a large network."""
    nodes = [node("Conv", "x first", "h0")]
    nodes += [node("Conv", f"h{i} w", f"h{i + 1}") for i in range(times)]
    nodes += [node("GlobalAveragePool", f"h{times}", "g"), node("Flatten", "g", "y")]
    return model(nodes, {"first": rand(200, 3, 1, 1), "w": rand(200, 200, 1, 1)})


def nested(depth):
    """Return a branch that has a branch, and so on."""
    nodes = [node("Conv", "x w", "h0")]
    nodes += [node("Relu", f"h{i}", f"h{i + 1}") for i in range(depth)]
    nodes += [node("Add", f"h{depth} h{depth - 1}", f"s{depth - 1}")]
    nodes += [node("Add", f"s{i + 1} h{i}", f"s{i}") for i in reversed(range(depth - 1))]
    return model([*nodes, node("GlobalAveragePool", "s0", "g"), node("Flatten", "g", "y")], {"w": rand(4, 3, 3, 3)})


def copies(times):
    """Transpose and copy weights, over and over."""
    turn = [(node("Transpose", f"v{i}", f"t{i}"), node("Reshape", f"t{i} s", f"v{i + 1}")) for i in range(times)]
    nodes = [*(n for pair in turn for n in pair), node("Conv", f"x v{times}", "h"), *END]
    return model(nodes, {"v0": rand(100, 3, 30, 30), "s": np.array([30, 30, 3, 100])})


def made(shape):
    return model([node("ConstantOfShape", "s", "w"), node("Conv", "x w", "h"), *END], {"s": np.array(shape)})


def wide(margin):
    nodes = [node("Conv", "x w", "h", pads=[margin] * 4), node("Conv", "h w", "i", pads=[margin] * 4)]
    return model([*nodes, node("Relu", "i", "y")], {"w": rand(3, 3, 3, 3)})


def relu(**options):
    return model([node("Relu", "x", "y")], **options)


def through(*nodes, **arrays):
    return model([node("Conv", "x w", "h0"), *nodes, *END], {"w": rand(4, 3, 3, 3), **arrays})


HUGE = np.array([1 << 40, 1 << 40])
HOSTILE = {
    "outside": (lambda: elsewhere("../weights.bin"), "array 'w' is in '../weights.bin'; mbnp reads files in"),
    "outside in a node": (lambda: elsewhere("/etc/passwd", True), "reads files in the same folder only"),
    "outside through a link": (lambda: elsewhere("link.bin"), "reads files in the same folder only"),
    "the folder itself": (lambda: elsewhere(".."), "reads files in the same folder only|not in the folder"),
    "not there": (lambda: elsewhere("none.bin"), "'none.bin', which is not in the folder of this file"),
    "too long": (lambda: elsewhere("weights.bin", offset=4), "bytes that 'weights.bin' does not hold"),
    "too far": (lambda: elsewhere("weights.bin", offset=1 << 60), "bytes that 'weights.bin' does not hold"),
    "before the start": (lambda: elsewhere("weights.bin", offset=-4), "bytes that 'weights.bin' does not hold"),
    "of another length": (lambda: elsewhere("weights.bin", length=8), "bytes that 'weights.bin' does not hold"),
    "of no length": (lambda: elsewhere("weights.bin", length="all"), "has no numbers for its place"),
    "read twice": (lambda: elsewhere("weights.bin", times=2), "array 'w1' needs 432 bytes"),
    "names that are no text": (no_text, "it has names that are no text"),
    "too few numbers": (lambda: change(dims=[400, 3, 3, 3]), r"of shape \[400, 3, 3, 3\] comes with 108 numbers"),
    "half a number": (lambda: change(raw_data=b"12345"), "comes with 1 numbers"),
    "dims overflow": (lambda: change(dims=[1 << 62, 4, 1 << 62, 3]), "comes with 108 numbers"),
    "dims overflow to the right size": (lambda: change(dims=[108, (1 << 61) + 1, 8, 1]), "comes with 108 numbers"),
    "negative dims": (lambda: change(dims=[-4, -3, 3, 3]), "comes with 108 numbers"),
    "dims without data": (lambda: change(dims=[1 << 40], raw_data=b""), "comes with 0 numbers"),
    "no such type": (lambda: change(data_type=99), "of the type unknown"),
    "text": (lambda: change(data_type=TensorProto.STRING, dims=[1], string_data=[b"x"]), "of the type STRING"),
    "whole numbers": (lambda: change(data_type=TensorProto.UINT8, dims=[4, 3, 6, 6]), "of the type UINT8"),
    "two arrays of one name": (with_weights_twice, "checker refuses it: .*not unique"),
    "sparse": (with_sparse_weights, "sparse arrays"),
    "function": (with_function, "defines functions, which mbnp does not expand: 'Seven'"),
    "branch": (with_branch, r"does not have its operations If \('the if'\)"),
    "two inputs": (lambda: with_two("input"), "it has 2 inputs where mbnp takes one: 'x', 'x2'"),
    "two outputs": (lambda: with_two("output"), "it has 2 outputs where mbnp takes one: 'y', 'g'"),
    "same name twice": (
        lambda: model([node("Conv", "x w", "h"), node("Relu", "h", "h"), *END], {"w": rand(4, 3, 3, 3)}),
        "checker refuses it: .*single static assignment",
    ),
    "cycle": (lambda: through(node("Add", "h0 h", "k"), node("Relu", "k", "h")), "checker refuses it: .*sorted"),
    "out of order": (lambda: through(node("Relu", "k", "h"), node("Relu", "h0", "k")), "checker refuses it: .*sorted"),
    "old opset": (lambda: relu(opset=6), r"of opset \[6\]; known are 7 to"),
    "opset to come": (lambda: relu(opset=999), r"of opset \[999\]"),
    "weights made": (lambda: made([999, 3, 9, 9]), "it makes an array of shape"),
    "terabytes made": (lambda: made(HUGE), "it makes an array of shape"),
    "expanded": (lambda: through(node("Expand", "h0 s", "h"), s=HUGE), "does not have its operations Expand"),
    "weights repeated": (lambda: repeated(2000), "it makes more of the 40,600 numbers in the file"),
    "copies of copies": (lambda: copies(500), "it makes more of the 270,004 numbers"),
    "nested without end": (lambda: nested(500), "more than 12 deep"),
    "too many nodes": (
        lambda: through(*(node("Relu", f"h{i}", f"h{i + 1}" if i < 10_100 else "h") for i in range(10_101))),
        "it has 10,104 nodes; mbnp takes up to 10,000",
    ),
    "margins without end": (lambda: wide(4096), "it makes a feature map of"),
    "images without end": (lambda: relu(dims=("N", 3, 1 << 40, 1 << 40)), "takes up to 10000"),
    "text for images": (lambda: relu(kind=TensorProto.STRING), "must be images: four axes of floats"),
    "no images": (lambda: relu(dims=("N", 3)), "must be images"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_it_is_refused_in_one_line_and_without_memory(tmp_path, case):
    make, message = HOSTILE[case]
    path = written(tmp_path / "net.onnx", make())
    (tmp_path / "weights.bin").write_bytes(rand(4, 3, 3, 3).tobytes())
    (tmp_path / "link.bin").symlink_to("weights.bin")
    tracemalloc.start()
    with pytest.raises(MbnpError, match=message) as caught:
        weights.load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert peak < 20_000_000 + 10 * path.stat().st_size


def test_the_good_graph_is_good(tmp_path):
    """The graphs above are made from this one, and refused for what was changed."""
    assert weights.load(written(tmp_path / "net.onnx", good())).num_classes == 4
    (tmp_path / "weights.bin").write_bytes(rand(4, 3, 3, 3).tobytes())
    assert weights.load(written(tmp_path / "net.onnx", elsewhere("weights.bin"))).num_classes == 4
    assert weights.load(written(tmp_path / "net.onnx", repeated(1))).num_classes == 200
    weights.load(written(tmp_path / "net.onnx", nested(5)))(rand(1, 6, 6, 3))


def test_damaged_files(tmp_path):
    path = tmp_path / "net.onnx"
    weights.save(models.create("mobilenet-v1-small", width_mult=0.25), path)
    whole = path.read_bytes()
    for size in (0, 1, 100, 5000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(MbnpError, match="cannot be imported: it is damaged or no ONNX file"):
            weights.load(path)
    rng = np.random.default_rng(0)
    for _ in range(300):
        content = np.frombuffer(whole, np.uint8).copy()
        content[rng.integers(0, 6000, 3)] = rng.integers(0, 256, 3)
        path.write_bytes(content.tobytes())
        with contextlib.suppress(MbnpError):  # and nothing else
            weights.load(path)


LARGE = {"name": "a", "kind": "linear", "c_in": 999_999, "c_out": 999_999, "bias": True}


@pytest.mark.parametrize(
    "arch",
    [
        {"name": "mobilenet-v1-small", "num_classes": 4, "width_mult": 100},
        {"name": "mobilenet-v1-small", "num_classes": 99_999, "width_mult": 0.25},
        {"name": "mobilenet-v1-small", "seed": -1},
        {"name": "layers", "resolution": 32, "channels": 3, "layers": [LARGE]},
        {"name": "nothing"},
        [[]],
        7,
    ],
)
def test_an_architecture_that_the_graph_does_not_have_is_ignored(tmp_path, arch):
    path = tmp_path / "net.onnx"
    weights.save(models.create("mobilenet-v1-small", num_classes=4, width_mult=0.25), path, fold=False)
    proto = onnx.load(path)
    (entry,) = (entry for entry in proto.metadata_props if entry.key == "mbnp.arch")
    entry.value = json.dumps(arch)
    written(path, proto)
    tracemalloc.start()
    net = weights.load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert net.num_classes == 4
    assert peak < 20_000_000
