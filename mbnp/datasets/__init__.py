"""Images to train on: a folder of your own, CIFAR-10 where it is at hand, else shapes10, which mbnp draws itself.

>>> data = datasets.load()                        # or load("cifar10"), load("shapes10"), load(path)
>>> data = datasets.load("photos", resolution=224)             # photos/cat/1.jpg, photos/dog/2.jpg
>>> data.train.images.shape, data.classes[3]
>>> for x, y in datasets.batches(data.test, 256, mean=data.mean, std=data.std): ...

cifar10.py reads CIFAR-10's and CIFAR-100's binary layouts, downloading.py fetches them, shapes10.py and scenes10.py
draw, images.py reads image files, folder.py a folder of them, and batching.py turns stored images into what a network
takes.
"""

import os
from pathlib import Path
from typing import Any

from mbnp import errors
from mbnp.datasets import cifar10, dataset, folder, scenes10, shapes10
from mbnp.datasets.batching import AUGMENTATIONS, augment, batches, count_batches, normalise, resized_crop
from mbnp.datasets.cifar10 import subset
from mbnp.datasets.dataset import Dataset, Split
from mbnp.datasets.downloading import cache_folder, download
from mbnp.errors import MbnpError

__all__ = [
    "AUGMENTATIONS",
    "NAMES",
    "Dataset",
    "Split",
    "absolute",
    "augment",
    "batches",
    "cache_folder",
    "cifar10",
    "count_batches",
    "download",
    "load",
    "normalise",
    "resized_crop",
    "scenes10",
    "shapes10",
    "subset",
]

LAYOUTS = {layout.name: layout for layout in (cifar10.CIFAR10, cifar10.CIFAR100)}
NAMES = (*LAYOUTS, "shapes10", "scenes10")
_COARSE = ":coarse"  # after cifar100, or a path of it: with its 20 superclasses


def load(
    spec: str | Path | None = None,
    resolution: int | None = None,
    channels: int = 3,
    progress: folder.Progress = lambda done, total: None,
    processes: bool = False,
) -> Dataset:
    """Return the data set that `spec` names: "cifar10", "cifar100", "cifar100:coarse", "shapes10", "scenes10", a path.

    A path is one that `cifar10.read` reads, or a folder of images (`folder.read`), which are made `resolution` pixels
    wide and high (32), once, with calls of progress(done, total). Scenes are drawn at that resolution (96); the other
    data sets have 32 x 32. channels: 3, or 1 for grey. processes: as in `folder.read`. Without `spec`, it is what the
    variable MBNP_DATA names, else CIFAR-10 in ./data or in the user's cache, else shapes10; "cifar10" looks in the same
    places. Nothing is downloaded here. Raise FileNotFoundError or MbnpError if what was named is not there.
    """
    if channels not in (1, 3):
        raise MbnpError(f"images have 3 channels, or 1 if they are grey, and {channels} were asked for")

    if spec is None and not (spec := os.environ.get("MBNP_DATA")):
        found = _find(cifar10.CIFAR10)
        data = cifar10.read(found) if found else shapes10.make()
    else:
        data = _named(spec, resolution, channels, progress, processes)
    return dataset.grey(data) if data.train.images.shape[3] > channels else data


def whole() -> Dataset:
    """Return CIFAR-10 from where the most of it is: what MBNP_DATA names, ./data, the user's cache."""
    found = cifar10.largest(_places())
    return cifar10.read(found) if found else load("cifar10")


def _named(spec: str | Path, resolution: int | None, *options: Any) -> Dataset:
    """options: of `folder.read`."""
    path, coarse = _split(spec)
    if spec == "scenes10":
        return scenes10.make(size=scenes10.SIZE if resolution is None else resolution)
    if spec == "shapes10":
        return shapes10.make()
    if path in LAYOUTS:
        if (found := _find(LAYOUTS[path])) is None:
            raise FileNotFoundError(
                f"{LAYOUTS[path].title} is neither in {Path('data').absolute()} nor in {cache_folder()}: "
                f"`mbnp data download {path}` fetches it, or name the path of its archive or folder"
            )
        return cifar10.read(found, coarse)
    place = Path(path).expanduser()
    origin = " (from MBNP_DATA)" if str(spec) == os.environ.get("MBNP_DATA") else ""
    if not path or not place.exists():
        if isinstance(spec, Path) or place.suffix or len(place.parts) > 1:
            raise FileNotFoundError(f"there is no file or folder {place}{origin}")
        raise errors.unknown(f"data set{origin}", spec, NAMES)
    if place.is_file() or any(cifar10.locate(place, layout) for layout in LAYOUTS.values()):
        return cifar10.read(place, coarse)
    if pickle := cifar10.pickled(place):
        raise cifar10.is_pickle(pickle)
    return folder.read(place, 32 if resolution is None else resolution, *options)


def absolute(source: str) -> str:
    """Return a data set's source, for `load` in any working folder where it is a path; "" where it is none."""
    path, _ = _split(source)
    return os.path.abspath(path) + source[len(path) :] if os.path.exists(path) else ""


def _split(spec: str | Path) -> tuple[str, bool]:
    text = str(spec)
    return (text.removesuffix(_COARSE), True) if text.endswith(_COARSE) and not Path(text).exists() else (text, False)


def _places() -> list[Path]:
    """Return where data is looked for: the path in MBNP_DATA, ./data, the user's cache."""
    path, _ = _split(os.environ.get("MBNP_DATA", ""))
    named = [Path(path).expanduser()] if path and path not in NAMES else []
    if named and not named[0].exists():
        raise FileNotFoundError(f"there is no file or folder {named[0]} (from MBNP_DATA)")
    return [*named, Path("data"), cache_folder()]


def _find(layout: cifar10.Layout) -> Path | None:
    """Return the first place that has it.

    Raise MbnpError if the only one that is there is a version for Python.
    """
    places = _places()
    others = {other.archive for other in LAYOUTS.values() if other is not layout}
    if places[0].is_file() and places[0].name not in others:
        return places[0]
    if found := next(filter(None, (cifar10.locate(place, layout) for place in places)), None):
        return found
    if pickle := next(filter(None, map(cifar10.pickled, places)), None):
        raise cifar10.is_pickle(pickle, "; --data shapes10 trains without it")
    return None
