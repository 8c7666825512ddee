"""Run folders: the files that a training run leaves behind.

config.json         everything needed to repeat it, the command first
metrics.csv         a row for each epoch: the fields of `train.Record`
model.safetensors   the network after the last epoch whose losses were finite
curves.png          loss and accuracy by epoch
"""

import csv
import hashlib
import itertools
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mbnp
from mbnp import backend, plots, weights
from mbnp.datasets import Dataset
from mbnp.network import Network
from mbnp.train import Record


def require_new(folder: Path) -> None:
    """Raise FileExistsError if there is something at `folder`, NotADirectoryError if it cannot be made there."""
    if folder.exists():
        raise FileExistsError(f"the run folder {folder} exists already: name another one with --out")
    parent = next(p for p in folder.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise NotADirectoryError(f"the run folder {folder} cannot be made: {parent} is no folder to write to")


def make(folder: Path | None, name: str, config: dict[str, Any]) -> Path:
    """Make the run folder (by default runs/NAME-N with the next free N) with its config.json; return its path."""
    if folder is None:
        folder = next(p for n in itertools.count(1) if not (p := Path("runs", f"{name}-{n}")).exists())
    require_new(folder)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    _add_row(folder, Record._fields)
    return folder


def save_epoch(folder: Path, net: Network, record: Record) -> None:
    """Replace the checkpoint, and add a row to the metrics."""
    weights.save(net, folder / "model.safetensors")
    _add_row(folder, record)


def save_curves(folder: Path, history: Sequence[Record], title: str) -> None:
    """Draw curves.png under `title` and the last test accuracy."""
    last = history[-1]
    title = f"{title}: test accuracy {100 * last.test_accuracy:.2f} % after {last.epoch} epochs"
    plots.curves(history, folder / "curves.png", title)


def _add_row(folder: Path, row: Sequence) -> None:
    # Opened for each row, so that it is on disk when the epoch is over.
    with (folder / "metrics.csv").open("a", newline="") as file:
        csv.writer(file).writerow(row)


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
    """Describe a data set for config.json; the checksum is over training and test images and labels."""
    digest = hashlib.sha256()
    for split in (data.train, data.test):
        digest.update(split.images.tobytes())
        digest.update(split.labels.tobytes())
    return {
        "name": data.name,
        "source": data.source,
        "train": len(data.train),
        "test": len(data.test),
        "classes": list(data.classes),
        "sha256": digest.hexdigest(),
    }
