"""`mbnp predict`: name the most probable classes of image files."""

from argparse import Namespace
from collections.abc import Sequence

import numpy as np

from mbnp import spec, tables, train, weights
from mbnp.commands import common
from mbnp.datasets.images import read_image
from mbnp.errors import MbnpError
from mbnp.network import Network


def run(options: Namespace) -> None:
    if options.top < 1:
        raise MbnpError(f"--top must be at least 1, got {options.top}")
    net = weights.load(options.checkpoint, options.weights, tables.note)
    common.require_preprocessing(net, options.checkpoint)
    if net.channels != 3 or len(net.output_shape((net.resolution, net.resolution, 3))) != 1:
        raise MbnpError(f"{options.checkpoint} does not take colour images and give one score for each class")
    net = common.engine(net, options.readable)
    count = spec.most_images(net, (net.resolution, net.resolution, 3), len(options.images))
    with common.announced(print):
        for start in range(0, len(options.images), count):
            _predict(net, options.images[start : start + count], options.top)


def _predict(net: Network, paths: Sequence[str], top: int) -> None:
    images = np.stack([read_image(path, net.resolution) for path in paths])
    for path, p in zip(paths, train.probabilities(net, images), strict=True):
        print(path)
        for k in np.argsort(-p, kind="stable")[:top]:
            name = net.classes[k] if net.classes else f"class {k}"
            print(tables.hang(f"  {100 * p[k]:6.2f} %  {name}", indent=13))
