"""Average precision: how good a detector is, in one number for each class.

Every box found, of all images, is right, false or not counted. By falling score, after the first n of them

    precision[n] = right / (right + false)          recall[n] = right / objects

Who asks for higher scores gets, as a rule, a higher precision and a lower recall. Average precision is the mean of the
precision over all recalls, with the precision at a recall taken as the highest one at that recall or beyond:

    p(r) = max of precision[n] over n with recall[n] >= r;  0 where there is none

    "voc2010"    integral of p(r) from 0 to 1, the area below that staircase
    "voc2007"    mean of p(r) at the 11 recalls 0, 0.1, ..., 1
    "coco"       mean of p(r) at the 101 recalls 0, 0.01, ..., 1

Which boxes are right is decided image by image and class by class, by falling score:

    VOC     the object that the box overlaps most is found if they overlap by at least `overlap` and no box before has
            found it; a second box for the same object is false
    COCO    the same, but of the objects that are not found yet

Some objects need not be found, and what finds them is not counted: those marked as ignored, and those whose area is
outside `sizes`. Ignored are VOC's "difficult" ones, and COCO's crowds, of which each stands for many objects: any
number of boxes may lie in one, and its overlap is the share of the box that does. Nor is a box counted that is outside
`sizes` itself and found nothing.

A class without objects has no average precision: NaN, which means over classes leave out. A NaN among its scores, for
which there is no order, makes NaN of a class, too.

Source: Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", 2010, section 4.2 and the development
kits of 2007 and 2010; Lin et al., "Microsoft COCO", 2014, arXiv:1405.0312, and the code of its authors, pycocotools.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mbnp import backend
from mbnp.detection import boxes, suppression
from mbnp.detection.detect import Found
from mbnp.errors import MbnpError, unknown

KINDS = ("voc2010", "voc2007", "coco")
MOST = 100  # boxes that count for an image and a class
ALL_SIZES = (0.0, np.inf)
COCO_OVERLAPS = np.linspace(0.5, 0.95, 10)  # COCO's main figure is the mean of the average precisions at these
COCO_SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}  # areas, in pixels

RIGHT, FALSE, NOT_COUNTED = 1, 0, -1


class Truth(NamedTuple):
    """The objects that are in one image."""

    boxes: np.ndarray  # (m, 4), in the units of what is found
    labels: np.ndarray  # (m,) int, the class, from 0
    ignored: np.ndarray | None = None  # (m,) bool: difficult ones or crowds, which need not be found


class Judged(NamedTuple):
    """All boxes found in all images, by falling score, and whether they are right."""

    labels: np.ndarray  # (D,) int64
    scores: np.ndarray  # (D,)
    verdicts: np.ndarray  # (D,) int64: RIGHT, FALSE or NOT_COUNTED
    objects: np.ndarray  # (classes,) int64: how many of each class are to be found


class Curve(NamedTuple):
    """Precision and recall of one class after each counted box, by falling score."""

    precision: np.ndarray  # (n,)
    recall: np.ndarray  # (n,), rising; NaN if there are no objects
    scores: np.ndarray  # (n,), falling


# --- loops: the definition ---


def verdicts_loops(overlaps, ignored, crowd, least, again):
    """Return the verdict (n,) on boxes by falling score, of one image, from their overlaps (n, m).

    Where box and object are of two classes the overlap is -1, so that each class is by itself. ignored, crowd (m,):
    which objects need not be found, and which may be found many times; again: whether a box may turn to an object that
    it overlaps most only because others are found already, as in COCO.
    """
    verdicts = np.zeros(len(overlaps), np.int64)
    found = np.zeros(len(ignored), np.bool_)
    for n in range(len(overlaps)):
        best = -1
        for m in range(len(ignored)):
            if not overlaps[n, m] >= least or (again and found[m] and not crowd[m]):
                continue
            if best == -1 or (again and ignored[best] and not ignored[m]):
                best = m
            elif again and ignored[m] and not ignored[best]:
                continue
            elif overlaps[n, m] > overlaps[n, best] or (again and overlaps[n, m] == overlaps[n, best]):
                best = m
        if best != -1:
            if ignored[best]:
                verdicts[n] = -1
            elif not found[best]:
                verdicts[n] = 1
            found[best] = True
    return verdicts


# --- Numba: the loops. A handful of boxes and objects is too little for NumPy's calls to pay ---

verdicts_numba = backend.jit(verdicts_loops)
_verdicts = backend.pick(loops=verdicts_loops, numpy=verdicts_loops, numba=verdicts_numba)

# --- the public functions ---


def truth(labels: np.ndarray, boxes: np.ndarray) -> list[Truth]:
    """Return the objects of a batch as a list: labels (N, M), -1 where there is none, and boxes (N, M, 4)."""
    return [Truth(b[k >= 0], k[k >= 0]) for k, b in zip(labels, boxes, strict=True)]


def judge(
    found: Sequence[Found],
    truth: Sequence[Truth],
    classes: int,
    overlap: float = 0.5,
    kind: str = "voc2010",
    sizes: tuple[float, float] = ALL_SIZES,
    most: int = MOST,
) -> Judged:
    """Return which of the boxes found are right; both lists have an entry an image, in the same order.

    classes: how many there are; overlap: from which a box is right; kind: whose rules, one of KINDS; sizes: the least
    and the largest area of objects that count, in the units of the boxes squared; most: how many boxes of a class count
    in one image, those with the highest scores.
    """
    if kind not in KINDS:
        raise unknown("kind of average precision", kind, KINDS)
    if len(found) != len(truth):
        raise MbnpError(f"found has {len(found)} images and truth {len(truth)}: give an entry for each, even if empty")
    if not 0 < overlap <= 1:
        raise MbnpError(f"overlap must be above 0 and up to 1, got {overlap!r}")
    objects = np.zeros(classes, np.int64)
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for image, (one, there) in enumerate(zip(found, truth, strict=True)):
        there, ignored = _valid(there, one, classes, image)
        outside = _outside(there.boxes, sizes)
        np.add.at(objects, there.labels[~(ignored | outside)], 1)
        order = suppression.falling(one.scores)
        order = order[_first_of_class(one.labels[order], most)]
        found_boxes, labels = one.boxes[order], one.labels[order]
        verdicts = _judge(found_boxes, labels, there, ignored, outside, overlap, kind)
        verdicts[(verdicts == FALSE) & _outside(found_boxes, sizes)] = NOT_COUNTED
        columns.append((labels, one.scores[order], verdicts))
    if not columns:
        return Judged(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64), objects)
    labels, scores, verdicts = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = suppression.falling(scores)
    return Judged(labels[order], scores[order], verdicts[order], objects)


def curve(judged: Judged, label: int) -> Curve:
    """Return precision and recall of a class after each box that counts: the precision-recall curve."""
    of_class = (judged.labels == label) & (judged.verdicts != NOT_COUNTED)
    scores, right = judged.scores[of_class], np.cumsum(judged.verdicts[of_class] == RIGHT)
    with np.errstate(invalid="ignore"):  # no objects at all
        return Curve(right / np.arange(1, len(right) + 1), right / judged.objects[label], scores)


def average(curve: Curve, kind: str = "voc2010") -> float:
    """Return the average precision of a class that has objects, from 0 to 1."""
    if np.isnan(curve.scores).any() or np.isnan(curve.recall).any():
        return np.nan
    highest = np.maximum.accumulate(curve.precision[::-1])[::-1]  # at this recall or beyond
    if kind == "voc2010":
        return float((highest * np.diff(curve.recall, prepend=0)).sum())
    if kind not in KINDS:
        raise unknown("kind of average precision", kind, KINDS)
    # Written as each of the two has its recalls, since one unit in the last place decides whether 0.3 is reached.
    recalls = np.arange(11) / 10 if kind == "voc2007" else np.linspace(0, 1, 101)
    first = np.searchsorted(curve.recall, recalls)
    return float(np.append(highest, 0.0)[first].mean())


def average_precision(
    found: Sequence[Found],
    truth: Sequence[Truth],
    classes: int,
    overlap: float = 0.5,
    kind: str = "voc2010",
    sizes: tuple[float, float] = ALL_SIZES,
    most: int = MOST,
) -> np.ndarray:
    """Return the average precision of each class (classes,), from 0 to 1; NaN for a class without objects.

    The options are those of `judge`.
    """
    judged = judge(found, truth, classes, overlap, kind, sizes, most)
    return np.array(
        [average(curve(judged, k), kind) if judged.objects[k] else np.nan for k in range(classes)], np.float64
    )


def mean_average_precision(
    found: Sequence[Found],
    truth: Sequence[Truth],
    classes: int,
    overlap: float = 0.5,
    kind: str = "voc2010",
    sizes: tuple[float, float] = ALL_SIZES,
    most: int = MOST,
) -> float:
    """Return the mean of `average_precision` over the classes that have objects; NaN if none has."""
    judged = judge(found, truth, classes, overlap, kind, sizes, most)
    each = [average(curve(judged, int(k)), kind) for k in np.flatnonzero(judged.objects)]
    return float(np.mean(each)) if each else np.nan


def _judge(found, labels, there, ignored, outside, overlap, kind):
    overlaps = boxes.overlap(found, there.boxes)
    crowd = ignored if kind == "coco" else np.zeros_like(ignored)
    if crowd.any():  # the share of the box that lies in the crowd
        inter = boxes.intersection(found, there.boxes[crowd])
        area = boxes.area(found)[:, None]
        overlaps[:, crowd] = np.divide(inter, area, out=np.zeros_like(inter), where=area > 0)
    overlaps[labels[:, None] != there.labels] = -1  # a box finds objects of its class only
    return _verdicts(overlaps, ignored | outside, crowd, overlap, kind == "coco")


def _first_of_class(labels, most):
    """Return which (n,) of the boxes in this order are among the first of their class."""
    if len(labels) <= most:
        return np.ones(len(labels), bool)
    return np.tril(labels[:, None] == labels).sum(axis=1) <= most


def _outside(of_boxes, sizes):
    area = boxes.area(of_boxes)
    return (area < sizes[0]) | (area > sizes[1])


def _valid(there: Truth, found: Found, classes: int, image: int) -> tuple[Truth, np.ndarray]:
    """Return the objects of an image as arrays that fit what is found there, and which are ignored."""
    labels = np.asarray(there.labels)
    ignored = np.zeros(len(labels), bool) if there.ignored is None else np.asarray(there.ignored, bool)
    for name, those in (("truth", labels), ("found", np.asarray(found.labels))):
        if len(those) and (those.dtype.kind not in "iu" or those.min() < 0 or those.max() >= classes):
            raise MbnpError(
                f"the labels of image {image} in {name} must be whole numbers from 0 to {classes - 1}, got {those}"
            )
    if not len(found.boxes) == len(found.labels) == len(found.scores):
        counts = f"{len(found.boxes)} boxes, {len(found.labels)} labels and {len(found.scores)} scores"
        raise MbnpError(f"in image {image} {counts} are found: give one of each an object")
    if len(there.boxes) != len(labels) or len(ignored) != len(labels):
        raise MbnpError(
            f"image {image} of truth has {len(there.boxes)} boxes, {len(labels)} labels and {len(ignored)} marks of "
            "ignored objects: give one of each an object"
        )
    return Truth(np.asarray(there.boxes, found.boxes.dtype).reshape(-1, 4), labels), ignored
