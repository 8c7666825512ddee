"""`mbnp evaluate`: test a checkpoint on the test images."""

from argparse import Namespace

import numpy as np

from mbnp import tables, train, weights
from mbnp.commands import common
from mbnp.errors import MbnpError


def run(options: Namespace) -> None:
    net = weights.load(options.checkpoint, options.weights, tables.note)
    data = common.load_data(options.data, net.resolution, net.channels)
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
    for k, name in enumerate(data.classes):
        mine = predictions[data.test.labels == k]
        if len(mine):
            print(tables.hang(f"  {name:12} {100 * np.mean(mine == k):6.2f} %  of {len(mine):,}", indent=4))
    print(f"test loss {loss:.4f}")
    print(f"test accuracy {100 * accuracy:.2f} %")
