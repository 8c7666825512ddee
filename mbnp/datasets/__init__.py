"""Images to train on: CIFAR-10 where it is at hand, else shapes10, which mbnp draws itself.

>>> data = datasets.load()                        # or load("cifar10"), load("shapes10"), load(path)
>>> data.train.images.shape, data.classes[3]
>>> for x, y in datasets.batches(data.test, 256, mean=data.mean, std=data.std): ...

cifar10.py reads and writes CIFAR-10's binary layout, downloading.py fetches it, shapes10.py draws, images.py
reads image files, and batching.py turns stored images into what a network takes.
"""

import os
from pathlib import Path

from mbnp import errors
from mbnp.datasets import cifar10, shapes10
from mbnp.datasets.batching import augment, batches, count_batches, normalise
from mbnp.datasets.cifar10 import subset
from mbnp.datasets.dataset import Dataset, Split
from mbnp.datasets.downloading import cache_folder, download

__all__ = [
    "NAMES",
    "Dataset",
    "Split",
    "augment",
    "batches",
    "cache_folder",
    "cifar10",
    "count_batches",
    "download",
    "load",
    "normalise",
    "shapes10",
    "subset",
]

NAMES = ("cifar10", "shapes10")


def load(spec: str | Path | None = None) -> Dataset:
    """Return the data set that `spec` names: "cifar10", "shapes10", or the path of what `cifar10.read` reads.

    Without `spec`, it is what the variable MBNP_DATA names, else CIFAR-10 in ./data or in the user's cache, else
    shapes10; "cifar10" looks in the same places. Nothing is downloaded here. Raise FileNotFoundError or MbnpError
    if what was named is not there.
    """
    if spec is not None:
        return _named(spec)
    if variable := os.environ.get("MBNP_DATA"):
        return _named(variable, origin=" (from MBNP_DATA)")
    return _find_cifar10() or shapes10.make()


def _named(spec: str | Path, origin: str = "") -> Dataset:
    if spec == "shapes10":
        return shapes10.make()
    if spec == "cifar10":
        data = _find_cifar10()
        if data is None:
            raise FileNotFoundError(
                f"CIFAR-10 is neither in {Path('data').absolute()} nor in {cache_folder()}: "
                "`mbnp data download` fetches it, or name the path of its archive or folder"
            )
        return data
    path = Path(spec).expanduser()
    if spec and path.exists():
        return cifar10.read(path)
    if isinstance(spec, Path) or path.suffix or len(path.parts) > 1:
        raise FileNotFoundError(f"there is no file or folder {path}{origin}")
    raise errors.unknown(f"data set{origin}", spec, NAMES)


def _find_cifar10() -> Dataset | None:
    """Return CIFAR-10 from the first place that has it: the path in MBNP_DATA, ./data, the user's cache."""
    variable = os.environ.get("MBNP_DATA")
    if variable and variable not in NAMES:
        return _named(variable, origin=" (from MBNP_DATA)")
    found = cifar10.locate(Path("data")) or cifar10.locate(cache_folder())
    return cifar10.read(found) if found else None
