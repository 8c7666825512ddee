"""mbnp's own checkpoints: a safetensors file, with the architecture in its metadata.

Arrays have the names of `net.state()` and mbnp's layouts. The metadata says what builds the network again (a
builder of `models` and its options, or every layer), and what its images and classes are. Nothing in such a
file is ever executed.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from mbnp import models
from mbnp.errors import MbnpError
from mbnp.network import Network
from mbnp.weights import files, torch_files

FORMAT = "mbnp 1"
KEYS = ("arch", "resolution", "classes", "preprocessing")  # of the metadata


def save(net: Network, path: Path) -> None:
    """Write every array of `net` and what builds it again."""
    try:
        preprocessing = files.check_description(net, net.resolution, net.classes, net.preprocessing)
    except MbnpError as error:
        raise MbnpError(f"a checkpoint of this network could not be read again: {error}") from None
    said = models.description(net), net.resolution, net.classes, preprocessing
    metadata = {"format": FORMAT, **dict(zip(KEYS, map(json.dumps, said), strict=True))}
    with files.replacing(path) as partial:
        try:
            safetensors.numpy.save_file(net.state(), partial, metadata)
        except safetensors.SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}") from None


def load(path: Path) -> Network:
    """Return the network that a file describes; one of PyTorch's is recognised by its names and shapes.

    Raises MbnpError for a file that is damaged or does not fit the architecture it names.
    """
    metadata, arrays = _read(path)
    if metadata.get("format") != FORMAT:
        return torch_files.recognise(arrays, path)
    try:
        arch, *said = (json.loads(metadata[key]) for key in KEYS)
        net = models.from_description(arch, _dtype(arrays), sum(array.size for array in arrays.values()))
        net.load_state(arrays)
        files.set_description(net, *said)
        files.check_values(arrays)
    except KeyError as error:
        raise MbnpError(f"{path} is not a usable checkpoint: its metadata has no {error}") from None
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise MbnpError(f"{path} is not a usable checkpoint: {error}") from None
    return net


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    try:
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
    except (safetensors.SafetensorError, TypeError, AttributeError) as error:
        raise MbnpError(f"{path} is damaged or no safetensors file: {error}") from None


def _dtype(arrays: dict[str, np.ndarray]) -> Any:
    dtypes = {array.dtype for array in arrays.values()}
    if dtypes not in ({np.dtype(np.float32)}, {np.dtype(np.float64)}):
        names = ", ".join(sorted(map(str, dtypes))) or "no arrays"
        raise MbnpError(f"its arrays must all be float32 or all float64, not {names}")
    return dtypes.pop()
