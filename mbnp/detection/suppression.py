"""Non-maximum suppression: of many boxes around one object, keep the best.

A detector finds an object by all the anchors near it. By falling score, each box is kept unless it overlaps one that is
kept already by more than a limit:

    keep n  if  overlap(boxes[n], boxes[k]) <= limit for every k kept before

It knows nothing of objects: where two of one class stand closer than the limit, one is lost. Boxes of different classes
are not compared; `detect.read` calls this class by class.

A box that is suppressed suppresses nothing. Of equal scores the first comes first, and NaN, which is no score, before
all others, where it is seen; an overlap of NaN suppresses nothing.

Source: Felzenszwalb et al., "Object Detection with Discriminatively Trained Part-Based Models", 2010, section 7.2; SSD,
arXiv:1512.02325, section 2.1.
"""

import numpy as np

from mbnp import backend
from mbnp.detection import boxes as box
from mbnp.errors import MbnpError
from mbnp.ops import checks

# --- loops: the definition ---


def suppress_loops(boxes, order, overlap, most):
    kept = np.empty(min(most, len(order)), np.int64)
    count = 0
    zero = boxes.dtype.type(0)
    for n in order:
        if count == most:
            break
        left, top, right, bottom = boxes[n]
        area = np.maximum(right - left, zero) * np.maximum(bottom - top, zero)
        alone = True
        for k in kept[:count]:
            area_k = np.maximum(boxes[k, 2] - boxes[k, 0], zero) * np.maximum(boxes[k, 3] - boxes[k, 1], zero)
            width = np.maximum(np.minimum(right, boxes[k, 2]) - np.maximum(left, boxes[k, 0]), zero)
            height = np.maximum(np.minimum(bottom, boxes[k, 3]) - np.maximum(top, boxes[k, 1]), zero)
            inter = width * height
            union = area_k + area - inter
            if union != 0 and inter / union > overlap:
                alone = False
                break
        if alone:
            kept[count] = n
            count += 1
    return kept[:count].copy()


# --- NumPy: what is kept against all that is left ---


def suppress_numpy(boxes, order, overlap, most):
    kept: list[int] = []
    while len(order) and len(kept) < most:
        first, order = order[0], order[1:]
        kept.append(first)
        order = order[~(box.overlap_numpy(boxes[first : first + 1], boxes[order])[0] > overlap)]
    return np.array(kept, np.int64)


# --- Numba: the loops, as written, so that all implementations have the same overlaps ---

suppress_numba = backend.jit(suppress_loops, literal=True)

# --- the public function ---

_suppress = backend.pick(loops=suppress_loops, numpy=suppress_numpy, numba=suppress_numba)


def suppress(boxes: np.ndarray, scores: np.ndarray, overlap: float = 0.5, most: int | None = None) -> np.ndarray:
    """Return the indices (k,) of the boxes (n, 4) that are kept, by falling score.

    scores (n,); overlap: a box is dropped that overlaps a kept one by more; most: stop when so many are kept.
    """
    boxes = box.check("boxes", boxes, 2)
    scores = checks.array("scores", scores, like=boxes, empty=True)
    checks.shape("scores", scores, (len(boxes),))
    if not 0 <= overlap <= 1:
        raise MbnpError(f"overlap must be from 0 to 1, got {overlap!r}")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int | np.integer) or most < 0):
        raise MbnpError(f"most must be a number of boxes, got {most!r}")
    most = len(boxes) if most is None else min(most, len(boxes))
    return _suppress(boxes, falling(scores), boxes.dtype.type(overlap), most)


def falling(scores: np.ndarray) -> np.ndarray:
    """Return the order (n,) of scores from the highest down: NaN first, and equal ones as they come."""
    return np.argsort(np.where(np.isnan(scores), -np.inf, -scores), kind="stable")
