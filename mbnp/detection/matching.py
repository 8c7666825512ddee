"""Matching: which anchor answers for which object in training.

Given the overlaps of M objects with A anchors,

1. each anchor is matched to the object that it overlaps most, if that is at least `least` (the first of equal ones);
2. then each object gets the anchor that it overlaps most, whatever it had: the closest pair of an object and an anchor
   first, then the closest of those that are left. Where two objects want one anchor, the nearer has it and the other
   one its next best, so that no object goes without, but one that overlaps no anchor at all.

All other anchors are background. Step 2 is what lets a network learn objects that no anchor fits, step 1 gives it many
more examples, and what several anchors find of one object is sorted out by suppression.

Source: Liu et al., "SSD", 2016, arXiv:1512.02325, section 2.2, "Matching strategy". Where two objects want one anchor
this is bipartite, as in the authors' code.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mbnp import backend
from mbnp.detection.boxes import check, encode, overlap_loops, overlap_numba, overlap_numpy
from mbnp.errors import MbnpError, refuse_mask

MOST_CLASSES = 2**31


class Targets(NamedTuple):
    """What a detector should have said of a batch."""

    classes: np.ndarray  # (N, A) int64: 0 for background, k + 1 for class k
    offsets: np.ndarray  # (N, A, 4): of the matched object from the anchor, encoded; 0 for background


# --- loops: the definition ---


def match_loops(overlaps, least):
    M, A = overlaps.shape
    match = np.full(A, -1)
    for m in range(M):
        for a in range(A):
            if overlaps[m, a] >= least and (match[a] == -1 or overlaps[m, a] > overlaps[match[a], a]):
                match[a] = m
    has_object, has_anchor = np.zeros(A, np.bool_), np.zeros(M, np.bool_)
    for _ in range(M):
        closest, object_, anchor = overlaps.dtype.type(0), -1, -1
        for m in range(M):
            for a in range(0 if has_anchor[m] else A):
                if overlaps[m, a] > closest and not has_object[a]:
                    closest, object_, anchor = overlaps[m, a], m, a
        if object_ != -1:
            match[anchor] = object_
            has_anchor[object_] = has_object[anchor] = True
    return match


# --- NumPy: all anchors at once ---


def match_numpy(overlaps, least):
    M, A = overlaps.shape
    left = np.where(np.isnan(overlaps), 0, overlaps)
    match = np.where(left.max(axis=0) >= least, left.argmax(axis=0), -1)
    for _ in range(M if A else 0):
        m, a = divmod(left.argmax(), A)
        if left[m, a] > 0:
            match[a] = m
            left[m, :] = left[:, a] = 0
    return match


# --- Numba: the loops ---

match_numba = backend.jit(match_loops, literal=True)

# --- the public functions ---

_overlap = backend.pick(loops=overlap_loops, numpy=overlap_numpy, numba=overlap_numba)
_match = backend.pick(loops=match_loops, numpy=match_numpy, numba=match_numba)


def match(boxes: np.ndarray, anchors: np.ndarray, least: float = 0.5) -> np.ndarray:
    """Return for each anchor (A,) int64 the index of the object it answers for, or -1 for background.

    boxes (M, 4), which may be none, and anchors (A, 4) in the same units; least: the overlap from which an anchor is
    matched to an object that has a closer one. MbnpError for boxes that are empty or not finite.
    """
    anchors = check("anchors", anchors, 2)
    boxes = check("boxes", boxes, 2, anchors)
    _check(boxes, least)
    return _match_one(boxes, anchors, least)


def targets(
    labels: np.ndarray, boxes: np.ndarray, anchors: np.ndarray, scales: Sequence[float], least: float = 0.5
) -> Targets:
    """Return what the anchors (A, 4) should say of a batch of images: `match` and `boxes.encode`, image by image.

    labels (N, M) whole numbers, the class of each object, from 0, and -1 where there is none; boxes (N, M, 4) in the
    anchors' units, shares; where labels is -1 they are not looked at. scales: as in `net.detection`.
    """
    anchors = check("anchors", anchors, 2)
    boxes = check("boxes", boxes, 3).astype(anchors.dtype, copy=False)
    labels = _labels(labels, boxes.shape[:2])
    _check(boxes[labels >= 0], least)
    classes = np.zeros((len(labels), len(anchors)), np.int64)
    offsets = np.zeros((*classes.shape, 4), anchors.dtype)
    matches = [
        (np.zeros(0, np.int64),) * 3
    ]  # of each image: its number, the anchors that are matched, and their objects
    for n, of_image in enumerate(labels):
        (objects,) = np.nonzero(of_image >= 0)
        match_of = _match_one(boxes[n, objects], anchors, least)
        (matched,) = np.nonzero(match_of >= 0)
        matches.append((np.full(len(matched), n), matched, objects[match_of[matched]]))
    image, anchor, object_ = (np.concatenate(column) for column in zip(*matches, strict=True))
    classes[image, anchor] = labels[image, object_] + 1
    offsets[image, anchor] = encode(boxes[image, object_], anchors[anchor], scales)
    return Targets(classes, offsets)


def _match_one(boxes: np.ndarray, anchors: np.ndarray, least: float) -> np.ndarray:
    return _match(_overlap(boxes, anchors), least) if len(boxes) else np.full(len(anchors), -1)


def _labels(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    refuse_mask("labels", labels)
    labels = np.asarray(labels)
    if labels.shape != shape:
        raise MbnpError(f"labels {labels.shape} must be (N, M), one for each of the boxes (N, M, 4), {(*shape, 4)}")
    if labels.dtype.kind not in "iu" or (labels < -1).any() or (labels >= MOST_CLASSES).any():
        values = f" from {labels.min()} to {labels.max()}" if labels.size else ""
        raise MbnpError(f"labels must be whole numbers from -1, which is no object, got {labels.dtype}{values}")
    return labels.astype(np.int64, copy=False)


def _check(boxes: np.ndarray, least: float) -> None:
    if not 0 < least <= 1:
        raise MbnpError(f"least must be an overlap above 0 and up to 1, got {least!r}")
    fine = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    if not fine.all():
        wrong = boxes[~fine][0].tolist()
        raise MbnpError(
            f"an object has the box {wrong}: left, top, right, bottom must be numbers, right beyond left, and bottom "
            "below top"
        )
