"""Check an ONNX file before it is believed: its nodes and constants, or one line that says what is wrong.

Nothing in it is executed, and no array is made that it has no bytes for.
"""

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mbnp.errors import MbnpError
from mbnp.weights.files import short
from mbnp.weights.onnx.tensors import Tensors

METADATA = "mbnp."  # begins the names of what mbnp writes into a graph's metadata
OLDEST_OPSET = 7
PASSED_NAMES = 3  # of the nodes of one unknown operation, at most, in an error


class Node(NamedTuple):
    """One node. Attributes are plain values; `opset` is the version of the operations that the file is written in."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int

    def __str__(self) -> str:
        return f"{self.op} {short(self.name)}"


class Graph(NamedTuple):
    """A graph of one input and one output. dims: the input's, None where any size goes; numbers: in the file."""

    nodes: list[Node]
    constants: dict[str, np.ndarray]
    input: str
    dims: tuple[int | None, ...]
    dtype: type
    output: str
    metadata: dict[str, str]
    numbers: int


def library() -> Any:
    """Return the package onnx; MbnpError, if it is not installed, that says how to get it."""
    try:
        import onnx
    except ImportError:
        raise MbnpError('ONNX files need the package onnx: pip install "mbnp[onnx]"') from None
    return onnx


def read(path: Path, known: Collection[str]) -> Graph:
    """Return the graph in a file, if it is made of the `known` operations. MbnpError for whatever is wrong with it."""
    onnx = library()
    model = _parse(onnx, path)
    graph = model.graph
    opset = _opset(onnx, model)
    if model.functions:
        raise MbnpError(f"it defines functions, which mbnp does not expand: {_listed(model.functions)}")
    _check_operations(graph.node, known)
    if graph.sparse_initializer:
        raise MbnpError("it has sparse arrays")
    tensors = Tensors(onnx, path.parent)
    constants = {}
    for tensor in graph.initializer:
        if tensor.name in constants:
            raise MbnpError(f"two arrays have the name {short(tensor.name)}")
        constants[tensor.name] = tensors.array(tensor)
    nodes = [_node(onnx, tensors, proto, opset) for proto in graph.node]
    try:  # types of attributes, numbers of inputs, order of nodes, names that are used twice
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise MbnpError(f"onnx's checker refuses it: {' '.join(str(error).split())[:200]}") from None
    # Arrays may be listed as inputs, too.
    inputs = [value for value in graph.input if value.name not in constants]
    for what, values in (("input", inputs), ("output", graph.output)):
        if len(values) != 1:
            raise MbnpError(f"it has {len(values)} {what}s where mbnp takes one: {_listed(values)}")
    dims, dtype = _input(onnx, inputs[0])
    metadata = {entry.key: entry.value for entry in model.metadata_props if entry.key.startswith(METADATA)}
    arrays = [*constants.values(), *(value for node in nodes for value in node.attributes.values())]
    numbers = sum(a.size for a in arrays if isinstance(a, np.ndarray))
    return Graph(nodes, constants, inputs[0].name, dims, dtype, graph.output[0].name, metadata, numbers)


def _parse(onnx: Any, path: Path) -> Any:
    from google.protobuf.message import DecodeError

    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except DecodeError:
        raise MbnpError("it is damaged or no ONNX file") from None
    if not model.HasField("graph") or not model.graph.node:
        raise MbnpError("it is damaged or no ONNX file: it has no graph")
    return model


def _opset(onnx: Any, model: Any) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    newest = onnx.defs.onnx_opset_version()
    if len(versions) != 1 or not OLDEST_OPSET <= versions[0] <= newest:
        raise MbnpError(f"its operations are of opset {versions}; known are {OLDEST_OPSET} to {newest}")
    return versions[0]


def _check_operations(nodes: Any, known: Collection[str]) -> None:
    """Raise MbnpError with every operation that is not known, and where it stands."""
    unknown: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        if node.domain not in ("", "ai.onnx"):
            unknown[f"{node.domain}.{node.op_type}"].append(node.name)
        elif node.op_type not in known:
            unknown[node.op_type].append(node.name)
    where = []
    for op, names in unknown.items():
        more = f" and {len(names) - PASSED_NAMES} more" if len(names) > PASSED_NAMES else ""
        where.append(f"{short(op)[1:-1]} ({', '.join(map(short, names[:PASSED_NAMES]))}{more})")
    if where:
        raise MbnpError(f"mbnp does not have its operations {', '.join(where)}")


def _node(onnx: Any, tensors: Tensors, proto: Any, opset: int) -> Node:
    attributes = {}
    for attribute in proto.attribute:
        try:
            value = onnx.helper.get_attribute_value(attribute)
        except ValueError as error:
            raise MbnpError(f"an attribute of {short(proto.name)} is damaged: {short(str(error))}") from None
        if isinstance(value, onnx.TensorProto):
            value = tensors.array(value)
        attributes[attribute.name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    name = proto.name or (proto.output[0] if proto.output else "")
    return Node(proto.op_type, name, tuple(proto.input), tuple(proto.output), attributes, opset)


def _input(onnx: Any, value: Any) -> tuple[tuple[int | None, ...], type]:
    kind = value.type.tensor_type
    t = onnx.TensorProto
    types = {t.DOUBLE: np.float64, t.FLOAT: np.float32, t.FLOAT16: np.float32, t.BFLOAT16: np.float32}
    dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    if kind.elem_type not in types or len(dims) != 4:
        raise MbnpError(f"its input {short(value.name)} must be images: four axes of floats")
    return tuple(d if d is None or d > 0 else None for d in dims), types[kind.elem_type]


def _listed(values: Any) -> str:
    return ", ".join(short(value.name) for value in values[:PASSED_NAMES]) or "none"
