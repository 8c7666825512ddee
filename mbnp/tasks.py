"""What a network is trained to do: a task is all in which the training of a detector differs from a classifier's.

A `Classification` has labels (B,), the cross-entropy, and is measured by its accuracy; a `Detection` has labels and
boxes, the loss of `detection.multibox`, and is measured by its mean average precision at an overlap of a half.
`train.fit` and `train.evaluate` ask `of(net)`, and are the same for both.
"""

import itertools
from typing import Any, NamedTuple, Protocol

import numpy as np

from mbnp.datasets import Dataset, Split
from mbnp.detection import anchors, detect, matching, multibox, precision
from mbnp.errors import MbnpError
from mbnp.network import Network
from mbnp.ops import softmax_cross_entropy as cross_entropy

# What is found when a detector is tested: precision and recall want boxes of low scores, too.
LEAST, OVERLAP = 0.01, 0.45  # Liu et al., "SSD", arXiv:1512.02325, section 3.7


class Words(NamedTuple):
    """What the numbers of a run are called."""

    measure: str = "accuracy"  # of test images
    learning: str = "accuracy"  # of training images, while it learns
    loss: str = "cross-entropy (nats)"


CLASSIFIER = Words()


class Loss(Protocol):
    """A module or object with a loss, and its gradient with respect to the outputs, of their shape and dtype."""

    def forward(self, outputs: np.ndarray, y: Any, /) -> Any: ...

    def backward(self, outputs: np.ndarray, y: Any, /) -> np.ndarray: ...


class Task(Protocol):
    """What `train.fit` and `train.evaluate` need to know of what they train."""

    words: Words
    loss: Any  # a Loss

    def check(self, data: Dataset, label_smoothing: float) -> None:
        """Raise MbnpError for data, or an option, that are not for this task."""

    def check_split(self, split: Split, name: str = "this split") -> None:
        """Raise MbnpError for images that are labelled for another task."""

    def targets(self, y: Any) -> Any:
        """Return what the loss takes, from what `datasets.batches` has of a batch."""

    def right(self, outputs: np.ndarray, targets: Any) -> float:
        """Return how many images of a training batch were answered rightly; some of them in part."""

    def predict(self, outputs: np.ndarray) -> Any:
        """Return what the outputs for a batch of test images say, one item for each."""

    def join(self, batches: list) -> Any:
        """Return the predictions of all batches as those of one."""

    def score(self, predictions: Any, split: Split) -> float:
        """Return the measure, from 0 to 1, of the predictions for all images of a split."""


def of(net: Network) -> Task:
    """Return the task of a network, as it is now."""
    if net.detection is None:
        return Classification(net)
    return Detection(net)


class Classification:
    """One label for each image."""

    words = CLASSIFIER
    loss: Any = cross_entropy

    def __init__(self, net: Network) -> None:
        self.net = net

    def check(self, data: Dataset, label_smoothing: float) -> None:
        self.check_split(data.train, data.name)
        if self.net.num_classes != len(data.classes):
            raise MbnpError(
                f"the network has {self.net.num_classes} outputs and {data.name} has {len(data.classes)} classes: "
                f"give it a new head with models.with_new_head(net, {len(data.classes)})"
            )

    def check_split(self, split: Split, name: str = "this split") -> None:
        if split.boxes is not None:
            raise MbnpError(
                f"{name} has boxes around objects, and this network classifies whole images: "
                "it takes a detector, such as ssd-mobilenet-v1-small"
            )

    def targets(self, y: np.ndarray) -> np.ndarray:
        return y

    def right(self, logits: np.ndarray, y: np.ndarray) -> int:
        return int(np.count_nonzero(logits.argmax(axis=1) == y))

    def predict(self, logits: np.ndarray) -> np.ndarray:
        return logits.argmax(axis=1)

    def join(self, batches: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(batches)

    def score(self, predictions: np.ndarray, split: Split) -> float:
        return float(np.mean(predictions == split.labels))


class Detection:
    """Any number of objects in each image, with a box each."""

    words = Words("mAP@0.5", "anchors", "multibox loss")
    loss: Any = multibox

    def __init__(self, net: Network) -> None:
        self.net, self.settings = net, anchors.settings(net)
        self.anchors = anchors.of(net)

    def check(self, data: Dataset, label_smoothing: float) -> None:
        self.check_split(data.train, data.name)
        if self.net.num_classes != len(data.classes):
            raise MbnpError(
                f"the detector knows {self.net.num_classes} classes and {data.name} has {len(data.classes)}: "
                f"build it with num_classes={len(data.classes)}"
            )
        if label_smoothing:
            raise MbnpError(f"label_smoothing={label_smoothing} is for classifiers: a detector is trained without")
        height, width = data.train.images.shape[1:3]
        if height != width:
            raise MbnpError(f"a detector takes square images, and those of {data.name} are {height}x{width}")

    def check_split(self, split: Split, name: str = "this split") -> None:
        if split.boxes is None:
            raise MbnpError(f"{name} has no boxes around objects, and this network is a detector: scenes10 has")

    def targets(self, y: tuple[np.ndarray, np.ndarray]) -> matching.Targets:
        labels, boxes = y
        shares = boxes.astype(self.anchors.dtype) / self.net.resolution
        return matching.targets(labels, shares, self.anchors, self.settings["scales"])

    def right(self, outputs: np.ndarray, targets: matching.Targets) -> float:
        """Return the share of the anchors on objects that name its class before the others, times the images.

        Background, which is by far the likeliest at first, is left out.
        """
        matched = targets.classes > 0
        if not matched.any():
            return float(len(outputs))
        likely = outputs[matched, 5:].argmax(axis=1)
        return float(np.mean(likely + 1 == targets.classes[matched])) * len(outputs)

    def predict(self, outputs: np.ndarray) -> list[detect.Found]:
        return detect.read(self.net, outputs, LEAST, OVERLAP)

    def join(self, batches: list[list[detect.Found]]) -> list[detect.Found]:
        return list(itertools.chain(*batches))

    def score(self, predictions: list[detect.Found], split: Split) -> float:
        return precision.mean_average_precision(predictions, truth(split), self.net.num_classes)


def truth(split: Split) -> list[precision.Truth]:
    """Return the objects of each image of a split, their boxes in shares of its width and height."""
    assert split.boxes is not None
    height, width = split.images.shape[1:3]
    return precision.truth(split.labels, split.boxes / np.array([width, height, width, height], split.boxes.dtype))
