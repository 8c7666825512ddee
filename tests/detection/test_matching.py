import time

import numpy as np
import pytest
import torch

from mbnp import MbnpError, backend
from mbnp.detection import boxes, matching
from tests.detection import cases
from tests.detection.test_boxes import torchvision_encode, torchvision_iou


def torchvision_match(quality, threshold):
    """torchvision.models.detection._utils.SSDMatcher with its base class Matcher, written out."""
    values, matches = quality.max(dim=0)
    matches[values < threshold] = -1
    _, highest = quality.max(dim=1)
    matches[highest] = torch.arange(highest.size(0))
    return matches


def bipartite(quality, threshold):
    """The matching of the authors' Caffe code: pairs by falling overlap, then what overlaps enough."""
    matches = np.full(quality.shape[1], -1)
    pairs = sorted(np.ndindex(quality.shape), key=lambda pair: (-quality[pair], pair))
    rows = set()
    for m, a in pairs:
        if quality[m, a] > 0 and m not in rows and matches[a] == -1:
            rows.add(m)
            matches[a] = m
    for a in range(quality.shape[1]):
        if matches[a] == -1 and quality[:, a].max() >= threshold:
            matches[a] = quality[:, a].argmax()
    return matches


def test_against_torchvision():
    """Where each object overlaps an anchor and no two of them want the same; torchvision lets the last one have it."""
    rng, compared = np.random.default_rng(0), 0
    while compared < 1000:
        objects, anchors = cases.boxes(rng, rng.integers(1, 5)), cases.boxes(rng, 30)
        quality = torchvision_iou(torch.from_numpy(objects), torch.from_numpy(anchors))
        highest, wanted = quality.max(dim=1)
        if highest.min() == 0 or len(set(wanted.tolist())) < len(objects):
            continue
        compared += 1
        least = 0.5 if compared % 2 else 0.3
        np.testing.assert_array_equal(
            matching.match(objects, anchors, least), torchvision_match(quality, least).numpy()
        )


def test_against_bipartite_matching():
    """Crowded images with ties: every implementation, and every object has an anchor."""
    rng = np.random.default_rng(1)
    for _ in range(1000):
        objects, anchors = cases.grid_boxes(rng, rng.integers(1, 7)), cases.grid_boxes(rng, rng.integers(1, 9))
        quality = torchvision_iou(torch.from_numpy(objects), torch.from_numpy(anchors)).numpy()
        expected = bipartite(quality, 0.5)
        for name in backend.BACKENDS:
            with backend.use(name):
                np.testing.assert_array_equal(matching.match(objects, anchors), expected, err_msg=name)


def test_no_object_goes_without():
    anchors = np.array([[0.0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.8, 0.8, 0.9, 0.9]])
    objects = np.array([[0.0, 0, 1, 0.9], [0, 0, 1, 0.95]])  # both want the first anchor, and the second is nearer
    np.testing.assert_array_equal(matching.match(objects, anchors), [1, 0, -1])
    np.testing.assert_array_equal(matching.match(objects[:0], anchors), [-1, -1, -1])


def test_targets():
    """Gaps in the labels are no objects, whatever is in their boxes; offsets are those of the matched object."""
    rng = np.random.default_rng(2)
    anchors, objects = cases.boxes(rng, 40, dtype=np.float32), cases.boxes(rng, 3, 4, dtype=np.float32)
    labels = np.array([[2, -1, 0, 5], [-1, -1, -1, -1], [-1, 1, -1, -1]])
    objects[labels < 0] = np.nan
    before = anchors.copy(), objects.copy(), labels.copy()
    for name in backend.BACKENDS:
        with backend.use(name):
            classes, offsets = matching.targets(labels, objects, anchors, cases.SCALES, 0.4)
        assert (classes.dtype, offsets.dtype) == (np.int64, np.float32)
        for n in range(3):
            real = labels[n] >= 0
            match = matching.match(objects[n, real], anchors, 0.4)
            there = match >= 0
            assert there.sum() >= real.sum()
            np.testing.assert_array_equal(classes[n], np.where(there, np.append(labels[n, real] + 1, 0)[match], 0))
            assert not offsets[n, ~there].any()
            exact = torchvision_encode(
                *(torch.from_numpy(x) for x in (objects[n, real][match[there]], anchors[there])), cases.SCALES
            )
            np.testing.assert_allclose(offsets[n, there], exact.numpy(), rtol=1e-4, atol=1e-5)
    for after, copy in zip((anchors, objects, labels), before, strict=True):
        np.testing.assert_array_equal(after, copy)


def test_targets_are_what_decoding_undoes():
    rng = np.random.default_rng(3)
    anchors, objects = cases.boxes(rng, 60), cases.boxes(rng, 2, 3)
    classes, offsets = matching.targets(np.zeros((2, 3), np.int64), objects, anchors, cases.SCALES)
    decoded = boxes.decode(offsets, anchors, cases.SCALES)
    for n in range(2):
        matched = classes[n] > 0
        assert boxes.overlap(decoded[n, matched], objects[n]).max(axis=1).min() > 1 - 1e-12


def test_no_objects_at_all():
    anchors = cases.boxes(np.random.default_rng(0), 5)
    for shape in ((2, 0), (2, 3), (0, 3)):
        classes, offsets = matching.targets(np.full(shape, -1), np.zeros((*shape, 4)), anchors, cases.SCALES)
        assert classes.shape == (shape[0], 5)
        assert not classes.any()
        assert not offsets.any()


@cases.fast
def test_a_batch_takes_milliseconds():
    rng = np.random.default_rng(4)
    anchors, objects = cases.boxes(rng, 1000, dtype=np.float32), cases.boxes(rng, 64, 5, dtype=np.float32)
    labels = rng.integers(0, 10, (64, 5))
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        matching.targets(labels, objects, anchors, cases.SCALES)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.05  # 3 ms on a quiet machine


def test_bad_input():
    box, anchors = np.array([[0.1, 0.1, 0.5, 0.5]]), cases.boxes(np.random.default_rng(0), 5)
    with pytest.raises(MbnpError, match=r"an object has the box \[0\.5, 0\.1, 0\.1, 0\.5\]"):
        matching.match(box[:, [2, 1, 0, 3]], anchors)
    with pytest.raises(MbnpError, match=r"an object has the box \[nan, .* must be numbers"):
        matching.match(box * [[np.nan, 1, 1, 1]], anchors)
    with pytest.raises(MbnpError, match="least must be an overlap above 0 and up to 1, got 0"):
        matching.match(box, anchors, 0)
    with pytest.raises(MbnpError, match=r"boxes must be boxes, \(N, M, 4\), got the shape \(1, 4\)"):
        matching.targets(np.array([0]), box, anchors, cases.SCALES)
    with pytest.raises(MbnpError, match=r"an object has the box \[0\.0, 0\.0, 0\.0, 0\.0\]"):
        matching.targets(np.array([[0]]), 0 * box[None], anchors, cases.SCALES)
    with pytest.raises(MbnpError, match=r"labels \(1, 2\) must be \(N, M\)"):
        matching.targets(np.array([[0, 1]]), box[None], anchors, cases.SCALES)
    for labels, got in ((np.array([[-2]]), "int64 from -2"), (np.array([[0.0]]), "float64 from 0.0")):
        with pytest.raises(MbnpError, match=f"labels must be whole numbers from -1.*got {got}"):
            matching.targets(labels, box[None], anchors, cases.SCALES)


def test_odd_overlaps_are_matched_alike():
    overlaps = np.array([[0.6, np.nan, 0.1], [0.7, 0.2, np.nan]])
    for implementation in (matching.match_loops, matching.match_numpy, matching.match_numba):
        np.testing.assert_array_equal(implementation(overlaps, 0.5), [1, -1, 0], str(implementation))
        np.testing.assert_array_equal(implementation(np.zeros((2, 0)), 0.5), np.zeros(0, int))


def test_labels_that_would_overflow_are_refused():
    for label in (2**63 - 1, 2**31):
        with pytest.raises(MbnpError, match="whole numbers from -1"):
            matching.targets(
                np.array([[label]]), np.array([[[0, 0, 0.5, 0.5]]]), np.array([[0, 0, 0.5, 0.5]]), [10] * 4
            )
