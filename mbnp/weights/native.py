"""mbnp's own checkpoints: a safetensors file, with the architecture in its metadata.

Arrays have the names of `net.state()` and mbnp's layouts. Nothing in such a file is ever executed.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from mbnp import models
from mbnp.errors import MbnpError
from mbnp.network import Network

FORMAT = "mbnp 1"
SUFFIX = ".safetensors"


def save(net: Network, path: str | os.PathLike) -> None:
    """Write every array of `net` and what builds it again; an older file is replaced only by a whole one."""
    if not net.arch:
        raise MbnpError("this network was not made by models.create, so a file could not say how to build it")
    path = Path(path)
    if path.suffix != SUFFIX:
        raise MbnpError(
            f"{path}: mbnp writes safetensors; name the checkpoint {path.with_suffix(SUFFIX).name}"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into")
    metadata = {
        "format": FORMAT,
        "arch": json.dumps(net.arch),
        "resolution": json.dumps(net.resolution),
        "classes": json.dumps(net.classes),
        "preprocessing": json.dumps(net.preprocessing),
    }
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    try:
        safetensors.numpy.save_file(net.state(), partial, metadata)
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except safetensors.SafetensorError as error:
        os.unlink(partial)
        raise OSError(f"cannot write {path}: {error}") from None
    except BaseException:
        os.unlink(partial)
        raise


def load(path: str | os.PathLike) -> Network:
    """The network that a file describes, with its weights, in the dtype they are stored in.

    Raises MbnpError for a file that is damaged, is not mbnp's, or does not fit the architecture it names.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.suffix != SUFFIX:
        raise MbnpError(f"{path}: unknown kind of checkpoint {path.suffix!r}; mbnp writes {SUFFIX}")
    metadata, arrays = _read(path)
    if metadata.get("format") != FORMAT:
        raise MbnpError(
            f"{path} has no mbnp architecture in its metadata; for PyTorch's weights build the network and "
            "call weights.from_torch(net, safetensors.numpy.load_file(path))"
        )
    try:
        arch = json.loads(metadata["arch"])
        resolution, classes, preprocessing = (
            json.loads(metadata[key]) for key in ("resolution", "classes", "preprocessing")
        )
        dtype = _dtype(arrays)
        _check_size(arch, sum(array.size for array in arrays.values()))
        net = models.create(**arch, dtype=dtype)
        net.load_state(arrays)
        _check_description(net, resolution, classes, preprocessing)
        _check_values(arrays)
    except KeyError as error:
        raise MbnpError(f"{path} is not a usable checkpoint: its metadata has no {error}") from None
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise MbnpError(f"{path} is not a usable checkpoint: {error}") from None
    net.resolution, net.classes, net.preprocessing = resolution, classes, preprocessing
    return net


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, TypeError, AttributeError) as error:
        raise MbnpError(f"{path} is damaged or no safetensors file: {error}") from None


def _check_size(arch: Any, elements: int) -> None:
    """MbnpError if the file is too small for what it says, before a network of that size is made."""
    if not isinstance(arch, dict):
        raise MbnpError(f"its architecture is {arch!r}")
    # Each architecture of width w has at least 36,864 w^2 weights; below w = 1 there is nothing to fear.
    width = float(arch.get("width_mult", 1.0))
    if arch.get("num_classes", 1) > elements or (width > 1 and 30_000 * width**2 > elements):
        raise MbnpError(f"its {elements:,} numbers are too few for {arch}")


def _check_values(arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all() or (name.endswith("running_var") and array.min(initial=0) < 0):
            raise MbnpError(f"{name} holds NaN, infinity or a negative variance")


def _check_description(net: Network, resolution: Any, classes: Any, preprocessing: Any) -> None:
    """MbnpError unless what the metadata says of pictures and classes fits the network."""
    if type(resolution) is not int or not 1 <= resolution <= 10_000:
        raise MbnpError(f"its resolution is {resolution!r}")
    if classes is not None:
        if len(classes) != net.arch["num_classes"]:
            raise MbnpError(f"it names {len(classes)} classes for {net.arch['num_classes']} outputs")
        if not all(isinstance(name, str) and name.isprintable() for name in classes):
            raise MbnpError(f"its classes are {classes!r}")
    if preprocessing is not None:
        numbers = np.array([preprocessing["mean"], preprocessing["std"]], np.float64)
        if numbers.shape != (2, net.channels) or not np.isfinite(numbers).all() or not (numbers[1] > 0).all():
            raise MbnpError(f"its preprocessing is {preprocessing!r}")


def _dtype(arrays: dict[str, np.ndarray]) -> Any:
    dtypes = {array.dtype for array in arrays.values()}
    if dtypes not in ({np.dtype(np.float32)}, {np.dtype(np.float64)}):
        names = ", ".join(sorted(map(str, dtypes))) or "no arrays"
        raise MbnpError(f"its arrays must all be float32 or all float64, not {names}")
    return dtypes.pop()


def _umask() -> int:
    # mkstemp makes files that only their owner can read; give the checkpoint the mode any other file gets.
    mask = os.umask(0)
    os.umask(mask)
    return mask
