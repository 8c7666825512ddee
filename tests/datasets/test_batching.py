"""Normalising, augmenting and batching, against the slow and obvious way."""

import numpy as np
import pytest

from mbnp.datasets import AUGMENTATIONS, Split, augment, batches, cifar10, count_batches, normalise, resized_crop
from mbnp.errors import MbnpError
from mbnp.recipe import Recipe

CONSTANTS = {"mean": cifar10.MEAN, "std": cifar10.STD}


def noise(n, h=32, w=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, 3), dtype=np.uint8)


def numbered(n):
    """Images that can be told apart by every pixel, labelled with their number."""
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 8, 8, 3))
    return Split(np.ascontiguousarray(images), np.arange(n))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-14)])
def test_normalise_is_the_formula(dtype, tolerance):
    images = noise(3, 5, 7)
    x = normalise(images, **CONSTANTS, dtype=dtype)
    expected = (images / 255 - np.array(cifar10.MEAN)) / np.array(cifar10.STD)
    assert x.dtype == dtype
    np.testing.assert_allclose(x, expected, rtol=0, atol=tolerance * abs(expected).max())


@pytest.mark.parametrize("wrong", [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)])
def test_only_stored_images_are_normalised_or_augmented(wrong):
    with pytest.raises(MbnpError, match="uint8"):
        normalise(wrong, **CONSTANTS)
    with pytest.raises(MbnpError, match="uint8"):
        augment(wrong, np.random.default_rng(0))


def test_constants_must_match_the_channels():
    with pytest.raises(MbnpError, match="each of 3 channels"):
        normalise(noise(1), mean=(0.5,), std=(0.2,))


def augment_slowly(images, rng, pad):
    n, h, w, _ = images.shape
    top, left = rng.integers(0, 2 * pad + 1, (2, n))
    mirrored = rng.random(n) < 0.5
    moved = np.empty_like(images)
    for i in range(n):
        for y in range(h):
            for x in range(w):
                column = w - 1 - x if mirrored[i] else x
                row, column = y + top[i] - pad, column + left[i] - pad
                row = h - 1 - abs(h - 1 - abs(row))  # the border itself is not repeated
                column = w - 1 - abs(w - 1 - abs(column))
                moved[i, y, x] = images[i, row, column]
    return moved


@pytest.mark.parametrize(("h", "w", "pad"), [(32, 32, 4), (5, 9, 4), (7, 6, 1), (4, 4, 0)])
def test_augment_is_the_slow_way(h, w, pad):
    images = noise(20, h, w)
    before = images.copy()
    moved = augment(images, np.random.default_rng(7), pad)
    np.testing.assert_array_equal(moved, augment_slowly(images, np.random.default_rng(7), pad))
    assert moved.dtype == np.uint8
    np.testing.assert_array_equal(images, before)


def test_augment_uses_every_shift_and_mirrors_half():
    # One bright pixel tells where the middle of an image went.
    images = np.zeros((3000, 33, 33, 3), np.uint8)
    images[:, 16, 16] = 255
    moved = augment(images, np.random.default_rng(0))[..., 0]
    places, counts = np.unique(np.argwhere(moved)[:, 1:] - 16, axis=0, return_counts=True)
    assert len(places) == 81
    assert abs(places).max() == 4
    assert counts.max() < 3 * counts.min()

    leaning = np.zeros((3000, 32, 32, 3), np.uint8)
    leaning[:, :, :16] = 1
    left_dark = augment(leaning, np.random.default_rng(0))[:, 0, 0, 0] == 0
    assert 0.46 < left_dark.mean() < 0.54


def test_augment_refuses_to_reflect_more_than_there_is():
    with pytest.raises(MbnpError, match="cannot reflect 4 pixels"):
        augment(noise(1, 4, 32), np.random.default_rng(0), pad=4)


def numbers(iterator):
    return [list(y) for _, y in iterator]


def test_training_shuffles_and_leaves_out_the_partial_batch():
    first = numbers(batches(numbered(23), 5, np.random.default_rng(0), **CONSTANTS))
    assert [len(batch) for batch in first] == [5, 5, 5, 5]
    seen = [y for batch in first for y in batch]
    assert len(set(seen)) == 20
    assert seen != sorted(seen)
    assert first == numbers(batches(numbered(23), 5, np.random.default_rng(0), **CONSTANTS))
    assert first != numbers(batches(numbered(23), 5, np.random.default_rng(1), **CONSTANTS))


def test_a_lone_last_image_is_left_out_in_training():
    assert [len(y) for y in numbers(batches(numbered(11), 5, np.random.default_rng(0), **CONSTANTS))] == [
        5,
        5,
    ]


def test_evaluation_keeps_every_image_in_order():
    assert numbers(batches(numbered(7), 3, **CONSTANTS)) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16])
def test_counted_as_made(count):
    assert count_batches(count, 8, train=False) == len(list(batches(numbered(count), 8, **CONSTANTS)))
    if count >= 8:
        made = list(batches(numbered(count), 8, np.random.default_rng(0), **CONSTANTS))
        assert count_batches(count, 8, train=True) == len(made)


def test_images_stay_with_their_labels_and_are_normalised():
    for x, y in batches(numbered(20), 4, np.random.default_rng(0), mean=(0, 0, 0), std=(1, 1, 1), augment=augment):
        np.testing.assert_allclose(x, np.broadcast_to(y[:, None, None, None] / 255, x.shape), rtol=1e-6)
        assert x.dtype == np.float32


def test_augmentation_sees_every_training_batch():
    def black(images, rng):
        assert isinstance(rng, np.random.Generator)
        return np.zeros_like(images)

    rng = np.random.default_rng(0)
    options = {"mean": (0, 0, 0), "std": (1, 1, 1), "augment": black, "dtype": np.float64}
    for x, _ in batches(numbered(20), 4, rng, **options):
        assert x.dtype == np.float64
        assert not x.any()


def test_errors_come_at_the_call():
    rng = np.random.default_rng(0)
    with pytest.raises(MbnpError, match="batch size must be at least 1, got 0"):
        batches(numbered(5), 0, **CONSTANTS)
    with pytest.raises(MbnpError, match="5 images do not fill one batch of 6"):
        batches(numbered(5), 6, rng, **CONSTANTS)
    with pytest.raises(MbnpError, match="pass an rng"):
        batches(numbered(5), 2, augment=augment, **CONSTANTS)


@pytest.mark.parametrize(("size", "pad"), [(32, 4), (64, 8), (8, 1), (7, 0)])
def test_the_shift_is_an_eighth_of_the_size(size, pad):
    images = noise(12, size, size)
    moved = augment(images, np.random.default_rng(1))
    np.testing.assert_array_equal(moved, augment(images, np.random.default_rng(1), pad))


@pytest.mark.parametrize("c", [1, 3])
def test_a_resized_crop_is_a_part_of_the_image(c):
    """On a slope the value tells the place: each crop is a slope, of its part, and some are mirrored."""
    slope = np.broadcast_to(np.arange(0, 256, 4, dtype=np.uint8)[None, None, :, None], (400, 64, 64, c))
    images = np.ascontiguousarray(slope)
    crops = resized_crop(images, np.random.default_rng(0))
    assert crops.shape == images.shape
    assert crops.dtype == np.uint8
    np.testing.assert_array_equal(images, slope)
    first, last = crops[:, 32, 1, 0].astype(int), crops[:, 32, -2, 0].astype(int)
    assert 0.4 < np.mean(first > last) < 0.6
    width = abs(last - first) / 4 / 62  # the share of the whole image
    assert width.min() < 0.35
    assert 0.9 < width.max() <= 1.02
    assert (np.diff(crops.astype(int), axis=1) == 0).all(), "nothing of a horizontal slope is turned"
    again = resized_crop(images, np.random.default_rng(0))
    np.testing.assert_array_equal(crops, again)


def test_each_augmentation_has_its_name():
    assert {"shift": augment, "crop": resized_crop} == AUGMENTATIONS
    for value, expected in ((True, augment), ("shift", augment), ("crop", resized_crop), (False, None)):
        assert Recipe(augment=value).augmentation() is expected
    with pytest.raises(MbnpError, match="unknown augmentation 'crops': did you mean 'crop'"):
        Recipe(augment="crops")
