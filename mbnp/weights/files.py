"""What the formats share: files that are replaced only by whole ones, and checks of what is read."""

import numbers
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mbnp.errors import MbnpError
from mbnp.network import Network


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write into; it takes the place of `path` when the block ends without an error."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _umask() -> int:
    # mkstemp makes files that only their owner can read; give the checkpoint the mode any other file gets.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_square(net: Network, size: tuple[int, ...], out: tuple[int, ...]) -> None:
    """MbnpError for a network of oblong pictures that does not take square ones, as mbnp's resolution has them."""
    try:
        square = net.output_shape((net.resolution, net.resolution, net.channels))
    except MbnpError:
        square = ()
    if len(out) == 1 and out != square:
        raise MbnpError(f"it takes pictures of {size[0]} x {size[1]} only, and mbnp's are square")


def check_values(arrays: Mapping[str, np.ndarray]) -> None:
    """MbnpError for NaN, infinity or a negative variance among arrays of state."""
    for name, array in arrays.items():
        if not np.isfinite(array).all() or (name.endswith("running_var") and array.min(initial=0) < 0):
            raise MbnpError(f"{name} holds NaN, infinity or a negative variance")


def check_description(net: Network, resolution: Any, classes: Any, preprocessing: Any) -> Any:
    """The preprocessing as plain JSON, or None; MbnpError unless what is said of pictures and classes fits `net`."""
    if type(resolution) is not int or not 1 <= resolution <= 10_000:
        raise MbnpError(f"its resolution is {resolution!r}")
    if classes is not None:
        if not isinstance(classes, list) or not all(isinstance(c, str) and c.isprintable() for c in classes):
            raise MbnpError(f"its classes are {_short(classes)}")
        if len(classes) != net.num_classes:
            raise MbnpError(f"it names {len(classes)} classes for {net.num_classes} outputs")
    return None if preprocessing is None else check_preprocessing(preprocessing, net.channels)


def check_preprocessing(preprocessing: Any, channels: int) -> dict[str, Any]:
    """As plain JSON: {"mean": [...], "std": [...]}, a number for each channel, and maybe "order". Else MbnpError."""
    try:
        known = {"order": "rgb", **preprocessing}
        mean, std = ([_real(value) for value in known[key]] for key in ("mean", "std"))
        good = known.keys() == {"mean", "std", "order"} and known["order"] in ("rgb", "bgr")
        good = good and len(mean) == len(std) == channels and bool(np.isfinite(mean + std).all())
    except (KeyError, TypeError, ValueError):
        good = False
    if not good or min(std) <= 0:
        raise MbnpError(f"its preprocessing is {_short(preprocessing)}")
    order = {"order": preprocessing["order"]} if "order" in preprocessing else {}
    return {"mean": mean, "std": std, **order}


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError("no number")
    return float(value)


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
