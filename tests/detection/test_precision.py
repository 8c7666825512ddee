import contextlib
import io
from fractions import Fraction

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mbnp import MbnpError, backend
from mbnp.detection import precision
from mbnp.detection.detect import Found
from mbnp.detection.precision import Truth
from tests.detection import cases

CLASSES = 3


def random_data(rng, images, make, ignored=0.2):
    """Objects, and boxes found near them and elsewhere; scores with ties. Units are pixels of 200 x 200."""
    found, truth = [], []
    for _ in range(images):
        m, extra = rng.integers(0, 5), rng.integers(0, 4)
        objects, labels = make(rng, m) * 200, rng.integers(0, CLASSES, m)
        if m > 1 and rng.random() < 0.5:  # all of one class, and so close that a box overlaps each by more than a half
            objects[1:], labels[1:] = objects[0] + rng.integers(-5, 6, (m - 1, 4)), labels[0]
        near = rng.integers(0, m, rng.integers(0, 7)) if m else np.zeros(0, int)
        moved = objects[near] + rng.integers(-8, 9, (len(near), 4)) * 1.0
        boxes = np.concatenate([moved, make(rng, extra) * 200])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        of = np.concatenate([labels[near], rng.integers(0, CLASSES, extra)])
        order = rng.permutation(len(of))
        scores = rng.integers(1, 12, len(of)) / 12
        found.append(Found(boxes[order], of[order], scores))
        truth.append(Truth(objects, labels, rng.random(m) < ignored))
    return found, truth


def coco_precisions(found, truth):
    """Average precision by pycocotools: (overlap, class, size), NaN where it says -1."""
    quiet = contextlib.redirect_stdout(io.StringIO())
    annotations = [
        {"bbox": [*box[:2], *(box[2:] - box[:2])], "area": float(np.prod(box[2:] - box[:2])), "category_id": int(k) + 1,
         "image_id": i + 1, "iscrowd": int(ignored)}
        for i, there in enumerate(truth) for box, k, ignored in zip(*there, strict=True)
    ]  # fmt: skip
    results = [
        {"bbox": [*box[:2], *(box[2:] - box[:2])], "score": s, "category_id": int(k) + 1, "image_id": i + 1}
        for i, one in enumerate(found)
        for box, k, s in zip(*one, strict=True)
    ]
    with quiet:
        real = COCO()
        real.dataset = {
            "images": [{"id": i + 1} for i in range(len(truth))],
            "categories": [{"id": k + 1} for k in range(CLASSES)],
            "annotations": [{"id": i + 1, **a} for i, a in enumerate(annotations)],
            "info": {},
        }
        real.createIndex()
        evaluation = COCOeval(real, real.loadRes(results) if results else COCO(), "bbox")
        if not results:
            return None
        evaluation.evaluate()
        evaluation.accumulate()
    values = evaluation.eval["precision"][..., -1]  # overlaps, recalls, classes, sizes; maxDets is 100
    return np.where(values.max(axis=1) < 0, np.nan, values.mean(axis=1))


def test_against_pycocotools():
    """1,000 classes of random data sets, at every overlap and size: 101 recalls, crowds, areas, ties."""
    rng = np.random.default_rng(0)
    sizes = [precision.ALL_SIZES, *precision.COCO_SIZES.values()]
    compared = 0
    while compared < 1000:
        found, truth = random_data(rng, rng.integers(1, 8), cases.boxes if compared % 2 else cases.grid_boxes)
        expected = coco_precisions(found, truth)
        if expected is None:
            continue
        compared += CLASSES
        for size in range(4) if compared % 7 == 0 else [compared % 4]:
            for t in [0, 5, 9]:
                actual = precision.average_precision(
                    found, truth, CLASSES, precision.COCO_OVERLAPS[t], "coco", sizes[size]
                )
                np.testing.assert_allclose(actual, expected[t, :, size], rtol=0, atol=1e-10)


def test_most_boxes_against_pycocotools():
    """Of 150 boxes in an image, all on one of the objects, the first 100 count."""
    rng = np.random.default_rng(1)
    objects = np.array([[20.0 * k, 0, 20 * k + 18, 50] for k in range(10)])
    boxes = objects[rng.integers(0, 10, 150)] + rng.integers(-4, 5, (150, 4))
    found, truth = (
        [Found(boxes, np.zeros(150, int), rng.random(150))],
        [Truth(objects, np.zeros(10, int), [False] * 10)],
    )
    expected = coco_precisions(found, truth)[0, 0, 0]
    assert precision.average_precision(found, truth, 1, kind="coco")[0] == pytest.approx(expected, abs=1e-12)


def voc(found, truth, label, overlap, kind):
    """The development kits' evaluation, written out, with whole numbers and fractions instead of curves."""
    objects = [[(box, hard) for box, k, hard in zip(*there, strict=True) if k == label] for there in truth]
    total = sum(not hard for those in objects for _, hard in those)
    if total == 0:
        return np.nan
    rows = [(s, i, n) for i, one in enumerate(found) for n, s in enumerate(one.scores) if one.labels[n] == label]
    taken, right, false, points = set(), 0, 0, []
    for _, i, n in sorted(rows, key=lambda row: -row[0]):
        box, best, most = found[i].boxes[n], None, -1.0
        for j, (there, _) in enumerate(objects[i]):
            w, h = min(box[2], there[2]) - max(box[0], there[0]), min(box[3], there[3]) - max(box[1], there[1])
            if w > 0 and h > 0:
                areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, there)]
                shared = w * h / (areas[0] + areas[1] - w * h)
                if shared > most:
                    best, most = j, shared
        if most >= overlap and objects[i][best][1]:
            continue
        if most >= overlap and (i, best) not in taken:
            taken.add((i, best))
            right += 1
        else:
            false += 1
        points.append((Fraction(right, total), Fraction(right, right + false)))
    if kind == "voc2007":
        return float(sum(max([p for r, p in points if r >= Fraction(t, 10)], default=0) for t in range(11)) / 11)
    area, before = Fraction(0), Fraction(0)
    for r in sorted({r for r, _ in points}):
        area += (r - before) * max(p for other, p in points if other >= r)
        before = r
    return float(area)


@pytest.mark.parametrize("kind", ["voc2007", "voc2010"])
def test_against_voc(kind):
    """1,000 classes of random data sets, with difficult objects, ties and overlaps of exactly a half."""
    rng = np.random.default_rng(2)
    for case in range(334):
        found, truth = random_data(rng, rng.integers(1, 8), cases.boxes if case % 2 else cases.grid_boxes)
        overlap = 0.5 if case % 3 else 0.7
        actual = precision.average_precision(found, truth, CLASSES, overlap, kind)
        expected = [voc(found, truth, k, overlap, kind) for k in range(CLASSES)]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
        there = [e for e in expected if not np.isnan(e)]
        mean = precision.mean_average_precision(found, truth, CLASSES, overlap, kind)
        np.testing.assert_allclose(mean, np.mean(there) if there else np.nan, atol=1e-12)


def test_by_hand():
    """Right, false, right, of three objects: precisions 1, 1/2, 2/3 at recalls 1/3, 1/3, 2/3."""
    objects = np.array([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])
    found = [Found(objects[[0, 0, 1]], np.zeros(3, np.int64), np.array([0.9, 0.8, 0.7]))]
    truth = [Truth(objects, np.zeros(3, np.int64))]
    curve = precision.curve(precision.judge(found, truth, 1), 0)
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 2 / 3])
    np.testing.assert_allclose(curve.recall, [1 / 3, 1 / 3, 2 / 3])
    np.testing.assert_array_equal(curve.scores, [0.9, 0.8, 0.7])
    assert precision.average(curve, "voc2010") == pytest.approx(1 / 3 + 2 / 9)
    assert precision.average(curve, "voc2007") == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)
    assert precision.average(curve, "coco") == pytest.approx((34 * 1 + 33 * 2 / 3) / 101)


def test_coco_takes_the_closest_object_that_is_not_ignored():
    """Whatever stands between them in the list: the first box is the third object's, and the second the first's."""
    across = {"objects": [(0, 10), (6, 30), (3, 13)], "found": [(2.5, 12.5), (-3, 7)]}
    objects, boxes = (np.array([[left, 0.0, right, 10] for left, right in those]) for those in across.values())
    truth = [Truth(objects, np.zeros(3, np.int64), np.array([False, True, False]))]
    found = [Found(boxes, np.zeros(2, np.int64), np.array([0.9, 0.8]))]
    for name in backend.BACKENDS:
        with backend.use(name):
            assert precision.judge(found, truth, 1, kind="coco").verdicts.tolist() == [1, 1], name


def test_implementations_agree():
    rng = np.random.default_rng(3)
    found, truth = random_data(rng, 30, cases.grid_boxes)
    for kind in precision.KINDS:
        results = []
        for name in backend.BACKENDS:
            with backend.use(name):
                results.append(precision.average_precision(found, truth, CLASSES, kind=kind))
        np.testing.assert_array_equal(results[0], results[1])
        np.testing.assert_array_equal(results[0], results[2])


def test_nothing_is_written_to():
    found, truth = random_data(np.random.default_rng(4), 5, cases.boxes)
    before = [array.copy() for one in (*found, *truth) for array in one]
    precision.average_precision(found, truth, CLASSES, kind="coco")
    for array, copy in zip([array for one in (*found, *truth) for array in one], before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_nothing_found_and_nothing_there():
    nothing, box = Found(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0)), np.array([[0.0, 0, 1, 1]])
    there, empty = Truth(box, np.array([1])), Truth(np.zeros((0, 4)), np.zeros(0, np.int64))
    one = Found(box, np.array([0]), np.ones(1))
    np.testing.assert_array_equal(precision.average_precision([nothing], [there], 2), [np.nan, 0])
    np.testing.assert_array_equal(precision.average_precision([one, nothing], [empty, there], 2), [np.nan, 0])
    assert np.isnan(precision.mean_average_precision([one], [empty], 2))
    assert len(precision.curve(precision.judge([one], [empty], 2), 0).precision) == 1


def test_nan_shows():
    box = np.array([[0.0, 0, 1, 1]])
    found, truth = [Found(box, np.array([0]), np.array([np.nan]))], [Truth(box, np.array([0]))]
    for kind in precision.KINDS:
        assert np.isnan(precision.mean_average_precision(found, truth, 1, kind=kind))


def test_truth_of_a_batch():
    boxes = np.arange(24.0).reshape(2, 3, 4)
    first, second = precision.truth(np.array([[1, -1, 0], [-1, -1, -1]]), boxes)
    np.testing.assert_array_equal(first.labels, [1, 0])
    np.testing.assert_array_equal(first.boxes, boxes[0, [0, 2]])
    assert second.boxes.shape == (0, 4)


def test_bad_input():
    box = np.array([[0.0, 0, 1, 1]])
    found, truth = [Found(box, np.array([0]), np.ones(1))], [Truth(box, np.array([0]))]
    with pytest.raises(MbnpError, match=r"unknown kind of average precision 'voc': .*known are coco, voc2007, voc2010"):
        precision.average_precision(found, truth, 1, kind="voc")
    with pytest.raises(MbnpError, match="found has 1 images and truth 2"):
        precision.average_precision(found, truth * 2, 1)
    with pytest.raises(MbnpError, match="overlap must be above 0 and up to 1, got 50"):
        precision.average_precision(found, truth, 1, overlap=50)
    with pytest.raises(MbnpError, match=r"labels of image 0 in truth must be whole numbers from 0 to 1, got \[2\]"):
        precision.average_precision(found, [Truth(box, np.array([2]))], 2)
    with pytest.raises(MbnpError, match="image 0 of truth has 1 boxes, 2 labels and 2 marks"):
        precision.average_precision(found, [Truth(box, np.array([0, 0]))], 2)
