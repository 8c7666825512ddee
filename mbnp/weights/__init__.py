"""Weights in and out, one file or folder per format; `load` and `save` go by the file's suffix.

net = weights.load("mobilenet.h5")           .safetensors (mbnp's and PyTorch's), .pt, .pth, .h5, .keras, .onnx
weights.save(net, "model.safetensors")       also .pt and .onnx
weights.from_torch(net, state_dict); state_dict = weights.to_torch(net)
gradients = weights.grads_to_torch(net)      by the names of named_parameters()

Nothing in a file is ever executed or unpickled. A load that fails leaves everything as it was.
"""

import importlib
import os
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


def load(path: str | os.PathLike) -> Network:
    """Return the network that a file describes, with its weights, in the dtype they are stored in.

    Its forward gives logits, before any softmax. Raises FileNotFoundError, or MbnpError for a file that is
    damaged, of no known kind, or describes a network that mbnp cannot run.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise MbnpError(f"{path} is no file")
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(_READERS)
        raise MbnpError(f"{path}: unknown kind of checkpoint {path.suffix!r}; known are {known}")
    net = importlib.import_module(f"mbnp.weights.{reader}").load(path)
    try:
        files.check_description(net, net.resolution, net.classes, net.preprocessing)
    except MbnpError as error:
        raise MbnpError(f"{path} cannot be used: {error}") from None
    return net


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
