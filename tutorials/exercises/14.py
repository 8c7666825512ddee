"""Exercises of lesson 14. Replace each `raise NotImplementedError`, then: mbnp grade tutorials/exercises/14.py"""

import numpy as np


def overlaps(a, b):
    """Return the overlap of every box of a (n, 4) with every box of b (m, 4): intersection over union, (n, m).

    A box is left, top, right, bottom, on a continuous scale; it is right - left wide, and every box has an area.
    """
    raise NotImplementedError


def box_coding(boxes, offsets, anchors, scales):
    """Return boxes (n, 4) as offsets from anchors (n, 4), and the boxes that offsets (n, 4) from them mean.

    Boxes and anchors are left, top, right, bottom. With the centre (x, y) and the size (w, h) of a box, and (xa, ya),
    (wa, ha) of its anchor, the offsets are (x - xa) / wa, (y - ya) / ha, log(w / wa) and log(h / ha), each multiplied
    by its number in scales (4,).
    """
    raise NotImplementedError


def suppress(boxes, scores, labels, limit):
    """Return the indices of the boxes that non-maximum suppression keeps, by falling score, (k,) int64.

    boxes (n, 4): left, top, right, bottom; scores (n,); labels (n,): the class of each. A box is dropped if it overlaps
    a box of its class that is kept by *more* than limit. Of equal scores the first comes first.
    """
    raise NotImplementedError


def average_precision(scores, right, objects):
    """Return the area below the interpolated curve of precision over recall, a float from 0 to 1.

    scores (n,), in any order, all different; right (n,) bool: whether each box found an object that none before it had
    found; objects: how many there are. The precision at a recall is the highest one at that recall or a higher one.
    """
    raise NotImplementedError
