"""`mbnp evaluate`: test a checkpoint on the test images."""

from argparse import Namespace
from typing import Any

import numpy as np

from mbnp import tables, tasks, train, weights
from mbnp.commands import common
from mbnp.datasets import Dataset
from mbnp.errors import MbnpError
from mbnp.pages import detections


def run(options: Namespace) -> None:
    net = weights.load(options.checkpoint, options.weights, tables.note)
    data = common.load_data(options.data or common.default_data(net), net.resolution, net.channels)
    task = tasks.of(net)
    task.check_split(data.test, data.name)
    if net.classes is not None and net.classes != list(data.classes):
        raise MbnpError(
            f"{options.checkpoint} knows {', '.join(net.classes[:3])}, ..., but {data.name} has "
            f"{', '.join(data.classes[:3])}, ...: name the data it was trained on with --data"
        )
    if net.num_classes != len(data.classes):
        raise MbnpError(
            f"{options.checkpoint} tells {net.num_classes} classes apart and {data.name} has {len(data.classes)}"
        )
    common.require_preprocessing(net, options.checkpoint)
    print(tables.hang(f"data: {data}"))
    with common.announced(print):
        loss, accuracy, predictions = train.evaluate(common.engine(net, options.readable), data.test)
    for line in _details(data, predictions):
        print(tables.hang(line, indent=4))
    print(f"test loss {loss:.4f}")
    print(f"test {task.words.measure} {100 * accuracy:.2f} %")


def _details(data: Dataset, predictions: Any) -> list[str]:
    """Return a line for each class, and of a detector also for sizes and for other measures."""
    if data.test.boxes is None:
        rows = [(name, predictions[data.test.labels == k] == k) for k, name in enumerate(data.classes)]
        return [f"  {name:12} {100 * np.mean(right):6.2f} %  of {len(right):,}" for name, right in rows if len(right)]
    measured = detections.scores(predictions, data.test, data.classes)
    return [
        *detections.lines(measured, data.test.images.shape[2]),
        f"mAP@0.5 over the 11 recalls of VOC 2007: {100 * measured.voc2007:.2f} %",
        f"mAP@[.5:.95] as COCO counts it: {100 * measured.coco:.2f} %",
    ]
