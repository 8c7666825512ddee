"""mbnp's own checkpoints: a safetensors file, with the architecture in its metadata.

Arrays have the names of `net.state()` and mbnp's layouts. The metadata says what builds the network again (a
builder of `models` and its options, or every layer), and what its images and classes are. Nothing in such a
file is ever executed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from mbnp import models
from mbnp.errors import MbnpError
from mbnp.network import Network
from mbnp.storage import replacing
from mbnp.weights import files, torch_files

FORMAT = "mbnp 1"
CHECKSUM = "sha256"
KEYS = ("arch", "resolution", "classes", "preprocessing")  # of the metadata; a detector's has "detection", too


def save(net: Network, path: Path) -> None:
    """Write every array of `net` and what builds it again."""
    write(path, net.state(), describe(net))


def load(path: Path, which: str | None = None, say: Callable[[str], object] = lambda text: None) -> Network:
    """Return the network that a file describes; one of PyTorch's is recognised by its names and shapes.

    Raises MbnpError for a file that is damaged or does not fit the architecture it names. which, say: as for PyTorch's.
    """
    metadata, arrays = read(path)
    if metadata.get("format") == FORMAT:
        return build(metadata, arrays, path)
    return torch_files.recognise(arrays, path, which, say)


def describe(net: Network) -> dict[str, str]:
    """Return the metadata of a network; MbnpError if it could not be built again from that."""
    try:
        preprocessing = files.check_description(net, net.resolution, net.classes, net.preprocessing)
        files.check_detection(net, net.detection)
    except MbnpError as error:
        raise MbnpError(f"a checkpoint of this network could not be read again: {error}") from None
    said = models.description(net), net.resolution, net.classes, preprocessing
    detection = {} if net.detection is None else {"detection": json.dumps(net.detection)}
    return {"format": FORMAT, **dict(zip(KEYS, map(json.dumps, said), strict=True)), **detection}


def build(metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray], path: Path) -> Network:
    """Return the network that metadata and arrays describe; MbnpError, which names the path, if they do not."""
    try:
        arch, resolution, classes, preprocessing = (json.loads(metadata[key]) for key in KEYS)
        net = models.from_description(arch, _dtype(arrays), sum(array.size for array in arrays.values()))
        net.load_state(arrays)
        detection = json.loads(metadata.get("detection", "null"))
        files.set_description(net, resolution, classes, preprocessing, detection)
        files.check_values(arrays)
    except KeyError as error:
        raise MbnpError(f"{path} is not a usable checkpoint: its metadata has no {error}") from None
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise MbnpError(f"{path} is not a usable checkpoint: {error}") from None
    return net


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Replace a safetensors file; the metadata gets a checksum. The same input makes the same bytes."""
    metadata = {**metadata, CHECKSUM: _checksum(arrays, metadata)}
    data = safetensors.numpy.save(dict(arrays), metadata)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])  # in an order that changes from call to call
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(dict(sorted(header.items())), ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(memoryview(data)[8 + size :])


def read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Return metadata and arrays of a safetensors file; MbnpError if it is damaged. Older files have no checksum."""
    metadata, arrays = _read(path)
    if metadata.get("format", "").startswith("mbnp ") and CHECKSUM in metadata:
        said = metadata.pop(CHECKSUM)
        if said != _checksum(arrays, metadata):
            raise MbnpError(f"{path} is damaged: its content is not what was written")
    return metadata, arrays


def _checksum(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    with files.reading(path, "safetensors file"):
        with safetensors.safe_open(path, framework="numpy") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            arrays = {name: file.get_tensor(name) for name, kind in kinds.items() if kind != "BF16"}
            metadata = file.metadata() or {}
        if "BF16" in kinds.values():
            for name, entry in safetensors.deserialize(path.read_bytes()):
                if entry["dtype"] == "BF16":  # float32 has the same bits, and 16 zeros after them
                    bits = np.frombuffer(entry["data"], "<u2").astype(np.uint32) << 16
                    arrays[name] = bits.view(np.float32).reshape(entry["shape"])
        return metadata, arrays


def _dtype(arrays: Mapping[str, np.ndarray]) -> Any:
    dtypes = {array.dtype for array in arrays.values()}
    if dtypes not in ({np.dtype(np.float32)}, {np.dtype(np.float64)}):
        names = ", ".join(sorted(map(str, dtypes))) or "no arrays"
        raise MbnpError(f"its arrays must all be float32 or all float64, not {names}")
    return dtypes.pop()
