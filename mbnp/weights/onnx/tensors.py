"""The arrays of an ONNX file, each made only once its size is known to be what the file holds.

PyTorch's exporter writes large arrays into a file of their own, `net.onnx.data` beside `net.onnx`. Such a file is read
if it lies in the same folder under a plain name, and each of its bytes at most once.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from mbnp.errors import MbnpError
from mbnp.weights.files import short


class Tensors:
    """A reader of the arrays of a file in `folder`."""

    def __init__(self, onnx: Any, folder: Path) -> None:
        self.onnx, self.folder = onnx, folder
        t = onnx.TensorProto
        self.types = {t.FLOAT, t.DOUBLE, t.FLOAT16, t.BFLOAT16, t.INT32, t.INT64, t.BOOL}
        self.unread: dict[str, int] = {}  # bytes of each file beside this one that no array has taken yet

    def array(self, tensor: Any) -> np.ndarray:
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
