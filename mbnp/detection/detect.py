"""What a detector has found: its outputs, (N, anchors, 4 + 1 + classes), as objects with labels, boxes and scores.

    scores = softmax(logits) without background's, or sigmoid(logits), as `net.detection` says
    found  = those of at least `least`: decoded, cut at the border of the image, and suppressed class by class

The order of the steps is for speed: of some thousand anchors a few reach `least`, and only those are decoded.

>>> (found,) = detect.detect(net, images[:1])
>>> for label, box, score in zip(found.labels, found.boxes, found.scores): print(net.classes[label], score, box)

A NaN among the logits of an anchor makes its scores NaN, and it is found, before all others, with the score NaN: wrong
outputs show, they do not look like an empty image.
"""

from typing import NamedTuple

import numpy as np

from mbnp import backend
from mbnp.datasets import normalise
from mbnp.detection import anchors, boxes, suppression
from mbnp.errors import MbnpError, unknown
from mbnp.network import Network
from mbnp.ops import checks, softmax_cross_entropy

SCORES = ("softmax", "sigmoid")


class Found(NamedTuple):
    """The objects found in one image, by falling score."""

    boxes: np.ndarray  # (n, 4): left, top, right, bottom, in shares of the width and height of what the network saw
    labels: np.ndarray  # (n,) int64, the class, from 0
    scores: np.ndarray  # (n,), from 0 to 1


def detect(net: Network, images: np.ndarray, least: float = 0.5, overlap: float = 0.5, most: int = 100) -> list[Found]:
    """Return what a detector finds in images (N, R, R, C) uint8 of its resolution R, one `Found` an image.

    They are normalised as the network was trained (`net.preprocessing`); the other options are those of `read`.
    """
    anchors.settings(net)
    if net.preprocessing is None:
        raise MbnpError("the checkpoint does not say how its images were normalised")
    x = normalise(images, **net.preprocessing, dtype=net.dtype)
    with backend.one_pool():
        outputs = net.forward(x)
    return read(net, outputs, least, overlap, most)


def read(net: Network, outputs: np.ndarray, least: float = 0.5, overlap: float = 0.5, most: int = 100) -> list[Found]:
    """Return what the outputs (N, A, 4 + 1 + K) of a detector say, one `Found` an image.

    least: the score from which a box is found; overlap: that of `suppression.suppress`; most: boxes an image.
    """
    settings, places = anchors.settings(net), anchors.of(net)
    outputs = checks.array("outputs", outputs, "(N, A, 4 + 1 + K)", like=places)
    columns = 4 + 1 + net.num_classes
    if outputs.shape[1:] != (len(places), columns):
        raise MbnpError(
            f"outputs {outputs.shape} must be (N, {len(places)}, {columns}): this detector has {len(places)} anchors "
            f"for images of {net.resolution} x {net.resolution}, and {net.num_classes} classes"
        )
    for name, share in (("least", least), ("overlap", overlap)):
        if not isinstance(share, int | float | np.number) or not 0 <= share <= 1:
            raise MbnpError(f"{name} must be a number from 0 to 1, got {share!r}")
    if isinstance(most, bool) or not isinstance(most, int | np.integer) or most < 1:
        raise MbnpError(f"most must be at least 1 box, got {most!r}")
    with np.errstate(invalid="ignore"):
        return [_read(of_image, places, settings, least, overlap, most) for of_image in outputs]


def scores(logits: np.ndarray, kind: str) -> np.ndarray:
    """Return the scores (A, K), from 0 to 1, of logits (A, 1 + K), of which background is the first.

    kind: "softmax", where the classes and background share 1, or "sigmoid", where each class is judged by itself.
    """
    if kind == "softmax":
        return softmax_cross_entropy.softmax(logits)[:, 1:]
    if kind == "sigmoid":
        return 0.5 + 0.5 * np.tanh(logits[:, 1:] / 2)  # which does not overflow, as exp would
    raise unknown("kind of scores", kind, SCORES)


def _read(outputs, places, settings, least, overlap, most):
    every_score = scores(outputs[:, 4:], settings["scores"])
    likely = ~(every_score < least)  # also NaN
    (rows,) = np.nonzero(likely.any(axis=1))
    decoded = np.clip(boxes.decode(outputs[rows, :4], places[rows], settings["scales"]), 0, 1)
    kept_rows, kept_labels = [], []
    for label in np.flatnonzero(likely.any(axis=0)):
        (at,) = np.nonzero(likely[rows, label])
        kept = at[suppression.suppress(decoded[at], every_score[rows[at], label], overlap, most)]
        kept_rows.append(kept)
        kept_labels.append(np.full(len(kept), label))
    kept = np.concatenate([np.zeros(0, np.int64), *kept_rows])
    labels = np.concatenate([np.zeros(0, np.int64), *kept_labels])
    of_kept = every_score[rows[kept], labels]
    order = suppression.falling(of_kept)[:most]
    return Found(decoded[kept[order]], labels[order], of_kept[order])
