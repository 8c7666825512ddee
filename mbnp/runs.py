"""Run folders: the files that a training run leaves behind.

config.json         everything needed to repeat it, the command first
metrics.csv         a row for each epoch: the fields of `train.Record`, which says what a detector's mean
model.safetensors   the network after the last epoch whose losses were finite
curves.png          loss and accuracy by epoch; of a detector also precision_recall.png, and found.png: what it finds
report.html         all that is known of the run, as a page; pages/report.py makes it
state/              the last two states of the run, each with all that `mbnp train --resume` needs, and a lock

Each file is replaced by a whole one, so that at any moment the folder holds a run that can be gone on with.
"""

import csv
import dataclasses
import hashlib
import itertools
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

import mbnp
from mbnp import backend, plots
from mbnp.datasets import Dataset, absolute
from mbnp.errors import MbnpError, short
from mbnp.network import Network
from mbnp.recipe import Recipe
from mbnp.storage import new_folder, replacing
from mbnp.tasks import CLASSIFIER, Words
from mbnp.train import Progress, Record, Snapshot
from mbnp.weights import native

STATE = "mbnp run 1"
# What config.json must have for a run to go on, at the top and in parts of it.
_KINDS: dict[str, dict[str, Any]] = {
    "": {
        **dict.fromkeys(("command", "engine", "backend", "machine"), str),
        **dict.fromkeys(("model", "versions"), dict),
        "init": dict | None,
        "freeze_until": str | None,
        "every": int | None,
    },
    "data": {"name": str, "source": str, "sha256": str, "argument": str | None},
}


def require_new(folder: Path) -> None:
    """Raise FileExistsError if there is something at `folder`, NotADirectoryError if it cannot be made there."""
    if folder.exists():
        raise FileExistsError(f"the run folder {folder} exists already: name another one with --out")
    parent = next(p for p in folder.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise NotADirectoryError(f"the run folder {folder} cannot be made: {parent} is no folder to write to")


def make(folder: Path | None, name: str, config: dict[str, Any], first: Snapshot, net: Network) -> Path:
    """Make the run folder (by default runs/NAME-N with the next free N), whole or not at all; return its path.

    first: the run before its first step. net: what runs, for its description.
    """
    if folder is None:
        folder = next(p for n in itertools.count(1) if not (p := Path("runs", f"{name}-{n}")).exists())
    require_new(folder)
    with new_folder(folder) as made:
        save_config(made, config)
        keep(made, net, first)
    return folder


def save_config(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json."""
    with replacing(folder / "config.json") as partial:
        partial.write_text(json.dumps(config, indent=2) + "\n")


def load_config(folder: Path) -> dict[str, Any]:
    """Return config.json; FileNotFoundError or MbnpError where `folder` is no run folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no run folder: it has no config.json")
    try:
        config = json.loads(path.read_text())
        recipe(config)
        for at, kinds in _KINDS.items():
            for key, kind in kinds.items():
                if not isinstance((config[at] if at else config)[key], kind):
                    raise TypeError(f"its {key} is {(config[at] if at else config)[key]}")
        if config["init"] is not None and not isinstance(config["init"]["path"], str):
            raise TypeError("its init has no path")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise MbnpError(f"{path} is damaged: {short(str(error))}") from None
    return config


def recipe(config: dict[str, Any]) -> Recipe:
    """Return the recipe in config.json, which has all of it: with a default in a lost one's place it were another."""
    if lost := [field.name for field in dataclasses.fields(Recipe) if field.name not in config["recipe"]]:
        raise ValueError(f"its recipe has no {lost[0]}")
    return Recipe(**config["recipe"] | {"momentum": tuple(config["recipe"]["momentum"])})


def model_name(config: dict[str, Any]) -> str:
    """Return the name of a run's architecture, or of the file that it came from where it has none."""
    init = config["init"] and Path(config["init"]["path"]).stem
    return str(config["model"].get("name") or init or "network")


def load_history(folder: Path) -> list[Record]:
    """Return metrics.csv; MbnpError where it is damaged, FileNotFoundError where there is none."""
    path = folder / "metrics.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head, *rows = csv.reader(file)
        if tuple(head) != Record._fields:
            raise ValueError(f"its columns are {', '.join(head)}")
        records = [Record(int(epoch), int(step), *map(float, others)) for epoch, step, *others in rows]
        if [record.epoch for record in records] != list(range(1, len(records) + 1)):
            raise ValueError("its epochs are not in order")
        if not np.all(np.abs(np.array(records, np.float64)) < 1e15):  # NaN is not, either
            raise ValueError("one of its numbers is none that a run has")
        return records
    except (ValueError, TypeError, csv.Error) as error:
        raise MbnpError(f"{path} is damaged: {short(str(error))}") from None


def keep(folder: Path, net: Network, snapshot: Snapshot) -> None:
    """Write a state; at the end of an epoch the metrics, too, and then the checkpoint, which so never lacks its row.

    The state comes first, since the other two follow from it: `complete` makes them up after an interruption.
    """
    written = _state(folder, snapshot)
    written.parent.mkdir(exist_ok=True)
    arrays = {f"network.{name}": array for name, array in snapshot.network.items()}
    arrays |= {f"optimiser.{name}": array for name, array in snapshot.optimiser.items()}
    progress = json.dumps(dataclasses.asdict(snapshot.progress))
    native.write(written, arrays, {**native.describe(net), "format": STATE, "progress": progress})
    complete(folder, net, snapshot)


def _state(folder: Path, snapshot: Snapshot) -> Path:
    return folder / "state" / f"{int(snapshot.optimiser['steps']):09d}.safetensors"


def complete(folder: Path, net: Network, snapshot: Snapshot) -> None:
    """Write metrics.csv and model.safetensors, if the snapshot was taken at the end of an epoch; remove old states."""
    written = _state(folder, snapshot)
    states = sorted(written.parent.glob("*.safetensors"))
    last = states.index(written) + 1
    for path in states[: max(0, last - 2)] + states[last:]:  # older ones, and a later one that was damaged
        path.unlink()
    if snapshot.progress.batch == 0:
        with replacing(folder / "metrics.csv") as partial, partial.open("w", newline="") as file:
            csv.writer(file).writerows([Record._fields, *snapshot.progress.history])
        if snapshot.progress.history:
            said = {**native.describe(net), "epoch": str(len(snapshot.progress.history))}
            native.write(folder / "model.safetensors", net.state(), said)


def latest(folder: Path, say: Callable[[str], Any] = lambda text: None) -> tuple[Network, Snapshot]:
    """Return the network of a run, with its weights, and the newest state that is whole.

    say(text) is called for each that is not. Raises MbnpError if none is.
    """
    for path in sorted((folder / "state").glob("*.safetensors"), reverse=True):
        try:
            metadata, arrays = native.read(path)
            if metadata.get("format") != STATE:
                raise MbnpError(f"{path} is no state of a run")
            parts = {kind: _under(f"{kind}.", arrays) for kind in ("network", "optimiser")}
            net = native.build(metadata, parts["network"], path)
            progress = Progress(**json.loads(metadata["progress"]))
            progress.history = [Record(*row) for row in progress.history]
            if not isinstance(progress.phases, dict) or not isinstance(progress.measured, list):
                raise TypeError(f"{path} has no measurements of a run")
            return net, Snapshot(**parts, progress=progress)
        except (MbnpError, KeyError, TypeError, ValueError) as error:
            say(f"{error}: the state before it is used")
    raise MbnpError(f"{folder} has no state to go on from: begin again with its command, which config.json has")


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder, so that no other process goes on with it; MbnpError if one does."""
    try:
        with FileLock(folder / "state" / "lock", timeout=0):
            yield
    except Timeout:
        raise MbnpError(f"{folder} is still running: wait for it, or stop it") from None


def save_curves(folder: Path, history: Sequence[Record], title: str, words: Words = CLASSIFIER) -> None:
    """Draw curves.png under `title` and the last test accuracy."""
    last = history[-1]
    title = f"{title}: test {words.measure} {100 * last.test_accuracy:.2f} % after {last.epoch} epochs"
    plots.save(plots.curves(history, title, words), folder / "curves.png")


def environment() -> dict[str, Any]:
    """Return what else decides the numbers of a run: versions, threads, backend, machine."""
    packages = {name: version(name) for name in ("numpy", "numba")}
    return {
        "versions": {"mbnp": mbnp.__version__, "python": platform.python_version(), **packages},
        "threads": backend.get_num_threads(),
        "backend": backend.current(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def describe(data: Dataset) -> dict[str, Any]:
    """Describe a data set for config.json; the checksum is over training and test images, labels and boxes."""
    return {
        "name": data.name,
        "source": absolute(data.source) or data.source,
        "train": len(data.train),
        "test": len(data.test),
        "classes": list(data.classes),
        "sha256": data.sha256 or _checksum(data),
    }


def _checksum(data: Dataset) -> str:
    digest = hashlib.sha256()
    for split in (data.train, data.test):
        digest.update(split.images.tobytes())
        digest.update(split.labels.tobytes())
        digest.update(b"" if split.boxes is None else split.boxes.tobytes())
    return digest.hexdigest()
