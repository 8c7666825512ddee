"""`mbnp predict`: name the most probable classes of image files."""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import numpy as np

from mbnp import spec, tables, train, weights
from mbnp.commands import common
from mbnp.datasets.images import read_image
from mbnp.errors import MbnpError
from mbnp.network import Network

_AT_ONCE = 64  # images that are in memory together


def run(options: Namespace) -> int:
    if options.top < 1:
        raise MbnpError(f"--top must be at least 1, got {options.top}")
    net = weights.load(options.checkpoint, options.weights, tables.note)
    common.require_classifier(net, options.checkpoint)
    common.require_preprocessing(net, options.checkpoint)
    common.require_scores(net, options.checkpoint)
    answers: list[dict[str, Any]] = []
    with common.announced(_say):
        for answer in _answers(common.engine(net, options.readable), options):
            answers.append(answer)
            if "error" in answer:
                _say(f"mbnp: error: {answer['error']}".replace("\n", "\\n"))
            elif not options.json:
                print(answer["image"])
                for guess in answer["classes"]:
                    text = f"  {100 * guess['probability']:6.2f} %  {guess['class']}"
                    print(tables.hang(text, indent=13))
    if options.json:
        print(json.dumps(answers, indent=2))
    broken = sum("error" in answer for answer in answers)
    if broken and len(answers) > 1:
        _say(f"mbnp: {broken} of {len(answers)} could not be read")
    return 1 if broken else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _answers(net: Network, options: Namespace) -> Iterator[dict[str, Any]]:
    """Yield for each image its classes and their probabilities, or the error."""
    files = common.image_files(options.images)
    count = spec.most_images(net, (net.resolution, net.resolution, net.channels), _AT_ONCE)
    for first in range(0, len(files), count):
        paths = files[first : first + count]
        read = [_read(path, net) for path in paths]
        good = [image for image in read if isinstance(image, np.ndarray)]
        probabilities = iter(train.probabilities(net, np.stack(good)) if good else ())
        for path, image in zip(paths, read, strict=True):
            if isinstance(image, str):
                yield {"image": path, "error": image}
            else:
                p = next(probabilities)
                best = np.argsort(-p, kind="stable")[: options.top]
                yield {
                    "image": path,
                    "classes": [{"class": common.class_name(net, k), "probability": float(p[k])} for k in best],
                }


def _read(path: str, net: Network) -> np.ndarray | str:
    """Return the image, or what is wrong with it."""
    if os.path.isdir(path):
        return f"the folder {path} has no images"
    try:
        return read_image(path, net.resolution, net.channels, lambda text: _say(f"mbnp: {text}"))
    except (MbnpError, OSError) as error:
        return str(error)
