"""`mbnp data`: show which data is used, write samples of it, download CIFAR-10, write a subset of it."""

import re
from argparse import Namespace
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from mbnp import datasets, plots, tables
from mbnp.commands import common
from mbnp.commands.console import Console
from mbnp.datasets import drawing
from mbnp.errors import MbnpError, unknown
from mbnp.storage import new_folder

SCENES = 24  # images that are shown of a data set with boxes


def run(options: Namespace) -> None:
    actions = {"show": _show, "samples": _samples, "download": _download, "subset": _subset}
    actions[options.action](options)


def _show(options: Namespace) -> None:
    if options.path and options.data:
        raise MbnpError(f"{options.path} and --data {options.data} are two data sets: name one")
    data = common.load_data(options.path or options.data, options.resolution)
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (data.mean, data.std))
    shape = "x".join(map(str, data.train.images.shape[1:]))
    print(tables.hang(str(data)))
    for line in common.about(data, len(data.damaged)):
        print(tables.hang(f"  {line}", indent=4))
    print(f"  images {shape}, mean {mean}, standard deviation {std}")
    if data.train.boxes is not None:
        print("  in each line below, the number of objects, each of which has a box")
    for k, name in enumerate(data.classes):
        train, test = (np.count_nonzero(split.labels == k) for split in (data.train, data.test))
        print(tables.hang(f"  {name:12} {train:6,} training, {test:6,} test", indent=4))
    if data.train.boxes is None:
        plots.save(plots.contact_sheet(data.train.images, data.train.labels, data.classes), options.out)
    else:
        drawing.save(drawing.sheet(data.train.images[:SCENES], _objects(data.train), data.classes), options.out)
    print(f"samples of each class: {options.out}")


def _objects(split: datasets.Split) -> list[Namespace]:
    """Return what is there in the first images, to be drawn."""
    assert split.boxes is not None
    rows = zip(split.labels[:SCENES], split.boxes[:SCENES], strict=True)
    return [Namespace(labels=labels[labels >= 0], boxes=boxes[labels >= 0], scores=None) for labels, boxes in rows]


def _samples(options: Namespace) -> None:
    if options.count < 1:
        raise MbnpError(f"--count must be at least 1, got {options.count}")
    data = common.load_data(options.data, options.resolution)
    labels = data.test.labels
    if data.test.boxes is not None:  # an image by what is seen of the first object
        labels = labels[:, 0]
    places = [np.flatnonzero(labels == k) for k in range(len(data.classes))]
    rounds = max(map(len, places))
    chosen = [mine[i] for i in range(rounds) for mine in places if i < len(mine)][: options.count]
    with new_folder(Path(options.out)) as folder:
        for i in chosen:
            name = re.sub(r"[^\w .,()+-]", "_", data.classes[labels[i]])
            image = data.test.images[i]
            Image.fromarray(image if image.shape[2] == 3 else image[..., 0]).save(folder / f"{name}-{i}.png")
    command = f"predict {options.out}" if data.test.boxes is None else f"detect {options.out} --checkpoint FILE"
    print(tables.hang(f"{len(chosen)} test images of {data.name} are in {options.out}: mbnp {command}"))


def _download(options: Namespace) -> None:
    layout = datasets.LAYOUTS.get(options.name)
    if layout is None:
        raise unknown("data set to download", options.name, datasets.LAYOUTS)
    console = Console(stderr=True)
    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        path = datasets.download(
            options.url,
            options.out,
            lambda done, total: bar.update(task, completed=done, total=total),
            layout=layout,
        )
    print(f"{layout.title} is in {path}")


def _subset(options: Namespace) -> None:
    data = datasets.load(options.data) if options.data else datasets.whole()
    folder = datasets.subset(data, options.out, options.train, options.test, options.seed)
    print(tables.hang(str(datasets.load(folder))))
