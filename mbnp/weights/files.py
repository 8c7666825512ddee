"""Helpers that the formats share: errors of reading in one line, and checks of values that were read."""

import numbers
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mbnp import spec
from mbnp.datasets.images import RESIZES
from mbnp.errors import MbnpError, short
from mbnp.network import Network

SCORES = "softmax", "sigmoid"  # of a detector
SMALLEST_STD = 1e-6  # with less, float32 has no room for what is divided by it
OF_BYTES = 8  # numbers above it are of images from 0 to 255; a rare scaling of images from 0 to 1 has 4


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Raise MbnpError, that `path` is damaged, for whatever a library raises on its content within the block.

    There is no list of what they raise. Errors that a file is not there or cannot be opened stay what they are.
    """
    path.open("rb").close()
    try:
        yield
    except (MbnpError, MemoryError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a panic of Rust's is no Exception
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MbnpError(f"{path} is damaged or no {kind}: {line[:200]}") from None


def check_square(net: Network, size: tuple[int, ...], out: tuple[int, ...]) -> None:
    """Raise MbnpError if `net`, made for images of an oblong `size` (H, W), does not take square ones."""
    try:
        square = net.output_shape((net.resolution, net.resolution, net.channels))
    except MbnpError:
        square = ()
    if len(out) == 1 and out != square:
        raise MbnpError(f"it takes images of {size[0]} x {size[1]} only, and mbnp's are square")


def check_values(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise MbnpError for NaN, infinity or a negative variance among arrays of state."""
    for name, array in arrays.items():
        if not np.isfinite(array).all() or (name.endswith("running_var") and array.min(initial=0) < 0):
            raise MbnpError(f"{name} holds NaN, infinity or a negative variance")


def set_description(net: Network, resolution: Any, classes: Any, preprocessing: Any, detection: Any = None) -> None:
    """Let `net` have what a file says of its images, classes and anchors; MbnpError if that does not fit."""
    preprocessing = check_description(net, resolution, classes, preprocessing)
    check_detection(net, detection)
    net.resolution, net.classes, net.preprocessing = resolution, classes, preprocessing
    net.detection = net.detection if detection is None else detection


def check_description(net: Network, resolution: Any, classes: Any, preprocessing: Any) -> Any:
    """Return the preprocessing as plain JSON, or None; MbnpError unless images and classes suit `net`, and memory."""
    if type(resolution) is not int or resolution < 1:
        raise MbnpError(f"its resolution is {short(resolution)}")
    spec.check_flow(net, (resolution, resolution, net.channels))
    if classes is not None:
        if not isinstance(classes, list) or not all(isinstance(c, str) and c.isprintable() for c in classes):
            raise MbnpError(f"its classes are {short(classes, 120)}")
        if len(classes) != net.num_classes:
            raise MbnpError(f"it names {len(classes)} classes for {net.num_classes} outputs")
    return None if preprocessing is None else check_preprocessing(preprocessing, net.channels)


def check_detection(net: Network, detection: Any) -> None:
    """Raise MbnpError for what says, and wrongly, how a detector's rows are boxes."""
    if detection is None:
        return
    try:
        sizes = [[[_positive(side) for side in size] for size in sizes] for sizes in detection["anchors"]]
        scales = [_positive(scale) for scale in detection["scales"]]
        good = set(detection) == {"anchors", "scales", "scores", "resize"} and len(scales) == 4
        good = good and detection["scores"] in SCORES and detection["resize"] in RESIZES
        good = good and all(len(size) == 2 for each in sizes for size in each)
    except (KeyError, TypeError, ValueError):
        good = False
    if not good:
        wanted = f"sizes of anchors, four scales, scores {' or '.join(SCORES)} and resize {' or '.join(RESIZES)}"
        raise MbnpError(f"its detection is {short(detection, 120)}, not {wanted}")
    if not net.detects():
        raise MbnpError("it has anchors, and no heads for them")
    grids, (rows, _) = net.grids(), net.output_shape((net.resolution, net.resolution, net.channels))
    counts = [len(each) for each in sizes]
    if len(counts) != len(grids) or sum(h * w * count for (h, w), count in zip(grids, counts, strict=True)) != rows:
        raise MbnpError(f"its {counts} anchors for a cell do not make the {rows:,} rows of its heads")


def check_preprocessing(preprocessing: Any, channels: int) -> dict[str, Any]:
    """Return {"mean": [...], "std": [...]}, a number for each channel, and maybe "order". Else MbnpError."""
    try:
        known = {"order": "rgb", **preprocessing}
        mean, std = ([_real(value) for value in known[key]] for key in ("mean", "std"))
        good = known.keys() == {"mean", "std", "order"} and known["order"] in ("rgb", "bgr")
        good = good and len(mean) == len(std) == channels and bool(np.isfinite(mean + std).all())
    except (KeyError, TypeError, ValueError):
        good = False
    if not good or min(std) < SMALLEST_STD or max(map(abs, mean)) > 1 / SMALLEST_STD:
        wanted = f"a mean and a standard deviation above 0 for each of {channels} channels"
        raise MbnpError(f"its preprocessing is {short(preprocessing, 120)}, not {wanted}")
    order = {"order": preprocessing["order"]} if "order" in preprocessing else {}
    return {"mean": mean, "std": std, **order}


def check_scale(net: Network) -> None:
    """Raise MbnpError for a preprocessing that is none, or whose numbers are meant for images from 0 to 255."""
    if net.preprocessing is None:
        return
    said = check_preprocessing(net.preprocessing, net.channels)
    if max(map(abs, said["mean"] + said["std"])) > OF_BYTES:
        mean, std = (",".join(f"{value / 255:.4g}" for value in said[name]) for name in ("mean", "std"))
        scale = f"mean {short(said['mean'])} and std {short(said['std'])} are on a scale of 0 to 255"
        raise MbnpError(f"{scale}, and here images are from 0 to 1: divided by 255 they are {mean} and {std}")


def _positive(value: Any) -> float:
    if not 0 < _real(value) < 1e6:
        raise ValueError("not above 0")
    return value


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError("no number")
    return float(value)
