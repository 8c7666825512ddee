"""How well a detector finds things: mean average precision by class and by size, curves, and what it gets wrong.

What it found in the images of a split is `train.evaluate(net, split).predictions`, boxes of low scores included, since
average precision wants those. Mistakes are those among the boxes that are `SURE`, sorted as in Bolya et al., "TIDE: A
General Toolbox for Identifying Object Detection Errors", 2020, arXiv:2008.08115, section 2.2.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mbnp.datasets import Split, drawing
from mbnp.detection import boxes, precision
from mbnp.detection.detect import Found
from mbnp.pages import charts
from mbnp.pages.charts import Series
from mbnp.tasks import truth

SURE = 0.5  # the score from which a box is one that a user sees
FAR = 0.1  # a box that overlaps an object by less is not about that object
SIZES = {"small": (0.0, 1 / 6), "medium": (1 / 6, 1 / 3), "large": (1 / 3, math.inf)}  # sides, in shares of the image's
KINDS = {
    "missed": "an object that no box is about",
    "wrong class": "a box on an object of another class",
    "badly placed": f"a box that overlaps an object of its class by {FAR:g} to 0.5",
    "both": f"a box that overlaps an object of another class by {FAR:g} to 0.5",
    "found twice": "one more box on an object that is found already",
    "false alarm": "a box where nothing is",
}
SHOWN = 6  # mistakes of each kind
SHEET = 24  # images on the sheet of what was found


class Part(NamedTuple):
    """How well the objects of a class, or of a size, are found."""

    name: str
    objects: int
    average_precision: float  # from 0 to 1; of a size the mean over classes; NaN where there are no objects


class Scores(NamedTuple):
    """The measures of a detector, from 0 to 1."""

    half: float  # mAP at overlap 0.5, as VOC counts it since 2010
    coco: float  # the mean of COCO's mAP at the overlaps 0.5, 0.55, ..., 0.95
    voc2007: float  # mAP at overlap 0.5 over 11 recalls
    classes: list[Part]
    sizes: list[Part]


class Box(NamedTuple):
    """A box to draw on an image, in percent of its width and height."""

    left: float
    top: float
    width: float
    height: float
    found: bool  # or an object


class Mistake(NamedTuple):
    """Something that a detector got wrong in a test image."""

    kind: str
    number: int  # of the image
    boxes: list[tuple[np.ndarray, bool]]  # the boxes in shares that show it, and whether each was found
    text: str
    weight: float  # its score, or of a missed object its area: the largest are shown


def scores(found: Sequence[Found], split: Split, classes: Sequence[str]) -> Scores:
    """Return the measures of what was found in the images of a split."""
    objects, count = truth(split), len(classes)
    judged = precision.judge(found, objects, count)
    known = np.flatnonzero(judged.objects).tolist()
    each = {k: precision.average(precision.curve(judged, k)) for k in known}
    labels = np.concatenate([one.labels for one in objects])
    areas = np.concatenate([boxes.area(one.boxes) for one in objects])
    sizes = []
    for name, (low, high) in SIZES.items():
        # An area that is a limit belongs to the larger ones.
        limits = areas.dtype.type(low**2), np.nextafter(areas.dtype.type(high**2), 0)
        mean = precision.mean_average_precision(found, objects, count, sizes=limits)
        sizes.append(Part(name, int(np.count_nonzero((limits[0] <= areas) & (areas <= limits[1]))), mean))
    coco = [
        precision.mean_average_precision(found, objects, count, overlap, "coco") for overlap in precision.COCO_OVERLAPS
    ]
    return Scores(
        float(np.mean([*each.values()])) if each else math.nan,
        float(np.mean(coco)),
        float(np.mean([precision.average(precision.curve(judged, k), "voc2007") for k in known]))
        if known
        else math.nan,
        [Part(name, int((labels == k).sum()), each.get(k, math.nan)) for k, name in enumerate(classes)],
        sizes,
    )


def lines(measured: Scores, side: int) -> list[str]:
    """Return average precision by class, then by size, for a terminal; side: of the images, in pixels."""
    limits = [
        f"less than {side / 6:.0f}x{side / 6:.0f} pixels",
        "between",
        f"from {side / 3:.0f}x{side / 3:.0f} pixels on",
    ]
    of_sizes = [f", {limit}" for limit in limits]
    parts = [*((part, "") for part in measured.classes), *zip(measured.sizes, of_sizes, strict=True)]
    return [
        f"  {part.name:12} {100 * part.average_precision:6.2f} %  of {part.objects:,}{more}"
        for part, more in parts
        if part.objects
    ]


def curves(found: Sequence[Found], split: Split, classes: Sequence[str]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return (class, recall, precision) after each box by falling score, of the classes that have objects."""
    judged = precision.judge(found, truth(split), len(classes))
    known = [(classes[k], precision.curve(judged, k)) for k in np.flatnonzero(judged.objects).tolist()]
    return [(name, curve.recall, curve.precision) for name, curve in known]


def chart(found: Sequence[Found], split: Split, classes: Sequence[str]) -> charts.Chart | None:
    """Return the precision-recall curves for a page, of the first 21 classes, thinned out."""
    series = []
    for i, (name, recall, exact) in enumerate(curves(found, split, classes)[:21]):
        chosen = np.unique(np.linspace(0, len(recall) - 1, min(len(recall), 150)).astype(int))
        series.append(Series(name, (100 * recall[chosen]).tolist(), (100 * exact[chosen]).tolist(), i, dots=False))
    return charts.chart("precision and recall", "recall (%)", "precision (%)", series, limits=(0, 100), whole=False)


def mistakes(found: Sequence[Found], split: Split, classes: Sequence[str]) -> list[Mistake]:
    """Return all that is wrong with the boxes of at least the score `SURE`, image by image."""
    wrong = []
    for number, (one, objects) in enumerate(zip(found, truth(split), strict=True)):
        sure = one.scores >= SURE
        overlaps = boxes.overlap(one.boxes[sure], objects.boxes.astype(one.boxes.dtype))
        same = one.labels[sure][:, None] == objects.labels
        taken, about = np.zeros(len(objects.labels), bool), np.zeros(len(objects.labels), bool)
        for k in range(len(overlaps)):  # by falling score
            name, score, box = classes[one.labels[k]], float(one.scores[k]), one.boxes[k]
            free = np.where(same[k] & ~taken, overlaps[k], 0)
            if free.max(initial=0) >= 0.5:
                taken[free.argmax()] = True
                continue
            kind, at = _kind(overlaps[k], same[k])
            shown, text = [(box, True)], f"{name} {100 * score:.0f} %"
            if at is not None:
                about[at] |= kind in ("wrong class", "badly placed")
                shown.insert(0, (objects.boxes[at], False))
                text += f" on {classes[objects.labels[at]]}, overlap {overlaps[k, at]:.2f}"
            wrong.append(Mistake(kind, number, shown, text, score))
        for m in np.flatnonzero(~taken & ~about).tolist():
            area = float(boxes.area(objects.boxes[m]))
            wrong.append(Mistake("missed", number, [(objects.boxes[m], False)], classes[objects.labels[m]], area))
    return wrong


def _kind(overlaps: np.ndarray, same: np.ndarray) -> tuple[str, int | None]:
    """Return what is wrong with a box that found nothing, and the object that it is about, if there is one."""
    own, others = np.where(same, overlaps, 0), np.where(same, 0, overlaps)
    if FAR <= own.max(initial=0) < 0.5:
        return "badly placed", int(own.argmax())
    if others.max(initial=0) >= 0.5:
        return "wrong class", int(others.argmax())
    if own.max(initial=0) >= 0.5:
        return "found twice", int(own.argmax())
    return ("both", int(others.argmax())) if others.max(initial=0) >= FAR else ("false alarm", None)


def worst(wrong: Sequence[Mistake]) -> dict[str, list[Mistake]]:
    """Return, by kind, the mistakes to show: of the highest score, or the largest objects."""
    return {
        kind: sorted((each for each in wrong if each.kind == kind), key=lambda each: -each.weight)[:SHOWN]
        for kind in KINDS
    }


def percent(box: np.ndarray, found: bool) -> Box:
    """Return a box in shares as a page draws it."""
    left, top, right, bottom = (round(100 * float(edge), 2) for edge in box)
    return Box(left, top, round(right - left, 2), round(bottom - top, 2), found)


def sheet(found: Sequence[Found], split: Split, classes: Sequence[str]) -> np.ndarray:
    """Draw the first images of a split with what was found in them, of at least the score `SURE`."""
    height, width = split.images.shape[1:3]
    sure = [
        Found(one.boxes[likely] * (width, height, width, height), one.labels[likely], one.scores[likely])
        for one in found[:SHEET]
        for likely in [one.scores >= SURE]
    ]
    return drawing.sheet(split.images[:SHEET], sure, classes)
