"""`mbnp detect`: find the objects in image files, and draw boxes around them."""

import itertools
import json
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbnp import tables, weights
from mbnp.commands import common
from mbnp.datasets import drawing
from mbnp.datasets.images import read_whole
from mbnp.detection import whole
from mbnp.detection.detect import Found
from mbnp.errors import MbnpError, printable
from mbnp.network import Network

ENDING = "-detected.png"
SMALLEST = 480  # pixels of a picture's longer side: a smaller image is enlarged


def run(options: Namespace) -> int:
    _check(options)
    net = weights.load(options.checkpoint, options.weights, tables.note)
    common.require_detector(net, options.checkpoint)
    common.require_preprocessing(net, options.checkpoint)
    files = _without_own(common.image_files(options.images), options.images)
    targets = _targets(files, options) if options.out or not options.json else [None] * len(files)
    broken = 0
    with common.announced(_say):
        engine = common.engine(net, options.readable)
        for path, target in zip(files, targets, strict=True):
            try:
                image = _read(path, net)
                found = _find(engine, path, image, options)
                if target is not None:
                    names = [common.class_name(net, label) for label in found.labels]
                    drawing.save(drawing.draw(image, found, names, SMALLEST), target)
            except (MbnpError, OSError) as error:
                broken += 1
                _say(f"mbnp: error: {error}".replace("\n", "\\n"))
                if options.json:
                    print(json.dumps({"file": path, "error": str(error)}))
                continue
            if options.json:
                print(json.dumps(answer(net, path, image, found)), flush=True)
            else:
                _print(net, path, found, target)
    if broken and len(files) > 1:
        _say(f"mbnp: {broken} of {len(files)} failed")
    return 1 if broken else 0


def _check(options: Namespace) -> None:
    for name in ("score", "overlap"):
        if not 0 <= getattr(options, name) <= 1:
            raise MbnpError(f"--{name} must be from 0 to 1, got {getattr(options, name):g}")
    if options.most < 1:
        raise MbnpError(f"--most must be at least 1, got {options.most}")
    if options.out is not None and os.path.lexists(options.out) and not os.path.isdir(options.out):
        raise MbnpError(f"{options.out} is no folder: name one to write to")
    if options.out is not None and not Path(options.out).absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder for {options.out}: make it first")


def answer(net: Network, path: str, image: np.ndarray, found: Found) -> dict[str, Any]:
    """Return what --json prints of an image: boxes are left, top, right, bottom in pixels, as it is displayed."""
    height, width = image.shape[:2]
    names = [common.class_name(net, label) for label in found.labels]
    objects = common.objects(names, found.scores, found.boxes)
    return {"file": path, "width": width, "height": height, "objects": objects}


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _read(path: str, net: Network) -> np.ndarray:
    if os.path.isdir(path):
        raise MbnpError(f"the folder {path} has no images")
    return read_whole(path, net.channels, lambda text: _say(f"mbnp: {text}"))


def _find(net: Network, path: str, image: np.ndarray, options: Namespace) -> Found:
    with np.errstate(all="ignore"):  # what is not finite is said below
        (found,) = whole.find(net, [image], options.score, options.overlap, options.most)
    if not np.isfinite(found.scores).all():
        raise MbnpError(f"{path}: what {options.checkpoint} makes of it is not finite; its weights are not usable")
    return found


def _print(net: Network, path: str, found: Found, target: Path | None) -> None:
    count = len(found.labels)
    print(f"{path}: {count} object{'' if count == 1 else 's'}, drawn in {target}")
    for box, label, score in zip(*found, strict=True):
        where = " ".join(f"{side:5.0f}" for side in box)
        print(f"  {100 * score:6.2f} %  {where}  {printable(common.class_name(net, label))}")


# --- the pictures ---


def _target(path: str, out: str | None) -> Path:
    source = Path(path)
    return (source.parent if out is None else Path(out)) / f"{source.stem}{ENDING}"


def _without_own(files: list[str], named: Sequence[str]) -> list[str]:
    """Return the files without the pictures that this command wrote, but for those that were named themselves."""
    own = [path for path in files if path not in named and drawing.is_drawn(path)]
    if own:
        _say(f"mbnp: left out, as pictures that mbnp detect wrote: {len(own)}")
    return [path for path in files if path not in own]


def _targets(files: list[str], options: Namespace) -> list[Path | None]:
    """Return a file to write for each image, before any is written; MbnpError for one that is not ours to replace."""
    if options.out is not None:
        Path(options.out).mkdir(exist_ok=True)
    found, taken = list[Path | None](), set[Path]()  # the latter for images with the same name
    for path in files:
        first = _target(path, options.out)
        numbered = (first.with_name(f"{Path(path).stem}-{k}{ENDING}") for k in itertools.count(2))
        target = next(each for each in itertools.chain([first], numbered) if each not in taken)
        taken.add(target)
        if not target.parent.is_dir():  # reading the image will say so
            found.append(None)
            continue
        if os.path.lexists(target) and not drawing.is_drawn(target):
            read = any(os.path.exists(each) and target.samefile(each) for each in files if target.exists())
            why = "is read, too" if read else "is there already, and mbnp detect did not write it"
            raise MbnpError(f"{target} {why}: name a folder for the pictures, --out FOLDER")
        if not os.access(target.parent, os.W_OK):
            raise MbnpError(f"the folder {target.parent} is not writable: name one for the pictures, --out FOLDER")
        found.append(target)
    return found
