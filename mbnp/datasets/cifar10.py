"""CIFAR-10's and CIFAR-100's binary layouts: read the official archive or a folder of its files; write CIFAR-10's.

A file is a sequence of records of 3,073 bytes: one label byte (0 to 9), then 1,024 red, 1,024 green and
1,024 blue bytes, each colour row by row. Training files are called data_batch*.bin, the test file
test_batch.bin; batches.meta.txt, where there is one, names the classes, one a line. CIFAR-100 has train.bin and
test.bin, of records with two labels, coarse (0 to 19) and fine (0 to 99), and a file of names for each of these.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009), and
https://www.cs.toronto.edu/~kriz/cifar.html. The versions for Python on that page are pickles, and opening a
pickle runs whatever program is in it: here they are refused.
"""

import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mbnp.datasets.dataset import Dataset, Split
from mbnp.errors import MbnpError
from mbnp.storage import new_folder

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
EPOCHS = 20

ARCHIVE = "cifar-10-binary.tar.gz"
FOLDER = "cifar-10-batches-bin"  # in the archive

SIZE = 32
PIXELS = 3 * SIZE * SIZE
RECORD = 1 + PIXELS


@dataclass(frozen=True)
class Layout:
    """What the files of a data set are called, and which of a record's labels is taken."""

    name: str
    title: str
    archive: str
    folder: str  # in the archive
    train: re.Pattern
    test: str
    names: str  # the file with the names of the classes
    count: int  # of classes
    labels: int  # bytes before the pixels
    taken: int  # which of them
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


CIFAR10 = Layout(
    "cifar10", "CIFAR-10", ARCHIVE, FOLDER, re.compile(r"data_batch.*\.bin"), "test_batch.bin", "batches.meta.txt",
    count=10, labels=1, taken=0, mean=MEAN, std=STD,
)  # fmt: skip
CIFAR100 = Layout(
    "cifar100", "CIFAR-100", "cifar-100-binary.tar.gz", "cifar-100-binary", re.compile(r"train\.bin"), "test.bin",
    "fine_label_names.txt", count=100, labels=2, taken=1, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762),
)  # fmt: skip
COARSE = replace(CIFAR100, name="cifar100:coarse", names="coarse_label_names.txt", count=20, taken=0)

_PICKLES = {"data_batch_1", "test_batch", "batches.meta", "train", "test", "meta"}
_PYTHON = "cifar-10-batches-py", "cifar-10-python.tar.gz", "cifar-100-python", "cifar-100-python.tar.gz"

# The real archive unpacks to 184 MB; one that goes on beyond this is not read to its end.
_MOST_BYTES = 200_000_000
_MOST_MEMBERS = 1000


def locate(place: Path, layout: Layout = CIFAR10) -> Path | None:
    """Return the folder of records that `place` is or has in it, or the archive in it; None if there is neither."""
    return next(_places(place, layout), None)


def _places(place: Path, layout: Layout) -> Iterator[Path]:
    if _holds_records(place, layout):
        yield place
    if (place / layout.folder).is_dir():
        yield place / layout.folder
    if (place / layout.archive).is_file():
        yield place / layout.archive
    yield from (folder for folder in sorted(place.glob("[!.]*/")) if _holds_records(folder, layout))


def _holds_records(folder: Path, layout: Layout) -> bool:
    names = os.listdir(folder) if folder.is_dir() else []
    if layout is not CIFAR10 and layout.names not in names and folder.name != layout.folder:
        return False  # others call their files train.bin, too
    return any(name == layout.test or layout.train.fullmatch(name) for name in names)


def largest(places: list[Path], layout: Layout = CIFAR10) -> Path | None:
    """Return the folder of records or archive with the most bytes in it that the places have; the first of equals."""

    def size(path: Path) -> int:
        if path.is_file():
            return _MOST_BYTES
        return sum(f.stat().st_size for f in path.iterdir() if layout.train.fullmatch(f.name))

    return max((path for place in places for path in _places(place, layout)), key=size, default=None)


def pickled(place: Path) -> Path | None:
    """Return the version for Python that `place` is or has in it, which is not read; None if there is none."""
    if place.is_dir() and len(_PICKLES & {f.name for f in place.iterdir() if f.is_file()}) >= 3:
        return place
    return next((place / name for name in _PYTHON if (place / name).exists()), None)


def is_pickle(path: Path, instead: str = "") -> MbnpError:
    """Return the error for a version for Python; instead: what else there is to do."""
    name, wanted = ("CIFAR-100", " cifar100") if "100" in path.name or (path / "meta").exists() else ("CIFAR-10", "")
    return MbnpError(
        f"{path} is there, but is {name} for Python, a pickle, which could run any program and is not opened: "
        f"`mbnp data download{wanted}` fetches the binary version{instead}"
    )


def read(place: str | Path, coarse: bool = False) -> Dataset:
    """Read the data set at a place: an archive, a folder of record files, or a folder with one of these in it.

    An archive is read as a stream, nothing is unpacked to disk. coarse: the 20 superclasses of CIFAR-100. Raise
    MbnpError, with file and record, if one is empty, cut short or has a label that is too high, if training or test
    files are missing, and for a pickle.
    """
    path = next((found for layout in (CIFAR10, CIFAR100) if (found := locate(Path(place), layout))), Path(place))
    if path.suffix == ".bin":
        raise MbnpError(f"{path} is one file of a data set: name the folder it is in")
    try:
        layout, files = _read_files(path, COARSE if coarse else CIFAR100)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise MbnpError(f"{path} is no archive, or a damaged one ({error}): `mbnp data download` fetches it") from None
    if coarse and layout is CIFAR10:
        raise MbnpError(f"{path} is CIFAR-10, which has no coarse labels: leave out :coarse")
    if layout.names not in files and layout is not CIFAR10:
        raise MbnpError(f"{path} has no {layout.names}")
    classes = files.pop(layout.names, CLASSES)
    test = files.pop(layout.test, None)
    train = [files[name] for name in sorted(files, key=lambda name: (len(name), name))]  # _2 before _10
    if test is None or not train:
        training = layout.train.pattern.replace(".*", "*").replace("\\", "")
        raise MbnpError(f"{path} has no {layout.test if train else training}")
    joined = Split(*(np.concatenate(arrays) for arrays in zip(*train, strict=True)))
    name = layout.name if layout is not CIFAR10 or classes == CLASSES else path.name
    source = f"{path}:coarse" if coarse else str(path)
    return Dataset(name, source, joined, Split(*test), classes, layout.mean, layout.std, EPOCHS)


def _read_files(path: Path, cifar100: Layout) -> tuple[Layout, dict[str, Any]]:
    """Return the layout, (images, labels) by the name of their file, and the list of classes by that of theirs."""
    files: dict[str, Any] = {}
    seen: set[str] = set()
    layout = CIFAR10
    for name, content in _folder(path) if path.is_dir() else _archive(path):
        where = str(path / name)
        if name in files:
            raise MbnpError(f"{path} has more than one {name}")
        seen.add(name)
        for kind in (CIFAR10, cifar100):
            if name == kind.names:
                files[name] = _class_names(content(), where, kind.count)
            elif name == kind.test or kind.train.fullmatch(name):
                files[name], layout = from_records(content(), where, kind), kind
    if len(seen & _PICKLES) >= 3 and not files.keys() - {CIFAR10.names}:
        raise is_pickle(path)
    return layout, files


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


def _class_names(content: bytes, where: str, count: int) -> list[str]:
    names = [line.strip() for line in content.decode(errors="replace").splitlines() if line.strip()]
    if len(set(names)) != count or len(names) != count or not all(name.isprintable() for name in names):
        raise MbnpError(f"{where} must name {count} classes, one a line; it has {len(names)}")
    return names


def from_records(content: bytes, where: str = "the data", layout: Layout = CIFAR10) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (N, 32, 32, 3) uint8 and labels (N,) int64 of records.

    Raise MbnpError, with `where` they come from and which record is at fault, counted from 0.
    """
    size, most = layout.labels + PIXELS, layout.count - 1
    count, rest = divmod(len(content), size)
    if rest:
        raise MbnpError(f"{where} is cut short: record {count} has {rest:,} of its {size:,} bytes")
    if count == 0:
        raise MbnpError(f"{where} is empty")
    records = np.frombuffer(content, np.uint8).reshape(count, size)
    labels = records[:, layout.taken].astype(np.int64)
    if labels.max() > most:
        bad = int(np.argmax(labels > most))
        raise MbnpError(f"{where}: record {bad} has the label {labels[bad]}; labels are 0 to {most}")
    planes = records[:, layout.labels :].reshape(count, 3, SIZE, SIZE)  # channels first in the file, last elsewhere
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
    if seed < 0:
        raise MbnpError(f"a seed is 0 or more, got {seed}")
    if len(data.classes) != 10 or data.train.images.shape[1:] != (SIZE, SIZE, 3):
        has = f"{len(data.classes)} classes and images of {'x'.join(map(str, data.train.images.shape[1:]))}"
        raise MbnpError(f"a subset is written as CIFAR-10's records, of 10 classes and 32x32x3: {data.name} has {has}")
    rng = np.random.default_rng(seed)
    with new_folder(Path(folder)) as unfinished:
        files = {
            "data_batch_1.bin": _balanced(data.train, train, data.classes, rng),
            CIFAR10.test: _balanced(data.test, test, data.classes, rng),
            CIFAR10.names: "".join(f"{name}\n" for name in data.classes).encode(),
        }
        for name, content in files.items():
            (unfinished / name).write_bytes(content)
    return Path(folder)


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
