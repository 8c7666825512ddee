"""CIFAR-10's binary layout: read the official archive or a folder of its files, and write such a folder.

A file is a sequence of records of 3,073 bytes: one label byte (0 to 9), then 1,024 red, 1,024 green and
1,024 blue bytes, each colour row by row. Training files are called data_batch*.bin, the test file
test_batch.bin; batches.meta.txt, where there is one, names the classes, one a line.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009), and
https://www.cs.toronto.edu/~kriz/cifar.html. The version for Python on that page is a pickle, and opening a
pickle runs whatever program is in it: here it is refused.
"""

import gzip
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mbnp.datasets.dataset import Dataset, Split
from mbnp.errors import MbnpError

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
EPOCHS = 20

ARCHIVE = "cifar-10-binary.tar.gz"
FOLDER = "cifar-10-batches-bin"  # in the archive

SIZE = 32
RECORD = 1 + 3 * SIZE * SIZE

_TEST = "test_batch.bin"
_RECORDS = re.compile(r"data_batch.*\.bin|test_batch\.bin")
_NAMES = "batches.meta.txt"
_PICKLE = re.compile(r"data_batch_\d|test_batch|batches\.meta")

# The real archive unpacks to 184 MB; one that goes on beyond this is not read to its end.
_MOST_BYTES = 200_000_000
_MOST_MEMBERS = 1000


def locate(place: Path) -> Path | None:
    """Return the folder of records that `place` is or has in it, or the archive in it; None if there is neither."""
    if _holds_records(place):
        return place
    if (place / FOLDER).is_dir():
        return place / FOLDER
    if (place / ARCHIVE).is_file():
        return place / ARCHIVE
    return next(filter(_holds_records, sorted(place.glob("[!.]*/"))), None)


def _holds_records(folder: Path) -> bool:
    return folder.is_dir() and any(map(_RECORDS.fullmatch, os.listdir(folder)))


def read(place: str | Path) -> Dataset:
    """Read the data set at a place: an archive, a folder of record files, or a folder with one of these in it.

    An archive is read as a stream, nothing is unpacked to disk. Raise MbnpError, with file and record, if one is
    empty, cut short or has a label above 9, if training or test files are missing, and for a pickle.
    """
    path = locate(Path(place)) or Path(place)
    if path.suffix == ".bin":
        raise MbnpError(f"{path} is one file of a data set: name the folder it is in")
    try:
        files = _read_files(path)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise MbnpError(f"{path} is no archive, or a damaged one ({error}): `mbnp data download` fetches it") from None
    classes = files.pop(_NAMES, CLASSES)
    test = files.pop(_TEST, None)
    train = [files[name] for name in sorted(files, key=lambda name: (len(name), name))]  # _2 before _10
    if test is None or not train:
        raise MbnpError(f"{path} has no {'data_batch*.bin' if not train else _TEST}")
    joined = Split(*(np.concatenate(arrays) for arrays in zip(*train, strict=True)))
    name = "cifar10" if classes == CLASSES else path.name
    return Dataset(name, str(path), joined, Split(*test), classes, MEAN, STD, EPOCHS)


def _read_files(path: Path) -> dict[str, Any]:
    """Return (images, labels) by the name of their file, and the list of classes by that of theirs."""
    files: dict[str, Any] = {}
    pickles = False
    for name, content in _folder(path) if path.is_dir() else _archive(path):
        where = str(path / name)
        if name in files:
            raise MbnpError(f"{path} has more than one {name}")
        if name == _NAMES:
            files[name] = _class_names(content(), where)
        elif _RECORDS.fullmatch(name):
            files[name] = from_records(content(), where)
        pickles |= bool(_PICKLE.fullmatch(name))
    if pickles and not files.keys() - {_NAMES}:
        raise MbnpError(
            f"{path} is CIFAR-10 for Python, a pickle, which could run any program and is not opened: "
            "`mbnp data download` fetches the binary version"
        )
    return files


def _folder(folder: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    for file in sorted(folder.iterdir()):
        if file.is_file():  # a pipe or a device could be read for ever
            yield file.name, file.read_bytes


def _archive(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the regular files of an archive by their last name, so that no path in it means anything to us."""
    with _Bounded(path) as unzipped, tarfile.open(fileobj=unzipped, mode="r|") as archive:
        for count, member in enumerate(archive):
            # What is skipped is read too, so that a header's claim could keep us reading for ever.
            if count > _MOST_MEMBERS or member.size > _MOST_BYTES:
                raise MbnpError(
                    f"{path} unpacks to more than {_MOST_BYTES:,} bytes or {_MOST_MEMBERS:,} files "
                    f"(at {member.name!r}): it is not CIFAR-10's archive"
                )
            file = archive.extractfile(member) if member.isreg() else None
            if file is not None:
                yield PurePosixPath(member.name).name, file.read
        while unzipped.read(1 << 20):  # to the very end, where the checksum is
            pass


class _Bounded(gzip.GzipFile):
    """A gzip file that refuses to unpack more than a CIFAR-10 archive can hold, whatever its headers claim."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > _MOST_BYTES:
            raise MbnpError(f"{self.name} unpacks to more than {_MOST_BYTES:,} bytes: it is not CIFAR-10's archive")
        return super().read(size)


def _class_names(content: bytes, where: str) -> list[str]:
    names = [line.strip() for line in content.decode(errors="replace").splitlines() if line.strip()]
    if len(set(names)) != 10 or len(names) != 10 or not all(name.isprintable() for name in names):
        raise MbnpError(f"{where} must name 10 classes, one a line; it has {len(names)}")
    return names


def from_records(content: bytes, where: str = "the data") -> tuple[np.ndarray, np.ndarray]:
    """Return the images (N, 32, 32, 3) uint8 and labels (N,) int64 of records.

    Raise MbnpError, with `where` they come from and which record is at fault, counted from 0.
    """
    count, rest = divmod(len(content), RECORD)
    if rest:
        raise MbnpError(f"{where} is cut short: record {count} has {rest:,} of its {RECORD:,} bytes")
    if count == 0:
        raise MbnpError(f"{where} is empty")
    records = np.frombuffer(content, np.uint8).reshape(count, RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() > 9:
        bad = int(np.argmax(labels > 9))
        raise MbnpError(f"{where}: record {bad} has the label {labels[bad]}; labels are 0 to 9")
    planes = records[:, 1:].reshape(count, 3, SIZE, SIZE)  # channels first in the file, last everywhere else
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def to_records(images: np.ndarray, labels: np.ndarray) -> bytes:
    """Return images and labels as records: the inverse of `from_records`."""
    if len(labels) != len(images) or np.min(labels) < 0 or np.max(labels) > 9:
        raise MbnpError(f"records hold a label of 0 to 9 for each of {len(images)} images, got {labels!r}")
    if images.shape[1:] != (SIZE, SIZE, 3) or images.dtype != np.uint8:
        raise MbnpError(f"records hold images of (32, 32, 3) uint8, got {images.shape[1:]} {images.dtype}")
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), RECORD - 1)
    return np.column_stack([labels.astype(np.uint8), planes]).tobytes()


def subset(data: Dataset, folder: str | Path, train: int = 10_000, test: int = 2_000, seed: int = 0) -> Path:
    """Write a random choice with equally many images of every class, as a folder that `read` reads; return it.

    train, test: numbers of images, multiples of the number of classes. The folder must not exist
    (FileExistsError) and appears only when it is complete. The same data and seed make the same files.
    """
    folder = Path(folder)
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder} exists already: name a new folder, or remove it first")
    if seed < 0:
        raise MbnpError(f"a seed is 0 or more, got {seed}")
    rng = np.random.default_rng(seed)
    files = {
        "data_batch_1.bin": _balanced(data.train, train, data.classes, rng),
        _TEST: _balanced(data.test, test, data.classes, rng),
        _NAMES: "".join(f"{name}\n" for name in data.classes).encode(),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
        unfinished = Path(temporary, folder.name)
        unfinished.mkdir()  # with the mode that any other folder gets
        for name, content in files.items():
            (unfinished / name).write_bytes(content)
        unfinished.rename(folder)
    return folder


def _balanced(split: Split, count: int, classes: list[str], rng: np.random.Generator) -> bytes:
    each, rest = divmod(count, len(classes))
    if each < 1 or rest:
        raise MbnpError(f"a subset of {count} images is not equally many for each of {len(classes)} classes")
    chosen = []
    for label, name in enumerate(classes):
        candidates = np.flatnonzero(split.labels == label)
        if len(candidates) < each:
            raise MbnpError(f"a subset of {count} needs {each} of {name!r}, and there are {len(candidates)}")
        chosen.append(rng.choice(candidates, each, replace=False))
    order = rng.permutation(np.concatenate(chosen))
    return to_records(split.images[order], split.labels[order])
