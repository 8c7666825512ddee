"""Objects followed from frame to frame: which is which, so that boxes and scores can be smoothed over time.

A track is an object that was seen before. Tracks and the objects found in the next frame are paired within each class,
the pair of the largest overlap first, then the largest of what is left, as long as it is at least `overlap`. Then

    paired track:      box = smooth * box + (1 - smooth) * box found, and likewise its score
    track alone:       stays as it is, and is forgotten once it was missed in more than `patience` frames in a row, or
                       where an object just seen covers it: overlaps it by more than a half
    object alone:      is a new track, if its score is at least `start`

A detector's scores waver from frame to frame. So find objects down to a score below `start`: what is weaker goes on
with a track, and begins none.

>>> tracks = tracking.NONE
>>> for image in images: tracks = tracking.follow(tracks, detect.detect(net, image[None], least=0.3)[0])
"""

from typing import NamedTuple

import numpy as np

from mbnp.detection import boxes as box
from mbnp.detection.detect import Found
from mbnp.errors import MbnpError

COVERED = 0.5


class Tracks(NamedTuple):
    """Objects, by falling score; the first three as in `Found`."""

    boxes: np.ndarray  # (n, 4) float64, in the units of those found
    labels: np.ndarray  # (n,) int64
    scores: np.ndarray  # (n,) float64
    missed: np.ndarray  # (n,) int64, the frames in a row, up to the last, in which it was not found


NONE = Tracks(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))


def follow(
    tracks: Tracks, found: Found, smooth: float = 0.5, start: float = 0.5, overlap: float = 0.3, patience: int = 2
) -> Tracks:
    """Return the tracks after a frame in which these objects were found."""
    for name, share in (("smooth", smooth), ("start", start), ("overlap", overlap)):
        if not 0 <= share <= 1:
            raise MbnpError(f"{name} must be from 0 to 1, got {share!r}")
    shared = box.overlap(tracks.boxes, found.boxes.astype(np.float64))
    old, seen = pairs(np.where(tracks.labels[:, None] == found.labels, shared, 0), overlap)
    boxes, scores, missed = tracks.boxes.copy(), tracks.scores.copy(), tracks.missed + 1
    boxes[old] = smooth * boxes[old] + (1 - smooth) * found.boxes[seen]
    scores[old] = smooth * scores[old] + (1 - smooth) * found.scores[seen]
    missed[old] = 0
    new = np.setdiff1d(np.flatnonzero(~(found.scores < start)), seen)  # also NaN, as in `detect.read`
    boxes, scores = np.concatenate([boxes, found.boxes[new]]), np.concatenate([scores, found.scores[new]])
    labels = np.concatenate([tracks.labels, found.labels[new]])
    missed = np.concatenate([missed, np.zeros(len(new), np.int64)])
    covered = (box.overlap(boxes, boxes[missed == 0]) > COVERED).any(axis=1)
    (kept,) = np.nonzero((missed == 0) | (missed <= patience) & ~covered)
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    return Tracks(boxes[kept], labels[kept], scores[kept], missed[kept])


def pairs(overlaps: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Return rows (k,) and columns (k,) of overlaps (n, m) that belong together: each once, the largest first."""
    left = np.where(overlaps >= least, overlaps, 0)
    rows, columns = [], []
    while left.any():
        row, column = np.unravel_index(left.argmax(), left.shape)
        rows.append(row)
        columns.append(column)
        left[row] = left[:, column] = 0
    return np.array(rows, np.int64), np.array(columns, np.int64)
