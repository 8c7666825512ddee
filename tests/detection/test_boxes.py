import math

import numpy as np
import pytest
import torch

from mbnp import MbnpError, backend
from mbnp.detection import boxes
from tests.detection import cases


def torchvision_iou(a, b):
    """torchvision.ops.box_iou, written out."""
    area_a, area_b = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    low, high = torch.max(a[:, None, :2], b[:, :2]), torch.min(a[:, None, 2:], b[:, 2:])
    size = (high - low).clamp(min=0)
    inter = size[:, :, 0] * size[:, :, 1]
    return inter / (area_a[:, None] + area_b - inter)


def torchvision_encode(reference, proposals, weights):
    """torchvision.models.detection._utils.encode_boxes, written out."""
    wx, wy, ww, wh = weights
    ex_widths, ex_heights = proposals[:, 2] - proposals[:, 0], proposals[:, 3] - proposals[:, 1]
    ex_ctr_x, ex_ctr_y = proposals[:, 0] + 0.5 * ex_widths, proposals[:, 1] + 0.5 * ex_heights
    gt_widths, gt_heights = reference[:, 2] - reference[:, 0], reference[:, 3] - reference[:, 1]
    gt_ctr_x, gt_ctr_y = reference[:, 0] + 0.5 * gt_widths, reference[:, 1] + 0.5 * gt_heights
    return torch.stack(
        [
            wx * (gt_ctr_x - ex_ctr_x) / ex_widths,
            wy * (gt_ctr_y - ex_ctr_y) / ex_heights,
            ww * torch.log(gt_widths / ex_widths),
            wh * torch.log(gt_heights / ex_heights),
        ],
        dim=1,
    )


def torchvision_decode(codes, boxes, weights):
    """torchvision.models.detection._utils.BoxCoder.decode_single, written out, without its upper limit of sizes."""
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    ctr_x, ctr_y = boxes[:, 0] + 0.5 * widths, boxes[:, 1] + 0.5 * heights
    dx, dy, dw, dh = (codes / torch.tensor(weights)).T
    x, y, w, h = dx * widths + ctr_x, dy * heights + ctr_y, torch.exp(dw) * widths, torch.exp(dh) * heights
    return torch.stack([x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h], dim=1)


def test_overlap_against_torchvision():
    rng = np.random.default_rng(0)
    for case in range(1000):
        make = cases.boxes if case % 2 else cases.grid_boxes
        a, b = make(rng, rng.integers(1, 6)), make(rng, rng.integers(1, 6))
        expected = torchvision_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
        for name in backend.BACKENDS:
            with backend.use(name):
                np.testing.assert_allclose(boxes.overlap(a, b), expected, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", backend.BACKENDS)
def test_overlap_of_empty_and_nan(name):
    a = np.array([[0, 0, 1, 1], [0.5, 0, 0.5, 1], [0.6, 0.1, 0.2, 0.9], [0, np.nan, 1, 1]], np.float32)
    with backend.use(name):
        shared = boxes.overlap(a, a)
        assert boxes.overlap(a[:0], a).shape == (0, 4)
        assert boxes.overlap(a, a[:0]).shape == (4, 0)
    assert shared.dtype == np.float32
    np.testing.assert_array_equal(shared[:3, :3], np.diag([1.0, 0, 0]))
    assert np.isnan(shared[3]).all()
    assert np.isnan(shared[:, 3]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_implementations_agree_to_the_last_bit(dtype):
    """An overlap of a half is one for all of them, since matching and suppression compare with it."""
    rng = np.random.default_rng(1)
    a, b = cases.boxes(rng, 40, dtype=dtype), cases.boxes(rng, 50, dtype=dtype)
    np.testing.assert_array_equal(boxes.overlap_loops(a, b), boxes.overlap_numpy(a, b))
    np.testing.assert_array_equal(boxes.overlap_numba(a, b), boxes.overlap_numpy(a, b))


def test_coding_against_torchvision():
    rng = np.random.default_rng(2)
    for _ in range(1000):
        n = rng.integers(1, 6)
        objects, anchors = cases.boxes(rng, n), cases.boxes(rng, n)
        expected = torchvision_encode(torch.from_numpy(objects), torch.from_numpy(anchors), cases.SCALES).numpy()
        back = torchvision_decode(torch.from_numpy(expected), torch.from_numpy(anchors), cases.SCALES).numpy()
        for name in ("loops", "numpy"):
            with backend.use(name):
                offsets = boxes.encode(objects, anchors, cases.SCALES)
                decoded = boxes.decode(offsets, anchors, cases.SCALES)
            np.testing.assert_allclose(offsets, expected, rtol=0, atol=1e-12, err_msg=name)
            np.testing.assert_allclose(decoded, back, rtol=0, atol=1e-12, err_msg=name)
            np.testing.assert_allclose(decoded, objects, rtol=0, atol=1e-12, err_msg=name)


def test_coding_by_hand():
    """Half a width to the right, twice as wide and as high as before."""
    anchor, moved = np.array([0.2, 0.2, 0.4, 0.6]), np.array([0.2, 0.0, 0.6, 0.8])
    offsets = boxes.encode(moved, anchor, cases.SCALES)
    np.testing.assert_allclose(offsets, [5, 0, 5 * math.log(2), 5 * math.log(2)], atol=1e-14)


def test_coding_of_a_batch():
    """Anchors are the same for every image; float32 stays float32, and nothing is written to."""
    rng = np.random.default_rng(3)
    objects, anchors = cases.boxes(rng, 2, 7, dtype=np.float32), cases.boxes(rng, 7, dtype=np.float32)
    before = objects.copy(), anchors.copy()
    offsets = boxes.encode(objects, anchors, cases.SCALES)
    assert offsets.dtype == np.float32
    np.testing.assert_array_equal(offsets[1], boxes.encode(objects[1], anchors, cases.SCALES))
    np.testing.assert_allclose(boxes.decode(offsets, anchors, cases.SCALES), objects, atol=1e-6)
    np.testing.assert_array_equal(objects, before[0])
    np.testing.assert_array_equal(anchors, before[1])


@pytest.mark.parametrize("name", ["loops", "numpy"])
def test_coding_of_extremes(name):
    """Offsets that are NaN or huge come out as NaN and infinity, without a warning."""
    anchors = np.array([[0, 0, 1, 1], [0, 0, 1, 1]], np.float32)
    with backend.use(name):
        decoded = boxes.decode(np.array([[np.nan, 0, 0, 0], [0, 0, 0, 1e6]], np.float32), anchors, cases.SCALES)
        assert np.isneginf(boxes.encode(anchors * 0, anchors, cases.SCALES)[0, 2])
    assert np.isnan(decoded[0, [0, 2]]).all()
    np.testing.assert_array_equal(decoded[1], [0, -np.inf, 1, np.inf])


def test_bad_input():
    a = np.zeros((3, 4))
    with pytest.raises(MbnpError, match=r"b must be boxes, \(n, 4\), got the shape \(4,\)"):
        boxes.overlap(a, a[0])
    with pytest.raises(MbnpError, match=r"a must be boxes, \(n, 4\), got the shape \(4, 3\)"):
        boxes.overlap(a.T, a)
    with pytest.raises(MbnpError, match="b is float32 where the input is float64"):
        boxes.overlap(a, a.astype(np.float32))
    with pytest.raises(MbnpError, match="a must be float32 or float64, got int64"):
        boxes.overlap(a.astype(np.int64), a)
    with pytest.raises(MbnpError, match="a must be a NumPy array, got list"):
        boxes.overlap(a.tolist(), a)
    with pytest.raises(MbnpError, match=r"scales must be four positive numbers.*got \[1\.0, 1\.0\]"):
        boxes.encode(a, a, [1, 1])
    with pytest.raises(MbnpError, match=r"anchors \(2, 4\) do not fit offsets \(3, 4\)"):
        boxes.decode(a, a[:2], cases.SCALES)
