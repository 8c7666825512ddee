"""The arrays of TensorFlow.js: a manifest in JSON, and files of raw numbers beside it, its shards.

    [{"paths": ["group1-shard1of2.bin", "group1-shard2of2.bin"], "weights": [
        {"name": "conv1/kernel", "shape": [3, 3, 3, 32], "dtype": "float32",
         "quantization": {"dtype": "uint8", "scale": 0.04, "min": -5.01}}]}]

The numbers of a group lie one after another in its shards, little-endian, and one array may begin in a shard and end in
the next. Where they are quantised, a number is stored * scale + min. A `model.json` has this list under
`weightsManifest`, and the network under `modelTopology`. Source: TensorFlow.js's io/types.ts and io/io_utils.ts.

A manifest is believed only as far as its shards are long: their sizes are added up before any is read.
"""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mbnp.errors import MbnpError, short

LONGEST = 16 << 20  # bytes of JSON; a graph of EfficientNet's size has one million
MOST_ARRAYS, MOST_AXES, LARGEST_AXIS = 20_000, 8, 1 << 31
LARGEST = 3.4e38  # of float32
STORED = {"float32": "<f4", "int32": "<i4", "bool": "u1"}
QUANTISED = {"uint8": "u1", "uint16": "<u2", "float16": "<f2"}


class Content(NamedTuple):
    """The content of a manifest or a model.json. topology: what the latter says of the network, else None."""

    arrays: dict[str, np.ndarray]
    topology: dict[str, Any] | None


class _Entry(NamedTuple):
    """One array of a manifest; scale and min are None where its numbers are stored as they are."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: np.dtype
    scale: float | None = None
    least: float | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.stored.itemsize


def read(path: Path) -> Content:
    """Return what a manifest or a model.json and its shards hold; MbnpError for what is damaged or does not fit."""
    content = parse(path)
    groups = content.get("weightsManifest") if isinstance(content, dict) else content
    topology = content.get("modelTopology") if isinstance(content, dict) else None
    if not isinstance(groups, list) or not groups or not all(isinstance(group, dict) for group in groups):
        raise MbnpError("it has no manifest of TensorFlow.js weights")
    if isinstance(content, dict) and not isinstance(topology, dict):
        raise MbnpError(f"its modelTopology is {short(topology)}")
    entries = [_entries(group) for group in groups]
    times = Counter(entry.name for group in entries for entry in group)
    if len(times) > MOST_ARRAYS:
        raise MbnpError(f"it lists {len(times):,} arrays, more than {MOST_ARRAYS:,}")
    if (twice := max(times, key=times.__getitem__, default="")) and times[twice] > 1:
        raise MbnpError(f"it lists {short(twice)} twice")
    shards = [_shards(group, path.parent) for group in groups]
    paths = [shard for group in shards for shard in group]
    if len(set(paths)) < len(paths):
        raise MbnpError("it names a file of numbers twice")
    arrays: dict[str, np.ndarray] = {}
    for group, files in zip(entries, shards, strict=True):
        arrays |= _arrays(group, files)
    return Content(arrays, topology)


def parse(path: Path) -> Any:
    """Return the JSON in a file."""
    if path.stat().st_size > LONGEST:
        raise MbnpError(f"it has {path.stat().st_size:,} bytes of JSON, more than {LONGEST:,}")
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise MbnpError("its JSON is nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise MbnpError(f"it is no JSON: {short(str(error))[1:-1]}") from None


def names(path: Path) -> set[str]:
    """Return the names of the arrays in a manifest, whatever else is wrong with it."""
    groups = parse(path)
    groups = groups.get("weightsManifest") if isinstance(groups, dict) else groups
    listed = [group.get("weights") for group in (groups if isinstance(groups, list) else ()) if isinstance(group, dict)]
    entries = [entry for weights in listed if isinstance(weights, list) for entry in weights]
    return {entry["name"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("name"), str)}


def _entries(group: dict[str, Any]) -> list[_Entry]:
    listed = group.get("weights")
    if not isinstance(listed, list):
        raise MbnpError(f"a group of its manifest has the weights {short(listed)}")
    return [_entry(entry) for entry in listed]


def _entry(entry: Any) -> _Entry:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name:
        raise MbnpError(f"its manifest has an array without a name: {short(entry)}")
    shape, dtype, how = entry.get("shape"), entry.get("dtype"), entry.get("quantization")
    plain = isinstance(shape, list) and all(type(n) is int and 0 <= n <= LARGEST_AXIS for n in shape)
    if not plain or len(shape) > MOST_AXES:
        raise MbnpError(f"array {short(name)} has the shape {short(shape)}")
    if not isinstance(dtype, str) or dtype not in STORED:
        raise MbnpError(f"array {short(name)} is of the type {short(dtype)}; mbnp reads {', '.join(STORED)}")
    if how is None:
        return _Entry(name, tuple(shape), dtype, np.dtype(STORED[dtype]))
    kind = how.get("dtype") if isinstance(how, dict) else None
    if not isinstance(kind, str) or kind not in QUANTISED or dtype == "bool" or (kind, dtype) == ("float16", "int32"):
        raise MbnpError(f"array {short(name)}, of {dtype}, is quantised as {short(how)}")
    stored = np.dtype(QUANTISED[kind])
    if kind == "float16":
        return _Entry(name, tuple(shape), dtype, stored)
    return _Entry(name, tuple(shape), dtype, stored, *(_number(name, how, key) for key in ("scale", "min")))


def _number(name: str, how: dict[str, Any], key: str) -> float:
    value: Any = how.get(key)
    if type(value) not in (int, float) or not abs(value) <= LARGEST:
        raise MbnpError(f"array {short(name)} is quantised with the {key} {short(value)}, no finite number")
    return float(value)


def _shards(group: dict[str, Any], folder: Path) -> list[Path]:
    """Return the files of a group, which must lie beside the manifest."""
    listed = group.get("paths")
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise MbnpError(f"a group of its manifest has the paths {short(listed)}")
    found = []
    for name in listed:
        path = folder / name
        if Path(name).name != name or "\\" in name or not name.isprintable() or path.is_symlink():
            raise MbnpError(f"its numbers are in {short(name)}; mbnp reads files in the same folder only")
        if not path.is_file():
            raise MbnpError(f"its numbers are in {short(name)}, which is not in its folder")
        found.append(path)
    return found


def _arrays(entries: list[_Entry], shards: list[Path]) -> dict[str, np.ndarray]:
    needed, held = sum(entry.size for entry in entries), sum(path.stat().st_size for path in shards)
    data = b"".join(path.read_bytes() for path in shards) if needed == held else b""
    if len(data) != needed:
        listed = ", ".join(short(path.name)[1:-1] for path in shards[:3]) + (", ..." if len(shards) > 3 else "")
        raise MbnpError(f"its arrays need {short(needed)} bytes, and {listed or 'no file'} holds {held:,}")
    arrays, at = {}, 0
    for entry in entries:
        raw = np.frombuffer(data[at : at + entry.size], entry.stored)
        arrays[entry.name] = _values(entry, raw.reshape(entry.shape))
        at += entry.size
    return arrays


def _values(entry: _Entry, raw: np.ndarray) -> np.ndarray:
    """Return the numbers that are meant, in the array's own type: TensorFlow.js computes them in float64, too."""
    dtype = np.dtype(entry.dtype)
    if entry.scale is None or entry.least is None:
        return raw.astype(dtype)
    values = raw.astype(np.float64) * entry.scale + entry.least
    with np.errstate(all="ignore"):
        if dtype != np.int32:
            return values.astype(dtype)
        limits = np.iinfo(np.int32)
        return np.clip(np.floor(values + 0.5), limits.min, limits.max).astype(dtype)  # as JavaScript's Math.round
