"""shapes10: what it promises about its images, and how hard it is."""

import hashlib

import numpy as np
import pytest
import scipy.linalg

from mbnp.datasets import shapes10
from mbnp.errors import MbnpError


@pytest.fixture(scope="module")
def whole():
    return shapes10.make()


def test_a_data_set_in_the_usual_form(whole):
    assert whole.train.images.shape == (10_000, 32, 32, 3)
    assert whole.test.images.shape == (2_000, 32, 32, 3)
    assert whole.train.images.dtype == np.uint8
    assert whole.train.labels.dtype == np.int64
    assert whole.train.masks.shape == (10_000, 32, 32)
    assert whole.train.masks.dtype == bool
    assert len(whole.classes) == 10
    assert str(whole) == "shapes10, 10,000 training and 2,000 test images (drawn by mbnp, seed 0)"


def test_balanced_as_a_whole_and_in_every_ten(whole):
    for split in (whole.train, whole.test):
        tens = np.sort(split.labels.reshape(-1, 10))
        np.testing.assert_array_equal(tens, np.broadcast_to(np.arange(10), tens.shape))


def test_the_seed_decides_everything(drawn):
    again = shapes10.make(400, 100)
    other = shapes10.make(400, 100, seed=1)
    for name in ("images", "labels", "masks"):
        np.testing.assert_array_equal(getattr(again.train, name), getattr(drawn.train, name))
        np.testing.assert_array_equal(getattr(again.test, name), getattr(drawn.test, name))
    assert (other.train.images != drawn.train.images).mean() > 0.9
    assert (drawn.test.images != drawn.train.images[:100]).mean() > 0.9


def test_an_image_does_not_depend_on_how_many_there_are(drawn):
    for count in (1, 10, shapes10.BLOCK + 1):
        few = shapes10.make(count, 1).train
        assert len(few) == count
        np.testing.assert_array_equal(few.images, drawn.train.images[:count])
        np.testing.assert_array_equal(few.masks, drawn.train.masks[:count])


def test_the_same_images_on_every_machine(drawn):
    """Random numbers are NumPy's and the same everywhere; only rounding may differ, by single levels."""
    assert drawn.train.labels[:10].tolist() == [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]
    np.testing.assert_allclose(drawn.train.images[0].mean((0, 1)), [112.8, 120.0, 121.9], atol=0.5)
    assert abs(int(drawn.train.masks[:10].sum()) - 2239) <= 5


def test_not_a_bit_has_changed(whole):
    """The images are those of the first release: here to the last bit, on another processor up to single levels."""
    digest = hashlib.sha256()
    for split in (whole.train, whole.test):
        for array in (split.images, split.labels, split.masks):
            digest.update(array.tobytes())
    sums = whole.train.images[:10].sum((1, 2, 3), dtype=np.int64)
    known = [363162, 448308, 314005, 305310, 361099, 290565, 294716, 267750, 232038, 428578]
    same = digest.hexdigest() == "892c5a8a1a18200aa572fcb0a70ae4cf97a8713d6c783be55b889dcee969775b"
    assert same or 0 < abs(sums - known).max() < 10


def test_constants_are_measured(whole):
    for c in range(3):
        counts = np.bincount(whole.train.images[..., c].ravel(), minlength=256) / (10_000 * 32 * 32)
        values = np.arange(256) / 255
        mean = counts @ values
        assert mean == pytest.approx(whole.mean[c], abs=2e-4)
        assert np.sqrt(counts @ (values - mean) ** 2) == pytest.approx(whole.std[c], abs=2e-4)


def test_no_two_images_are_alike(whole):
    images = np.concatenate([whole.train.images, whole.test.images])
    assert len({image.tobytes() for image in images}) == len(images)


@pytest.mark.parametrize("name", shapes10.SHAPES)
def test_distances_are_distances(name):
    """Negative inside, and at the edge as steep as a distance, on which the smooth edges rest."""
    axis = np.linspace(-1.5, 1.5, 601, dtype=np.float32)
    v, u = np.meshgrid(axis, axis, indexing="ij")
    d = shapes10.SHAPES[name](u, v)
    assert d.dtype == np.float32
    assert 0.7 < (d < 0).sum() * 0.005**2 < 2.5  # its area
    assert d[:, [0, -1]].min() > 0
    assert d[[0, -1]].min() > 0
    slope = np.hypot(*np.gradient(d, 0.005))
    # All along the edge, corners and the insides of bends apart.
    assert np.mean(abs(slope[abs(d) < 0.02] - 1) < 0.01) > 0.97


def test_masks_show_where_the_object_is(drawn):
    """Colours inside and outside differ, and by more than they do for masks that are moved elsewhere."""
    split = drawn.train
    share = split.masks.mean((1, 2))
    assert share.min() > 0.02
    assert share.max() < 0.6
    images = split.images / 255
    inside = np.array([image[mask].mean(0) for image, mask in zip(images, split.masks, strict=True)])
    outside = np.array([image[~mask].mean(0) for image, mask in zip(images, split.masks, strict=True)])
    shifted = np.array(
        [image[mask].mean(0) for image, mask in zip(images, np.roll(split.masks, 16, (1, 2)), strict=True)]
    )
    gap = np.linalg.norm(inside - outside, axis=1)
    assert np.median(gap) > 0.25
    assert np.median(gap) > 1.5 * np.median(np.linalg.norm(shifted - outside, axis=1))


def test_a_linear_classifier_stays_below_45_percent(whole):
    """Ridge regression on the pixels, in closed form, at its best of several strengths."""
    x, z = (split.images.reshape(len(split), -1) / np.float32(255) for split in (whole.train, whole.test))
    middle = x.mean(0)
    x, z = x - middle, z - middle
    targets = np.eye(10, dtype=np.float32)[whole.train.labels]
    products, answers = x.T @ x, x.T @ targets
    accuracies = []
    for strength in (1_000, 3_000):
        ridge = products + strength * np.eye(len(products), dtype=np.float32)
        weights = scipy.linalg.solve(ridge, answers, assume_a="pos")
        accuracies.append(((z @ weights).argmax(1) == whole.test.labels).mean())
    assert 0.15 < max(accuracies) < 0.45, accuracies


@pytest.mark.parametrize("numbers", [{"train": 0}, {"test": -1}, {"seed": -1}])
def test_bad_numbers_are_refused(numbers):
    with pytest.raises(MbnpError, match="shapes10 needs"):
        shapes10.make(**numbers)
