"""`mbnp explain`: write a page that opens a network up, for images of your own."""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np

from mbnp import pages, tables, weights
from mbnp.commands import common
from mbnp.datasets.images import read_image
from mbnp.errors import MbnpError
from mbnp.pages import explain

_MOST = 16  # images on a page


def run(options: Namespace) -> int:
    files = common.image_files(options.images)
    common.check_output(options.out, ".html", [options.checkpoint, *files])
    net = weights.load(options.checkpoint, options.weights, tables.note)
    common.require_classifier(net, options.checkpoint)
    common.require_preprocessing(net, options.checkpoint)
    if len(files) > _MOST:
        raise MbnpError(f"a page holds at most {_MOST} images, got {len(files)}: name fewer")
    images, names = [], []
    for file in files:
        try:
            images.append(read_image(file, net.resolution, net.channels, tables.note))
            names.append(Path(file).name)
        except (MbnpError, OSError) as error:
            print(f"mbnp: error: {error}".replace("\n", "\\n"), file=sys.stderr)
    if not images:
        raise MbnpError("no image could be read, so there is no page")
    with common.announced(lambda text: print(text, file=sys.stderr)):
        page = explain.page(net, np.stack(images), names)
    pages.write(options.out, page)
    print(f"{options.out}, {len(page) / 1e6:.1f} MB: open it in a browser")
    return 0 if len(images) == len(files) else 1
