import numpy as np
import pytest
import torch

from mbnp import MbnpError, backend
from mbnp.detection import suppression
from tests.detection import cases
from tests.detection.test_boxes import torchvision_iou


def torchvision_nms(boxes, scores, limit):
    """torchvision.ops.nms, written out: go through the boxes by falling score, and strike out what overlaps."""
    overlaps = torchvision_iou(torch.from_numpy(boxes), torch.from_numpy(boxes)).numpy()
    order = torch.from_numpy(scores).sort(dim=0, descending=True, stable=True)[1].tolist()
    suppressed, kept = set(), []
    for i, n in enumerate(order):
        if n in suppressed:
            continue
        kept.append(n)
        suppressed |= {m for m in order[i + 1 :] if overlaps[n, m] > limit}
    return kept


def test_against_torchvision():
    """Equal scores, equal boxes and overlaps of exactly the limit among them."""
    rng = np.random.default_rng(0)
    for case in range(1000):
        n = rng.integers(1, 20)
        boxes = cases.boxes(rng, n, largest=0.9) if case % 2 else cases.grid_boxes(rng, n, cells=4)
        scores = rng.random(n) if case % 3 else rng.integers(0, 4, n) / 4
        limit = (0.5, 0.25, 0.7)[case % 3]
        expected = torchvision_nms(boxes, scores, limit)
        for name in backend.BACKENDS:
            with backend.use(name):
                np.testing.assert_array_equal(suppression.suppress(boxes, scores, limit), expected, err_msg=name)


@pytest.mark.parametrize("name", backend.BACKENDS)
def test_what_is_suppressed_suppresses_nothing(name):
    """Three boxes in a row, each over half of the next: the middle one goes, and the last one stays."""
    boxes = np.array([[0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]], np.float32)
    with backend.use(name):
        np.testing.assert_array_equal(suppression.suppress(boxes, np.array([0.9, 0.8, 0.7], np.float32)), [0, 2])
        np.testing.assert_array_equal(suppression.suppress(boxes, np.array([0.7, 0.8, 0.9], np.float32)), [2, 0])
        np.testing.assert_array_equal(suppression.suppress(boxes, np.array([0.7, 0.9, 0.8], np.float32)), [1])


@pytest.mark.parametrize("name", backend.BACKENDS)
def test_most(name):
    """The first of what would be kept without a limit."""
    rng = np.random.default_rng(1)
    boxes, scores = cases.boxes(rng, 50), rng.random(50)
    with backend.use(name):
        kept = suppression.suppress(boxes, scores)
        for most in (0, 1, 5, len(kept), 1000):
            np.testing.assert_array_equal(suppression.suppress(boxes, scores, most=most), kept[:most])


@pytest.mark.parametrize("name", backend.BACKENDS)
def test_nan_shows(name):
    """A score that is none comes first, and a box that is none suppresses nothing and is not suppressed."""
    boxes = np.array([[0, 0, 1, 1], [0, 0, np.nan, 1], [2, 2, 3, 3], [0, 0, 1, 1]])
    with backend.use(name):
        kept = suppression.suppress(boxes, np.array([0.5, 0.9, np.nan, 0.4]))
        assert len(suppression.suppress(boxes[:0], np.zeros(0))) == 0
    np.testing.assert_array_equal(kept, [2, 1, 0])


def test_nothing_is_written_to():
    rng = np.random.default_rng(2)
    boxes, scores = cases.boxes(rng, 9), rng.random(9)
    before = boxes.copy(), scores.copy()
    for name in backend.BACKENDS:
        with backend.use(name):
            suppression.suppress(boxes, scores)
    np.testing.assert_array_equal(boxes, before[0])
    np.testing.assert_array_equal(scores, before[1])


def test_bad_input():
    boxes = np.zeros((3, 4))
    with pytest.raises(MbnpError, match=r"scores must have the shape \(3,\), got \(2,\)"):
        suppression.suppress(boxes, np.zeros(2))
    with pytest.raises(MbnpError, match=r"overlap must be from 0 to 1, got 50"):
        suppression.suppress(boxes, np.zeros(3), 50)
    with pytest.raises(MbnpError, match="most must be a number of boxes, got -1"):
        suppression.suppress(boxes, np.zeros(3), most=-1)
    with pytest.raises(MbnpError, match=r"boxes must be boxes, \(n, 4\)"):
        suppression.suppress(boxes.T, np.zeros(3))
