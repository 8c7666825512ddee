"""Object detection: where things are, with an SSD. Read in the order of the path from anchors to average precision.

    anchors.py       some thousand boxes that tile an image: what a detector's answers are relative to
    boxes.py         the overlap of two boxes; a box as four offsets from an anchor, and back
    matching.py      training: which anchor answers for which object, and what it should have said
    multibox.py      the loss of these answers, four offsets and a class for each anchor, and its gradient
    suppression.py   inference: of many boxes around one object, the best
    detect.py        outputs to objects: scores, decoding, suppression by class
    whole.py         images of any size and shape: resized for the detector, and boxes in their own pixels
    tracking.py      video: which object is which from frame to frame; smoothing
    precision.py     average precision, as VOC and COCO count it: how good all of that is

A detector is a `mbnp.network.Network` that ends in a `Pyramid` and whose `detection` says how its outputs, (N, anchors,
4 + 1 + classes), are read. Boxes are arrays (..., 4): left, top, right, bottom; "shares" are units of the image's width
and height, from 0 to 1. Files are built as those of `mbnp.ops` are: formula, loops, NumPy, kernel, public functions.

>>> places = anchors.of(net)
>>> targets = matching.targets(labels, boxes_in_shares, places, net.detection["scales"])
>>> train.step(net, opt, x, targets, loss=multibox)
>>> found = detect.detect(net, images)
>>> precision.mean_average_precision(found, precision.truth(labels, boxes_in_shares), classes=10)
"""

from mbnp.detection import anchors, boxes, detect, matching, multibox, precision, suppression, tracking, whole

__all__ = ["anchors", "boxes", "detect", "matching", "multibox", "precision", "suppression", "tracking", "whole"]
