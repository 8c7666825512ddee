"""Check an ONNX file before it is believed: its nodes and constants, or one line that says what is wrong.

Nothing in it is executed, and no array is made that it has no bytes for. PyTorch's exporter writes large arrays into a
file of their own, `net.onnx.data` beside `net.onnx`. Such a file is read if it lies in the same folder under a plain
name, and each of its bytes at most once.
"""

import math
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mbnp.errors import MbnpError, short

METADATA = "mbnp."  # begins the names of what mbnp writes into a graph's metadata
OLDEST_OPSET = 7
MOST_LISTED = 3  # names, in an error


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
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    newest = onnx.defs.onnx_opset_version()
    if len(versions) != 1 or not OLDEST_OPSET <= versions[0] <= newest:
        raise MbnpError(f"its operations are of opset {versions}; known are {OLDEST_OPSET} to {newest}")
    if model.functions:
        raise MbnpError(f"it defines functions, which mbnp does not expand: {_listed(model.functions)}")
    _check_operations(graph.node, known)
    if graph.sparse_initializer:
        raise MbnpError("it has sparse arrays")
    arrays = _Arrays(onnx, path.parent)
    constants = {tensor.name: arrays.read(tensor) for tensor in graph.initializer}
    nodes = [_node(onnx, arrays, proto, versions[0]) for proto in graph.node]
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
    values = [*constants.values(), *(value for node in nodes for value in node.attributes.values())]
    numbers = sum(value.size for value in values if isinstance(value, np.ndarray))
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


def _check_operations(nodes: Any, known: Collection[str]) -> None:
    """Raise MbnpError with every operation that is not known, and where it stands."""
    unknown: dict[str, list[Any]] = defaultdict(list)
    for node in nodes:
        own = node.domain in ("", "ai.onnx")
        if not own or node.op_type not in known:
            unknown[node.op_type if own else f"{node.domain}.{node.op_type}"].append(node)
    if unknown:
        where = ", ".join(f"{short(op)[1:-1]} ({_listed(found)})" for op, found in unknown.items())
        raise MbnpError(f"mbnp does not have its operations {where}")


def _node(onnx: Any, arrays: "_Arrays", proto: Any, opset: int) -> Node:
    attributes = {}
    for attribute in proto.attribute:
        try:
            value = onnx.helper.get_attribute_value(attribute)
        except ValueError as error:
            raise MbnpError(f"an attribute of {short(_name(proto))} is damaged: {short(str(error))}") from None
        if isinstance(value, onnx.TensorProto):
            value = arrays.read(value)
        attributes[attribute.name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return Node(proto.op_type, _name(proto), tuple(proto.input), tuple(proto.output), attributes, opset)


def _input(onnx: Any, value: Any) -> tuple[tuple[int | None, ...], type]:
    kind = value.type.tensor_type
    t = onnx.TensorProto
    types = {t.DOUBLE: np.float64, t.FLOAT: np.float32, t.FLOAT16: np.float32, t.BFLOAT16: np.float32}
    dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    if kind.elem_type not in types or len(dims) != 4:
        raise MbnpError(f"its input {short(value.name)} must be images: four axes of floats")
    return tuple(d if d is None or d > 0 else None for d in dims), types[kind.elem_type]


def _listed(values: Any) -> str:
    """Return the names of the first few of `values`, and how many more there are."""
    more = f" and {len(values) - MOST_LISTED} more" if len(values) > MOST_LISTED else ""
    return (", ".join(short(_name(value)) for value in values[:MOST_LISTED]) or "none") + more


def _name(value: Any) -> str:
    """Return the name of something in a graph; of a node without one, that of what it makes."""
    return value.name or next(iter(getattr(value, "output", ())), "")


class _Arrays:
    """A reader of the arrays of a file in `folder`."""

    def __init__(self, onnx: Any, folder: Path) -> None:
        self.onnx, self.folder = onnx, folder
        t = onnx.TensorProto
        self.types = {t.FLOAT, t.DOUBLE, t.FLOAT16, t.BFLOAT16, t.INT32, t.INT64, t.BOOL}
        self.unread: dict[str, int] = {}  # bytes of each file beside this one that no array has taken yet

    def read(self, tensor: Any) -> np.ndarray:
        """Return the array in a TensorProto; MbnpError for one that is damaged, or of no type to compute with."""
        name, dims = short(tensor.name), list(tensor.dims)
        if tensor.data_type not in self.types:
            kinds = self.onnx.TensorProto.DataType
            kind = kinds.Name(tensor.data_type) if tensor.data_type in kinds.values() else "unknown"
            raise MbnpError(f"array {name} is of the type {kind}, which mbnp does not compute with")
        size = self.onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if tensor.external_data or tensor.data_location == self.onnx.TensorProto.EXTERNAL:
            self._bring_in(tensor, math.prod(dims) * size)
        if tensor.HasField("raw_data"):
            held = len(tensor.raw_data) / size
        else:
            held = len(getattr(tensor, self.onnx.helper.tensor_dtype_to_field(tensor.data_type)))
        if min(dims, default=0) < 0 or math.prod(dims) != held:
            raise MbnpError(f"array {name} of shape {short(dims)} comes with {held:.0f} numbers")
        try:
            return self.onnx.numpy_helper.to_array(tensor)
        except (TypeError, ValueError) as error:
            raise MbnpError(f"array {name} is damaged: {short(str(error))}") from None

    def _bring_in(self, tensor: Any, needed: int) -> None:
        """Put the bytes from the file beside this one where arrays usually have them."""
        said = {entry.key: entry.value for entry in tensor.external_data}
        location, name = said.get("location", ""), short(tensor.name)
        path = self.folder / location
        if Path(location).name != location or "\\" in location or "\0" in location or path.is_symlink():
            raise MbnpError(f"array {name} is in {short(location)}; mbnp reads files in the same folder only")
        if not path.is_file():
            raise MbnpError(f"array {name} is in {short(location)}, which is not in the folder of this file")
        try:
            offset, length = int(said.get("offset", 0)), int(said.get("length", needed))
        except ValueError:
            raise MbnpError(f"array {name} has no numbers for its place in {short(location)}") from None
        whole = path.stat().st_size
        self.unread[location] = self.unread.get(location, whole) - needed
        if length != needed or offset < 0 or offset + length > whole or self.unread[location] < 0:
            raise MbnpError(f"array {name} needs {short(needed)} bytes that {short(location)} does not hold")
        with path.open("rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(length)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
