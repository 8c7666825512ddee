"""The bytes of a Keras file: the configuration as text and the arrays by path. `files.read` runs this text.

A file is believed only as far as it is long: an array that claims more bytes than are stored, a link that leads
elsewhere, anything but plain numbers is refused before memory is allocated for it. Archives are read, not unpacked.

The HDF5 library itself does believe a file: with one byte changed it may ask for gigabytes, or never return. So it
runs in a process of its own, which knows nothing of mbnp and has a limit of memory and of time.
"""

import io
import json
import math
import sys
import time
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

LONGEST_CONFIG = 4 << 20  # bytes of JSON; keras.applications.MobileNet's has 90,000
DEEPEST_GROUP = 24
SECONDS, BYTES_A_SECOND = 3, 10 << 20  # a hundred times what reading takes
COMPRESSION = 16  # random weights do not shrink; a file that claims more than this is not believed
CONTAINERS = ("layers", "_layer_checkpoint_dependencies")  # of Keras 3, and of TensorFlow 2.12 to 2.15
NO_WEIGHTS = {"optimizer", "optimizer_weights", "top_level_model_weights"}


class Refused(Exception):
    """The error for a file that is not read; its text says what is wrong."""


class Content(NamedTuple):
    """The content of a file. Paths are `conv1/conv1/kernel:0`, or `layers/conv2d/vars/0` where `numbered`."""

    config: Any  # the JSON as str or bytes, or None; parsed by `files.read`
    arrays: dict[str, np.ndarray]
    names: dict[str, str]  # the layer's own name by the path of its group, where a numbered file notes it
    numbered: bool


def read(path: Path) -> Content:
    """Return the content of a file in any of Keras's formats, told apart by content, not by name."""
    with open(path, "rb") as file:
        magic = file.read(4)
    try:
        if magic == b"PK\x03\x04":
            config, weights = _unzip(path)
            return _read_hdf5(io.BytesIO(weights), len(weights))._replace(config=config)
        if magic == b"\x89HDF":
            return _read_hdf5(path, path.stat().st_size)
    except Refused:
        raise
    except Exception as error:  # HDF5, zlib, zipfile, ...: there is no list of what they raise
        raise Refused(f"it is damaged: {error or type(error).__name__}") from None
    raise Refused("it is no Keras file: neither HDF5 nor a .keras archive")


def _unzip(path: Path) -> tuple[bytes, bytes]:
    """Return config.json and model.weights.h5 of a .keras archive."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries: dict[str, zipfile.ZipInfo] = {}
        for entry in archive.infolist():
            at = PurePosixPath(entry.filename.replace("\\", "/"))
            if at.is_absolute() or ".." in at.parts or ":" in str(at):
                raise Refused(f"its archive has an entry that leads outside: {entry.filename[:80]!r}")
            if entry.filename in entries:
                raise Refused(f"its archive has {entry.filename[:80]!r} twice")
            entries[entry.filename] = entry
        for name, most in (("config.json", LONGEST_CONFIG), ("model.weights.h5", COMPRESSION * size)):
            if name not in entries:
                raise Refused(f"its archive has no {name}; Keras writes one with model.save")
            claimed = entries[name].file_size
            if claimed > most:
                raise Refused(f"its {name} claims {claimed:,} bytes, in {size:,} bytes of archive")
        return archive.read(entries["config.json"]), archive.read(entries["model.weights.h5"])


def _read_hdf5(source: Any, size: int) -> Content:
    import h5py

    with h5py.File(source, "r") as file:
        config = _text(h5py, file.attrs, "model_config", size)
        walk = _Walk(h5py)
        numbered = [name for name in file if name.replace("\\", "/").split("/")[0] in CONTAINERS]
        whole = "model_weights" in file and not numbered
        root = walk.open(file, "model_weights", "model_weights") if whole else file
        if not isinstance(root, h5py.Group):
            raise Refused("its 'model_weights' is no group")
        for name in numbered or root:
            if name not in NO_WEIGHTS:
                walk.enter(root, name, "", 0)
        claimed = sum(map(_claimed, walk.datasets.values()))
        compressed = any(dataset.chunks is not None for dataset in walk.datasets.values())
        if claimed > size * (COMPRESSION if compressed else 1):
            raise Refused(f"its arrays claim {claimed:,} bytes of {size:,}: the file is truncated or forged")
        names = {at: name for at, attrs in walk.named.items() if (name := _text(h5py, attrs, "name", size))}
        arrays = {at: np.asarray(d[()], d.dtype.newbyteorder("=")) for at, d in walk.datasets.items()}
    if not arrays:
        raise Refused("it holds no weights")
    return Content(config, arrays, names, bool(numbered))


class _Walk:
    """A walk that collects the datasets below a group. No object is met twice, so a loop of links is an error."""

    def __init__(self, h5py: Any) -> None:
        self.h5py = h5py
        self.datasets: dict[str, Any] = {}
        self.named: dict[str, Any] = {}  # attributes of `vars` groups, by the path of the layer's group
        self._seen: set[int] = set()

    def enter(self, parent: Any, name: str, above: str, depth: int) -> None:
        at = f"{above}/{name}".lstrip("/").replace("\\", "/")  # TensorFlow on Windows
        item = self.open(parent, name, at)
        if depth > DEEPEST_GROUP:
            raise Refused(f"its groups are nested too deeply at {at[:80]!r}")
        if isinstance(item, self.h5py.Dataset):
            _check(at, item)
            if at in self.datasets:
                raise Refused(f"it has {at[:80]!r} twice")
            self.datasets[at] = item
        elif isinstance(item, self.h5py.Group):
            if at.endswith("/vars"):
                self.named[at.removesuffix("/vars")] = item.attrs
            for child in item:
                # Random layers keep the state of their generator; it is no weight.
                if not child.startswith("seed_generator"):
                    self.enter(item, child, at, depth + 1)

    def open(self, parent: Any, name: str, at: str) -> Any:
        if not isinstance(parent.get(name, getlink=True), self.h5py.HardLink):
            raise Refused(f"its {at[:80]!r} is a link to elsewhere; Keras writes none")
        item = parent[name]
        address = self.h5py.h5o.get_info(item.id).addr
        if address in self._seen:
            raise Refused(f"its {at[:80]!r} is a second name of something else; Keras writes none")
        self._seen.add(address)
        return item


def _check(at: str, dataset: Any) -> None:
    """Raise Refused unless the dataset is plain numbers, stored in this file, as many as it claims."""
    if dataset.dtype.kind not in "fiu" or dataset.dtype.itemsize > 8 or dataset.shape is None:
        raise Refused(f"its {at[:80]!r} holds {dataset.dtype}, no plain numbers")
    if dataset.is_virtual or dataset.external:
        raise Refused(f"its {at[:80]!r} is kept in another file")
    stored, claimed = dataset.id.get_storage_size(), _claimed(dataset)
    # Only chunks can be compressed; a bias of zeros may then shrink to nothing.
    most = stored if dataset.chunks is None else COMPRESSION * stored + (1 << 16)
    if claimed > most or (claimed and not stored):
        raise Refused(f"its {at[:80]!r} claims {claimed:,} bytes, and {stored:,} are stored")


def _claimed(dataset: Any) -> int:
    """Return the bytes that reading the dataset allocates: its own, or those of one chunk if that is larger."""
    return max(math.prod(dataset.shape), math.prod(dataset.chunks or (0,))) * dataset.dtype.itemsize


def _text(h5py: Any, attrs: Any, name: str, size: int) -> str | None:
    """Return the attribute `name`, None if it is not there; raise Refused unless it is one string."""
    if name not in attrs:
        return None
    attribute = attrs.get_id(name)
    if attribute.shape != () or h5py.check_string_dtype(attribute.dtype) is None:
        raise Refused(f"its attribute {name!r} is no text")
    if attribute.get_storage_size() > size:
        raise Refused(f"its attribute {name!r} claims {attribute.get_storage_size():,} bytes of {size:,}")
    text = attrs[name]
    return text.decode() if isinstance(text, bytes) else str(text)


def _limit(size: int) -> None:
    """Refuse this process more memory and time than a file of `size` bytes justifies, where the system can."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        most = now + (128 << 20) + 2 * COMPRESSION * size
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        # Of a processor's time, which no other process takes: a damaged file may be walked round and round.
        seconds = math.ceil(time.process_time()) + SECONDS + size // BYTES_A_SECOND
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    except (ImportError, OSError, ValueError):
        pass


def main(path: Path) -> None:
    """Write the content to standard output as safetensors, or what is wrong to standard error and exit with 1."""
    import h5py  # noqa: F401  (before the limit: what it takes is not the file's)
    from safetensors.numpy import save

    _limit(path.stat().st_size)
    try:
        content = read(path)
    except Refused as error:
        sys.stderr.buffer.write(str(error).encode("utf-8", "backslashreplace"))
        sys.exit(1)
    config = content.config.encode() if isinstance(content.config, str) else content.config
    notes = json.dumps([config is not None, content.names, content.numbered]).encode()
    arrays = {f"array {at}": array for at, array in content.arrays.items()}
    arrays |= {"notes": np.frombuffer(notes, np.uint8), "config": np.frombuffer(config or b"", np.uint8)}
    sys.stdout.buffer.write(save(arrays))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
