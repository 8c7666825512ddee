"""scenes10: what it promises about its images, objects, boxes and masks."""

import time

import numpy as np
import pytest

from mbnp import datasets
from mbnp.datasets import Split, augment, scenes10
from mbnp.datasets.batching import GONE, augment_objects, crop_objects
from mbnp.errors import MbnpError


@pytest.fixture(scope="module")
def scenes():
    return scenes10.make(300, 100)


def extents(mask, number):
    rows, columns = np.nonzero(mask == number)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_a_data_set_with_boxes(scenes):
    train, test = scenes.train, scenes.test
    assert (train.images.shape, train.images.dtype) == ((300, 96, 96, 3), np.uint8)
    assert (train.labels.shape, train.labels.dtype) == ((300, 5), np.int64)
    assert (train.boxes.shape, train.boxes.dtype) == ((300, 5, 4), np.float32)
    assert (train.masks.shape, train.masks.dtype) == ((300, 96, 96), np.uint8)
    assert len(test) == 100
    assert scenes.classes == list(datasets.shapes10.SHAPES)
    assert str(scenes) == "scenes10, 300 training and 100 test images (drawn by mbnp, seed 0)"


def test_boxes_are_the_extents_of_the_masks(scenes):
    for split in (scenes.train, scenes.test):
        for labels, boxes, mask in zip(split.labels, split.boxes, split.masks, strict=True):
            count = np.count_nonzero(labels >= 0)
            assert 1 <= count <= 5
            assert (labels[:count] >= 0).all()  # those that are there come first
            np.testing.assert_array_equal(np.unique(mask), range(count + 1))
            np.testing.assert_array_equal(boxes[:count], [extents(mask, k + 1) for k in range(count)])
            assert not boxes[count:].any()


def test_counts_classes_and_sizes_are_balanced():
    labels, boxes = (getattr(scenes10.make(1000, 1).train, name) for name in ("labels", "boxes"))
    there = labels >= 0
    counts = np.bincount(there.sum(axis=1), minlength=6)
    assert counts[0] == 0
    assert abs(counts[1:] - 200).max() < 20  # a few objects are hidden by others, and dropped
    classes = np.bincount(labels[there])
    assert abs(classes - 300).max() < 12
    sides = (boxes[..., 2:] - boxes[..., :2])[there].max(axis=1)
    assert 5 < sides.min() < 15
    assert 40 < sides.max() < 54
    assert 15 < np.median(sides) < 30


def test_objects_overlap_and_almost_hidden_ones_are_dropped():
    """Some objects lie on others, and a hidden one leaves pixels that no mask has."""
    labels = np.array([[3, 4, 5, -1, -1]])
    seen = np.zeros((1, 10, 10), np.uint8)
    seen[0, 2:5, 1:4], seen[0, 6, 6], seen[0, 7:9, 2:9] = 1, 2, 3
    labels, masks, boxes = scenes10._measure(labels, seen, np.array([[9, 6, 60, 0, 0]]))
    assert labels.tolist() == [[3, 5, -1, -1, -1]]  # one of six pixels is less than a fifth, 14 of 60 are more
    assert boxes[0, :2].tolist() == [[1, 2, 4, 5], [2, 7, 9, 9]]
    assert masks[0, 6, 6] == 0
    np.testing.assert_array_equal(masks == 2, seen == 3)


def test_the_seed_decides_everything(scenes):
    again, other = scenes10.make(60, 20), scenes10.make(60, 20, seed=1)
    for name in ("images", "labels", "masks", "boxes"):
        np.testing.assert_array_equal(getattr(again.train, name), getattr(scenes.train, name)[:60])
        np.testing.assert_array_equal(getattr(again.test, name), getattr(scenes.test, name)[:20])
    assert (other.train.images != again.train.images).mean() > 0.9
    assert (again.test.images != again.train.images[:20]).mean() > 0.9


def test_the_same_scenes_on_every_machine(scenes):
    assert scenes.train.labels[:3].tolist() == [[8, 7, -1, -1, -1], [0, 5, 6, -1, -1], [4, 2, 9, 3, -1]]
    np.testing.assert_allclose(scenes.train.images[0].mean((0, 1)), [102.3, 158.8, 28.3], atol=0.5)


def test_masks_show_where_the_objects_are(scenes):
    """Colours inside and just outside of a mask differ by more than those of a mask that is moved."""
    gaps, moved = [], []
    for image, mask in zip(scenes.train.images / 255, scenes.train.masks > 0, strict=True):
        for found, shown in ((gaps, mask), (moved, np.roll(mask, 48, (0, 1)))):
            found.append(np.linalg.norm(image[shown].mean(0) - image[~shown].mean(0)))
    assert np.median(gaps) > 1.8 * np.median(moved)


def test_scenes_of_another_size_are_the_same_kind():
    drawn = scenes10.make(50, 1, size=64)
    assert drawn.train.images.shape == (50, 64, 64, 3)
    there = drawn.train.labels >= 0
    assert drawn.train.boxes[there].max() <= 64
    larger = scenes10.make(50, 1, size=192).train
    sides = [np.median((s.boxes[..., 2:] - s.boxes[..., :2])[s.labels >= 0]) for s in (drawn.train, larger)]
    assert 2.5 < sides[1] / sides[0] < 3.5


def test_load_draws_scenes_at_the_resolution(monkeypatch, scenes):
    asked = []
    monkeypatch.setattr("mbnp.datasets.scenes10.make", lambda size: asked.append(size) or scenes)
    assert datasets.load("scenes10") is scenes
    assert datasets.load("scenes10", resolution=64) is scenes
    assert asked == [96, 64]


def test_drawing_is_fast():
    """4,000 and 1,000 scenes in a few seconds: 1.5 ms each on an ordinary processor, and here ten times that."""
    scenes10.make(50, 1)
    began = time.process_time()
    scenes10.make(100, 50)
    assert time.process_time() - began < 150 * 0.015


def test_constants_are_measured():
    images = scenes10.make(1500, 1).train.images / np.float32(255)
    np.testing.assert_allclose(images.mean((0, 1, 2), dtype=np.float64), scenes10.MEAN, atol=0.006)
    np.testing.assert_allclose(images.std((0, 1, 2), dtype=np.float64), scenes10.STD, atol=0.006)


@pytest.mark.parametrize("numbers", [{"train": 0}, {"test": -1}, {"seed": -1}])
def test_bad_numbers_are_refused(numbers):
    with pytest.raises(MbnpError, match="scenes10 needs"):
        scenes10.make(**numbers)


@pytest.mark.parametrize("size", [0, 31, 513])
def test_bad_sizes_are_refused(size):
    with pytest.raises(MbnpError, match=f"32 to 512 pixels a side, got {size}"):
        scenes10.make(1, 1, size=size)


def test_a_split_checks_its_boxes(scenes):
    images, labels, boxes = scenes.train.images[:2], scenes.train.labels[:2], scenes.train.boxes[:2]
    for wrong in (boxes[:, :3], boxes[..., :3], boxes.astype(int)):
        with pytest.raises(MbnpError, match=r"labels \(N, M\) need boxes \(N, M, 4\) of floats"):
            Split(images, labels, boxes=wrong)
    with pytest.raises(MbnpError, match="need boxes"):
        Split(images, labels[:, 0], boxes=boxes[:, 0])
    for value in (np.nan, np.inf, -5):
        wrong = boxes.copy()
        wrong[1, 0, 2] = value
        with pytest.raises(MbnpError, match=r"box 0 of image 1 is \["):
            Split(images, labels, boxes=wrong)
    wrong = boxes.copy()
    wrong[labels < 0] = np.nan  # what is no object may be anything
    Split(images, labels, boxes=wrong)


def test_grey_scenes_keep_their_boxes(scenes):
    grey = datasets.dataset.grey(scenes)
    assert grey.train.images.shape == (300, 96, 96, 1)
    assert grey.train.boxes is scenes.train.boxes
    assert grey.test.masks is scenes.test.masks


def test_batches_have_labels_and_boxes(scenes):
    options = {"mean": scenes.mean, "std": scenes.std}
    for step, (x, (labels, boxes)) in enumerate(datasets.batches(scenes.test, 30, **options)):
        part = slice(30 * step, 30 * step + 30)
        np.testing.assert_array_equal(x, datasets.normalise(scenes.test.images[part], **options))
        np.testing.assert_array_equal(labels, scenes.test.labels[part])
        np.testing.assert_array_equal(boxes, scenes.test.boxes[part])
    assert step == 3
    rng = np.random.default_rng(0)
    x, (labels, boxes) = next(datasets.batches(scenes.train, 32, rng, **options, augment=augment))
    images, *expected = augment_objects(*chosen(scenes.train, 32), next_rng(scenes.train))
    np.testing.assert_array_equal(x, datasets.normalise(images, **options))
    np.testing.assert_array_equal(labels, expected[0])
    np.testing.assert_array_equal(boxes, expected[1])
    with pytest.raises(MbnpError, match="does not move boxes"):
        datasets.batches(scenes.train, 32, rng, **options, augment=lambda images, rng: images)


def next_rng(split):
    rng = np.random.default_rng(0)
    rng.permutation(len(split))
    return rng


def chosen(split, count):
    picked = np.random.default_rng(0).permutation(len(split))[:count]
    return split.images[picked], split.labels[picked], split.boxes[picked]


def squares(count=200, size=40):
    """White squares on black, and their boxes: where an image's boxes are can be seen in it."""
    rng = np.random.default_rng(0)
    images, boxes = np.zeros((count, size, size, 3), np.uint8), np.zeros((count, 1, 4), np.float32)
    for image, box in zip(images, boxes, strict=True):
        left, top = rng.integers(0, size - 12, 2)
        width, height = rng.integers(6, 13, 2)
        box[0] = left, top, left + width, top + height
        image[top : top + height, left : left + width] = 255
    return images, np.zeros((count, 1), np.int64), boxes


@pytest.mark.parametrize("change", [augment_objects, crop_objects])
def test_boxes_move_with_their_objects(change):
    images, labels, boxes = squares()
    before = images.copy(), labels.copy(), boxes.copy()
    moved, new_labels, new_boxes = change(images, labels, boxes, np.random.default_rng(1))
    for old, now in zip(before, (images, labels, boxes), strict=True):
        np.testing.assert_array_equal(old, now)
    gone = 0
    for image, label, box in zip(moved, new_labels[:, 0], new_boxes[:, 0], strict=True):
        bright = (image[..., 0] > 127).astype(int)
        if label < 0:
            gone += 1
            assert not box.any()
            continue
        assert np.abs(np.array(extents(bright, 1)) - box).max() <= (0 if change is augment_objects else 1)
    assert gone < 40
    assert (new_labels[new_labels >= 0] == 0).all()
    assert not np.array_equal(new_boxes, boxes)


def test_what_moves_in_shows_no_object():
    """Beyond the border there is one colour, the image's mean, and no second copy of an object."""
    images, labels, boxes = squares()
    moved, *_ = augment_objects(images, labels, boxes, np.random.default_rng(2), pad=10)
    for image, old in zip(moved, images, strict=True):
        assert (image[..., 0] > 127).sum() <= (old[..., 0] > 127).sum()


def test_objects_that_are_almost_gone_are_dropped():
    box = np.array([[[0, 10, 10, 20], [0, 30, 5, 40]]], np.float32)
    image, labels = np.zeros((1, 40, 40, 3), np.uint8), np.array([[3, 7]])
    seen = set()
    for seed in range(200):
        _, new, boxes = augment_objects(image, labels, box, np.random.default_rng(seed), pad=9)
        width = float(boxes[0, 0, 2] - boxes[0, 0, 0])
        assert new[0, 0] == (3 if width else -1)
        seen.add(width)
    assert min(seen - {0.0}) == 10 * GONE
    assert 0.0 in seen


def test_augmentations_of_objects_mirror_half(scenes):
    images, labels, boxes = (a[:100] for a in (scenes.train.images, scenes.train.labels, scenes.train.boxes))
    same, _, moved = augment_objects(images, labels, boxes, np.random.default_rng(0), pad=0)
    mirrored = np.array([not np.array_equal(a, b) for a, b in zip(same, images, strict=True)])
    assert 30 < mirrored.sum() < 70
    np.testing.assert_array_equal(same[mirrored], images[mirrored, :, ::-1])
    np.testing.assert_array_equal(moved[~mirrored], boxes[~mirrored])
    there = labels[mirrored] >= 0
    np.testing.assert_array_equal(moved[mirrored][there][:, [2, 0]], 96 - boxes[mirrored][there][:, [0, 2]])


def test_a_move_is_smaller_than_the_image():
    with pytest.raises(MbnpError, match="cannot move images of 40x40 by 40 pixels"):
        augment_objects(*squares(2), np.random.default_rng(0), pad=40)
