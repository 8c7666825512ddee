"""Weights in and out, one file or folder per format; `load` goes by the file's content, `save` by its suffix.

net = weights.load("mobilenet.h5")           safetensors (mbnp's and PyTorch's), PyTorch's, Keras's and ONNX files
                                             (whose state dicts: torch_known.py; which Keras models: keras/__init__.py),
                                             TensorFlow.js's model.json or manifest (tfjs/); or the folder of it, or
                                             of a run
weights.save(net, "model.safetensors")       also .pt and .onnx
weights.from_torch(net, state_dict); state_dict = weights.to_torch(net)
gradients = weights.grads_to_torch(net)      by the names of named_parameters()

Nothing in a file is ever executed or unpickled. A load that fails leaves everything as it was.
"""

import importlib
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mbnp.errors import MbnpError
from mbnp.network import Network
from mbnp.weights import files
from mbnp.weights.torch_names import from_torch, grads_to_torch, to_torch

__all__ = ["check_target", "from_torch", "grads_to_torch", "load", "save", "to_torch"]

# The module that knows a format. Each is imported when it is needed: h5py, onnx and torch are optional.
_WRITERS = {".safetensors": "native", ".pt": "torch_files", ".pth": "torch_files", ".onnx": "onnx"}
_READERS = {**_WRITERS, ".h5": "keras", ".hdf5": "keras", ".keras": "keras"}


# What is no checkpoint and still is often found under the name of one, by how it begins.
_OTHERS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: git lfs pull",
    b"<!DOCTYPE": "a web page: the download was none",
    b"<html": "a web page: the download was none",
    b"\x1f\x8b": "compressed: unpack it first",
    b"\x93NUMPY": "one array of NumPy's",
    b"GGUF": "a GGUF file, which mbnp does not read",
}


def load(
    path: str | os.PathLike, which: str | None = None, say: Callable[[str], object] = lambda text: None
) -> Network:
    """Return the network that a file describes, with its weights, in the dtype they are stored in.

    Its forward gives logits, before any softmax. which: "averaged" (the default) or "raw", of a PyTorch file that has
    both, or the name of the place in the file where the weights are. say: gets a line for what was chosen or left out.
    Raises FileNotFoundError, or MbnpError for a file that is damaged, of no known kind, or describes a network that
    mbnp cannot run.
    """
    path = _file_of(Path(path))
    if path.is_dir():
        what = "neither model.safetensors, as runs have it, nor TensorFlow.js's model.json or manifest"
        raise MbnpError(f"the folder {path} has {what}: name a file")
    if path.exists() and not path.is_file():
        raise MbnpError(f"{path} is no file")
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    reader = _reader(path)
    options = {"which": which} if reader in ("native", "torch_files") else {}
    net = importlib.import_module(f"mbnp.weights.{reader}").load(path, say=say, **options)
    try:
        files.check_description(net, net.resolution, net.classes, net.preprocessing)
    except MbnpError as error:
        raise MbnpError(f"{path} cannot be used: {error}") from None
    return net


def _file_of(path: Path) -> Path:
    """Return the file that is meant by a folder: a run's checkpoint, or TensorFlow.js's; any other path as it is."""
    if not path.is_dir():
        return path
    if (path / "model.safetensors").is_file():
        return path / "model.safetensors"
    return importlib.import_module("mbnp.weights.tfjs").find(path) or path


def _reader(path: Path) -> str:
    """Return the module that reads a file: by its content, and by its suffix only where that says nothing."""
    with path.open("rb") as file:
        start = file.read(512)
    for magic, what in _OTHERS.items():
        if start.startswith(magic):
            raise MbnpError(f"{path} is {what}")
    if start[4:8] == b"TFL3":
        raise MbnpError(f"{path} is a TensorFlow Lite file, which mbnp does not read")
    if start.startswith(b"\x89HDF"):
        return "keras"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return "native"
    with files.reading(path, "checkpoint"):  # even to ask whether a file is an archive may raise
        archived = start.startswith(b"PK") and zipfile.is_zipfile(path)
    if archived:
        with files.reading(path, "checkpoint"), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith(".npy") for name in names):
            raise MbnpError(f"{path} is an archive of NumPy's arrays; mbnp reads .safetensors")
        of_keras = path.suffix.lower() == ".keras" or {"config.json", "model.weights.h5"} & set(names)
        return "keras" if of_keras else "torch_files"
    if re.match(rb"\x80[\x02-\x05]", start):
        return "torch_files"
    if re.match(rb"\s*[\[{]", start):  # JSON
        return "tfjs"
    if re.match(rb"\x08[\x03-\x20]", start):  # ONNX's first field, the version of the format
        return "onnx"
    known = _READERS.get(path.suffix.lower())
    if known is None:
        kinds = "safetensors, PyTorch's, Keras's, ONNX and TensorFlow.js's files"
        raise MbnpError(f"{path}: unknown kind of checkpoint; known are {kinds}")
    return known


def save(net: Network, path: str | os.PathLike, **options: Any) -> None:
    """Write `net` in the format that the suffix of `path` names; an older file is replaced only by a whole one.

    options: for `.onnx`, `layout="NCHW" | "NHWC"` and `fold=True | False` (BatchNorm into the convolutions); for
    `.pt`, `names="mbnp" | "timm"`.
    """
    path = Path(path)
    check_target(path)
    files.check_scale(net)
    writer = importlib.import_module(f"mbnp.weights.{_WRITERS[path.suffix.lower()]}")
    writer.save(net, path, **options)


def check_target(path: Path) -> None:
    """Raise MbnpError or FileNotFoundError if `save` could not write a file of this name."""
    suffix = path.suffix.lower()
    if suffix in _READERS and suffix not in _WRITERS:
        raise MbnpError(f"{path}: mbnp reads Keras files but does not write them; take .safetensors or .onnx")
    if suffix not in _WRITERS:
        name = path.with_suffix(".safetensors").name if path.name else "model.safetensors"
        raise MbnpError(f"{path}: mbnp writes {', '.join(_WRITERS)}; name the checkpoint {name}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into")
