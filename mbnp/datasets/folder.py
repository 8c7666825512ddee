"""A folder of images as a data set: a folder for each class, or `train` and `test` with a folder for each class inside.

photos/cat/1.jpg, photos/dog/2.png                 a fifth of each class is set aside to test on
photos/train/cat/1.jpg, photos/test/cat/7.jpg      or val, valid, validation in place of test

Every file is decoded once, by all processors, into one array of uint8 in the user's cache, which is mapped into memory
where it is used, and so may be larger than it. The entry's name is a hash of the names, sizes and times of the files.
"""

import contextlib
import functools
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL

from mbnp import storage
from mbnp.datasets import images
from mbnp.datasets.dataset import Dataset, Split
from mbnp.datasets.downloading import cache_folder
from mbnp.errors import MbnpError, short
from mbnp.parent import serve, starting

Progress = Callable[[int, int], Any]

TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")
VERSION = 1  # of what is in the cache
_CHUNK = 32  # files that a thread or process decodes in a row
_FLUSHED = 16  # chunks that are written to disk at a time
_WORTH_IT = 1000  # files that are worth starting processes
_ENOUGH = 2000  # images for mean and standard deviation: of more than twice as many, some are left out


class _File(NamedTuple):
    """A file as it is named in the folder, and what it is an image of."""

    path: str
    label: int


class _Plan(NamedTuple):
    """Everything in a folder, before any file is opened."""

    classes: list[str]
    train: list[_File]
    test: list[_File]
    notes: list[str]


class _Done(NamedTuple):
    """What a thread found out about some files."""

    digests: list[bytes | None]  # CRC-32 of the pixels, None for a file that cannot be read
    histogram: np.ndarray  # (channels, 256)
    sizes: list[tuple[int, int]]
    damaged: list[str]
    notes: list[str]


def read(
    place: str | Path,
    resolution: int = 32,
    channels: int = 3,
    progress: Progress = lambda done, total: None,
    processes: bool = False,
) -> Dataset:
    """Return the data set in a folder: images of (resolution, resolution, channels), classes by the folders' names.

    The shorter side is resized and the middle cropped. A file that is no image, or damaged, is left out and listed
    in `damaged`; other files whose names do not begin with a dot are all used. Raise MbnpError for a folder of
    another structure. progress(done, total) is called as files are decoded, and not if the cache has them.
    processes: decode many files by processes in place of threads, which is faster; each imports the main module again,
    so that a script needs `if __name__ == "__main__":`.
    """
    place = Path(place)
    if not (isinstance(resolution, (int, np.integer)) and 1 <= resolution <= 4096):
        raise MbnpError(f"the resolution must be a whole number from 1 to 4096 pixels, got {resolution!r}")
    plan = _plan(place)
    entry = cache_folder() / "images" / _key(place, plan, resolution, channels)
    shape = len(plan.train) + len(plan.test), resolution, resolution, channels
    if (kept := _kept(entry, shape)) is None:
        kept = _prepare(entry, place, plan, shape, progress, processes)
    if kept is None:
        raise OSError(f"what was prepared of {place} has gone from {entry}: does something empty the cache?")
    about, stored, labels = kept
    test = slice(len(plan.train), len(plan.train) + about["test"])
    return Dataset(
        place.resolve().name,
        str(place),
        Split(stored[: about["train"]], labels[: about["train"]]),
        Split(stored[test], labels[test]),
        plan.classes,
        tuple(about["mean"]),
        tuple(about["std"]),
        epochs=min(50, max(5, 200_000 // about["train"])),
        notes=(*plan.notes, *about["notes"]),
        damaged=tuple(about["damaged"]),
        sha256=about["sha256"],
    )


# -- which files ---------------------------------------------------------------------------------------------


def _folders(place: Path) -> dict[str, Path]:
    return {f.name: f for f in sorted(place.iterdir()) if f.is_dir() and not f.name.startswith(".")}


def _plan(place: Path) -> _Plan:
    """Say which files are to train on and which to test on."""
    found = _folders(place)
    train = next((f for name, f in found.items() if name.lower() in TRAIN and _folders(f)), None)
    tests = [found[n] for word in TEST for n in found if n.lower() == word and _folders(found[n])]
    if train is None or not (tests or len(found) == 1):
        classes, files = _by_class(place, found)
        return _set_aside(classes, files, _loose(place))
    classes, files = _by_class(train, _folders(train))
    notes = _loose(train)
    if not tests:
        return _set_aside(classes, files, notes)
    names, others = _by_class(tests[0], _folders(tests[0]), least=1)
    if unknown := sorted(set(names) - set(classes)):
        raise MbnpError(f"{tests[0]} has a class {short(unknown[0])} that {train} has not: no network could learn it")
    if unused := [str(f) for f in found.values() if f not in (train, tests[0])]:
        notes.append(f"tested on {tests[0]}; not used: {', '.join(unused)}")
    test = [file._replace(label=classes.index(names[file.label])) for file in others]
    return _Plan(classes, files, test, notes + _loose(tests[0]))


def _by_class(place: Path, folders: dict[str, Path], least: int = 2) -> tuple[list[str], list[_File]]:
    if len(folders) < least:
        inside = f"only the folder {next(iter(folders))}" if folders else "no folders"
        raise MbnpError(f"{place} has {inside}: a data set has a folder of images for each class, such as {place}/cat")
    files: list[_File] = []
    for label, (name, folder) in enumerate(folders.items()):
        if not name.isprintable():
            raise MbnpError(f"the folder {short(name)} in {place} cannot be the name of a class: rename it")
        inside_it = images.files_in(folder)
        if not inside_it:
            raise MbnpError(f"{folder} has no images: remove the folder if it is no class")
        files += [_File(path, label) for path in inside_it]
    return list(folders), files


def _loose(place: Path) -> list[str]:
    loose = [f.name for f in sorted(place.iterdir()) if f.is_file() and not f.name.startswith(".")]
    more = f" and {len(loose) - 1:,} more files" if len(loose) > 1 else ""
    return [f"in no class: {short(loose[0])}{more} in {place}"] if loose else []


def _set_aside(classes: list[str], files: list[_File], notes: list[str]) -> _Plan:
    """Choose a fifth of each class to test on: of the same names always the same."""
    rng = np.random.default_rng(0)
    of_test: set[int] = set()
    of_class: list[list[int]] = [[] for _ in classes]
    for i, file in enumerate(files):
        of_class[file.label].append(i)
    for mine in of_class:
        count = max(1, round(len(mine) / 5)) if len(mine) > 1 else 0
        of_test |= {mine[k] for k in rng.permutation(len(mine))[:count]}
    if not of_test:
        raise MbnpError(f"no class has a second image to test on: {classes[0]!r} has only {files[0].path}")
    train = [file for i, file in enumerate(files) if i not in of_test]
    notes = [f"a fifth of each class, {len(of_test):,} images, is set aside to test on", *notes]
    return _Plan(classes, train, [files[i] for i in sorted(of_test)], notes)


def _key(place: Path, plan: _Plan, resolution: int, channels: int) -> str:
    """Return a name for what the cache has of these files."""
    readers = PIL.__version__, find_spec("pillow_heif") is not None  # which decide what can be read
    digest = hashlib.sha256(ascii((VERSION, readers, resolution, channels, plan.classes, len(plan.train))).encode())
    before = os.path.join(place, "")
    for path, label in plan.train + plan.test:
        known = os.stat(path) if os.path.exists(path) else None
        about = known and (known.st_size, known.st_mtime_ns, known.st_ctime_ns)  # chmod changes the last one
        digest.update(ascii((path.removeprefix(before), about, label)).encode())
    return digest.hexdigest()[:32]


# -- the cache -----------------------------------------------------------------------------------------------


def _kept(entry: Path, shape: tuple[int, ...]) -> tuple[dict[str, Any], np.ndarray, np.ndarray] | None:
    """Return what the cache has: what is known of the images, they themselves, labels. None if it is not whole."""
    try:
        about = json.loads((entry / "about.json").read_text())
        stored, labels = np.load(entry / "images.npy", mmap_mode="r"), np.load(entry / "labels.npy")
        whole = about["version"] == VERSION and stored.shape == shape and labels.shape == shape[:1]
        return (about, stored, labels) if whole else None
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None


def _prepare(entry: Path, place: Path, plan: _Plan, shape: tuple[int, ...], progress: Progress, processes: bool) -> Any:
    """Decode every file into the cache, whole, or not at all; return what `_kept` does.

    Another process that does the same is waited for. What the cache had of an earlier state of the folder is removed.
    """
    from filelock import FileLock

    size = math.prod(shape)
    entry.parent.mkdir(parents=True, exist_ok=True)
    storage.clear(entry)
    with FileLock(entry.with_suffix(".lock")):
        if kept := _kept(entry, shape):
            return kept
        shutil.rmtree(entry, ignore_errors=True)  # it is damaged
        if (free := shutil.disk_usage(entry.parent).free) < size:
            need = f"{size / 1e6:,.0f} MB for {shape[0]:,} images of {shape[1]}x{shape[2]}"
            raise OSError(f"{entry.parent} has {free / 1e6:,.0f} MB free and needs {need}: take a lower --resolution")
        of = {"of": [ascii(place.resolve()), *shape[1:]]}
        try:
            with storage.new_folder(entry) as part:
                about = _decode_all(part, plan, shape, progress, processes) | of
                (part / "about.json").write_text(json.dumps(about))
        except OSError as error:
            if error.strerror:
                raise OSError(f"{error.strerror}, while images were prepared in {entry.parent}") from None
            raise
    for other in entry.parent.glob("*/about.json"):
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
            if other.parent != entry and json.loads(other.read_text()).items() >= of.items():
                shutil.rmtree(other.parent)
    return _kept(entry, shape)


def _decode_all(part: Path, plan: _Plan, shape: tuple[int, ...], progress: Progress, processes: bool) -> dict[str, Any]:
    """Write the arrays into the folder `part`; return what else is to be known of them."""
    files, first_test = plan.train + plan.test, len(plan.train)
    labels = np.array([file.label for file in files], np.int64)
    stored = np.lib.format.open_memmap(part / "images.npy", "w+", np.uint8, shape)
    starts = [*range(0, first_test, _CHUNK), *range(first_test, len(files), _CHUNK)]
    ends = [min(start + _CHUNK, first_test if start < first_test else len(files)) for start in starts]

    every = max(1, first_test // _ENOUGH)
    some = functools.partial(_decode, part / "images.npy", stored.offset, shape[1], shape[3], every)
    done: list[_Done] = []
    progress(0, len(files))
    with images.quiet(), _pool(processes and len(files) >= _WORTH_IT) as pool:
        try:
            # Not `pool.map`: at Ctrl-C it cancels what is left in this thread, and until Python 3.12 the pool's own,
            # which sees its processes end by the same Ctrl-C, fails at that. `shutdown` below lets that one cancel.
            with starting():
                coming = [pool.submit(some, start, files[start:end]) for start, end in zip(starts, ends, strict=True)]
            for end, future in zip(ends, coming, strict=True):
                done.append(future.result())
                progress(end, len(files))
                if len(done) % _FLUSHED == 0:
                    stored.flush()  # to disk meanwhile, or all of it would have to be waited for at the end
        except BrokenProcessPool:
            time.sleep(0.2)  # Ctrl-C ends the processes at once, and may be heard here a moment later than that
            raise OSError("a process that decoded images was ended from outside, perhaps for want of memory") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    damaged = [text for result in done for text in result.damaged]
    digests = [digest for result in done for digest in result.digests]
    content, counts = hashlib.sha256(), []
    for rows in (range(first_test), range(first_test, len(files))):
        kept = _close_gaps(rows, digests, stored, labels)
        content.update(b"".join(digests[row] or b"" for row in kept) + labels[kept].tobytes())
        counts.append(len(kept))
    _check_left(plan, labels[: counts[0]], counts, damaged)
    stored.flush()
    np.save(part / "labels.npy", labels)
    training = [result.histogram for start, result in zip(starts, done, strict=True) if start < first_test]
    mean, std = _spread(np.sum(training, axis=0))
    notes = [_summary([size for result in done for size in result.sizes], shape[1])]
    if guessed := [text for result in done for text in result.notes]:
        notes.append(f"{guessed[0]}" + (f"; so or alike {len(guessed) - 1:,} more" if len(guessed) > 1 else ""))
    return {
        "version": VERSION, "train": counts[0], "test": counts[1], "sha256": content.hexdigest(),
        "mean": mean, "std": std, "damaged": damaged, "notes": notes,
    }  # fmt: skip


def _pool(processes: bool) -> Executor:
    if not processes:
        return ThreadPoolExecutor(os.cpu_count())  # Pillow decodes without Python's lock, but not all else does
    return ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"), _start, (os.getpid(),))


def _start(parent: int) -> None:
    serve(parent)
    images.quiet().__enter__()  # for as long as the process lives


def _decode(
    target: Path, offset: int, resolution: int, channels: int, every: int, first: int, files: list[_File]
) -> _Done:
    """Decode files into the rows of the array from `first` on; count the values of every so many in the histogram.

    They are written, not put into mapped memory: a full disk is then an error, and not the end of the process.
    """
    size = resolution * resolution * channels
    done = _Done([], np.zeros((channels, 256), np.int64), [], [], [])
    with target.open("r+b") as out:
        for row, file in enumerate(files, start=first):
            try:
                image, original = images.decode(file.path, resolution, channels, done.notes.append)
            except (MbnpError, FileNotFoundError) as error:
                done.digests.append(None)
                done.damaged.append(str(error))
                continue
            pixels = image.tobytes()
            out.seek(offset + row * size)
            out.write(pixels)
            done.digests.append(zlib.crc32(pixels).to_bytes(4))
            if len(done.sizes) % every == 0:
                done.histogram[:] += np.reshape(image.histogram(), (channels, 256))
            done.sizes.append(original)
    return done


def _close_gaps(rows: range, digests: list[bytes | None], stored: np.ndarray, labels: np.ndarray) -> range:
    """Move the last images into the rows of those that could not be read; return the rows that are then full."""
    last = rows.stop - 1
    for row in rows:
        while last >= row and digests[last] is None:
            last -= 1
        if row > last:
            break
        if digests[row] is None:
            stored[row], labels[row], digests[row] = stored[last], labels[last], digests[last]
            last -= 1
    return range(rows.start, last + 1)


def _check_left(plan: _Plan, labels: np.ndarray, counts: list[int], damaged: list[str]) -> None:
    """Raise MbnpError if a class has no image left, or the test part has none."""
    left = np.bincount(labels, minlength=len(plan.classes))
    if not left.all():
        raise MbnpError(f"no image of {plan.classes[int(left.argmin())]!r} can be read: {damaged[0]}")
    if not counts[1]:
        raise MbnpError(f"no image to test on can be read: {damaged[-1]}")


def _spread(histogram: np.ndarray) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, on a scale of 0 to 1."""
    share = histogram / histogram.sum(axis=1, keepdims=True)
    values = np.arange(256) / 255
    mean = share @ values
    std = np.sqrt(share @ values**2 - mean**2)
    return mean.tolist(), np.maximum(std, 1 / 255).tolist()  # of one colour alone, there would be none to divide by


def _summary(sizes: list[tuple[int, int]], resolution: int) -> str:
    (w0, h0), (w1, h1) = (f(sizes, key=lambda size: (size[0] * size[1], size)) for f in (min, max))
    between = f"{w0}x{h0}" if (w0, h0) == (w1, h1) else f"{w0}x{h0} to {w1}x{h1}"
    return f"files of {between} pixels, shown to the network as {resolution}x{resolution}"
