"""Small ONNX graphs for tests, and onnxruntime's output for a file."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tests.twins import relative


def rand(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(dtype)


def node(op: str, inputs: str, output: str, **attributes) -> onnx.NodeProto:
    """Make a node from names separated by blanks; a dash is an input that is left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, names, output.split(), name=f"the {op.lower()}", **attributes)


def model(nodes, arrays=(), dims=("N", 3, 6, 6), opset=17, kind=TensorProto.FLOAT, out=("N", None)) -> onnx.ModelProto:
    """Make a graph from x to y."""
    seen: set[str] = set()
    for i, n in enumerate(nodes):  # onnxruntime wants names of their own
        if n.name in seen:
            n.name += f" {i}"
        seen.add(n.name)
    x = helper.make_tensor_value_info("x", kind, dims)
    y = helper.make_tensor_value_info("y", kind, out)
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in dict(arrays).items()]
    graph = helper.make_graph(nodes, "graph", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def written(path: Path, proto: onnx.ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def run(path: Path, x: np.ndarray, layout: str = "NCHW") -> np.ndarray:
    """Return the output of onnxruntime for images x (N, H, W, C)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    x = x.transpose(0, 3, 1, 2) if layout == "NCHW" else x
    return session.run(None, {given.name: np.ascontiguousarray(x)})[0]


def assert_same(net, path: Path, n: int, layout: str = "NCHW", size: tuple[int, int] | None = None) -> None:
    """Assert that logits for n random images are onnxruntime's, to 1e-5 of the largest."""
    h, w = size or (net.resolution, net.resolution)
    x = rand(n, h, w, net.channels)
    expected = run(path, x, layout)
    logits = net(x.astype(net.dtype))
    if expected.ndim == 4 and layout == "NCHW":
        logits = logits.reshape(n, *expected.shape[2:], -1).transpose(0, 3, 1, 2)
    assert logits.shape == expected.shape
    assert np.abs(expected).max() > 0.01
    assert relative(logits, expected) < 1e-5
