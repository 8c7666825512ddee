"""`mbnp data`: show which data is used, download CIFAR-10, write a subset of it."""

from argparse import Namespace

import numpy as np
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from mbnp import datasets, tables
from mbnp.commands.console import Console


def run(options: Namespace) -> None:
    {"show": _show, "download": _download, "subset": _subset}[options.action](options)


def _show(options: Namespace) -> None:
    data = datasets.load(options.data)
    print(tables.hang(str(data)))
    for k, name in enumerate(data.classes):
        train, test = (np.count_nonzero(split.labels == k) for split in (data.train, data.test))
        print(tables.hang(f"  {name:12} {train:6,} training, {test:6,} test", indent=4))


def _download(options: Namespace) -> None:
    console = Console(stderr=True)
    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        path = datasets.download(
            options.url, options.out, lambda done, total: bar.update(task, completed=done, total=total)
        )
    print(f"CIFAR-10 is in {path}")


def _subset(options: Namespace) -> None:
    data = datasets.load(options.data or "cifar10")
    folder = datasets.subset(data, options.out, options.train, options.test, options.seed)
    print(tables.hang(str(datasets.load(folder))))
