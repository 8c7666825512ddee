"""The exercises of lesson 11: class activation maps, intersection over union, dead channels."""

import numpy as np

from mbnp.grading.exercise import Case, Exercise, Mistake
from mbnp.ops import pointwise, relu

# --- class_activation_map ---


def _contribution(features, w, classes):
    """Return what each cell adds to the logit of its image's class: a pointwise convolution."""
    return np.stack([pointwise.forward(f[None], w)[0, :, :, k] for f, k in zip(features, classes, strict=True)])


def _scaled(positive, axis=(1, 2)):
    top = positive.max(axis=axis, keepdims=True)
    return positive / np.where(top > 0, top, 1).astype(positive.dtype)


def _quotient(above, below):
    """Return above / below, NaN for 0/0 without a warning."""
    with np.errstate(invalid="ignore"):
        return above / below


def _cam(features, w, classes):
    return _scaled(relu.forward(_contribution(features, w, classes)))


def _by_largest(maps):
    """Divide by the largest value, whatever its sign is."""
    top = maps.max(axis=(1, 2), keepdims=True)
    return maps / np.where(top != 0, top, 1).astype(maps.dtype)


def _cam_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases = []
    for shape, K in (((3, 4, 4, 5), 5), ((3, 2, 3, 4), 3), ((2, 3, 2, 3), 4)):
        features = np.maximum(rng.standard_normal(shape), 0).astype(np.float32)
        w = rng.standard_normal((shape[-1], K)).astype(np.float32)
        classes = rng.integers(1, K, shape[0])
        cases.append({"features": features, "w": w, "classes": classes})
    w[:, 0], classes[0] = -np.abs(w[:, 0]), 0  # no contribution to the last case's first image is positive
    return cases


def _of_each(features, w, classes):
    N, H, W, _ = features.shape
    maps = np.zeros((N, H, W), features.dtype)
    for n in range(N):
        contribution = features[n] @ w[:, classes[n]]
        positive = np.maximum(contribution, 0)
        top = positive.max()
        maps[n] = positive / top if top > 0 else positive
    return maps


CAM_MISTAKES = [
    Mistake(
        "one class for all: every image gets the map of class 0. classes has one for each: w[:, classes]",
        lambda features, w, classes: _cam(features, w, np.zeros_like(classes)),
    ),
    Mistake(
        "the scale: each map is divided by its sum. The largest value should be 1: divide by its maximum",
        lambda features, w, classes: _quotient(
            (positive := relu.forward(_contribution(features, w, classes))),
            np.where(positive.sum((1, 2), keepdims=True) > 0, positive.sum((1, 2), keepdims=True), 1),
        ).astype(features.dtype),
    ),
    Mistake(
        "averaged: the features are averaged over the map, and all cells get the same number. Weigh each by itself",
        lambda features, w, classes: _cam(
            np.broadcast_to(features.mean((1, 2), keepdims=True), features.shape).copy(), w, classes
        ),
    ),
    Mistake(
        "ReLU comes after scaling: the map is divided by its largest value first, which may be negative",
        lambda features, w, classes: relu.forward(_by_largest(_contribution(features, w, classes))),
    ),
    Mistake(
        "absolute values: a negative contribution speaks against the class. It becomes 0",
        lambda features, w, classes: _scaled(np.abs(_contribution(features, w, classes))),
    ),
    Mistake(
        "ReLU is missing: negative contributions have to become 0",
        lambda features, w, classes: _scaled(_contribution(features, w, classes)),
    ),
    Mistake(
        "the scale is missing: divide each map by its largest value",
        lambda features, w, classes: relu.forward(_contribution(features, w, classes)),
    ),
    Mistake(
        "the scale: one maximum for all images. Each map is divided by its own: max over axes 1 and 2, keepdims=True",
        lambda features, w, classes: _scaled(relu.forward(_contribution(features, w, classes)), axis=(0, 1, 2)),
    ),
    Mistake(
        "division by zero: a map without a positive value has the maximum 0, and 0/0 is NaN. Divide by 1 there",
        lambda features, w, classes: _quotient(
            relu.forward(_contribution(features, w, classes)),
            relu.forward(_contribution(features, w, classes)).max(axis=(1, 2), keepdims=True),
        ),
    ),
    Mistake(
        "the smallest value is subtracted before scaling. What is negative becomes 0, the rest keeps its zero",
        lambda features, w, classes: _scaled(
            _contribution(features, w, classes) - _contribution(features, w, classes).min(axis=(1, 2), keepdims=True)
        ),
    ),
    Mistake(
        "ReLU comes too early: negative contributions are dropped one by one. Their sum with the others counts",
        lambda features, w, classes: _scaled(_contribution(features, np.maximum(w, 0), classes)),
    ),
    Mistake(
        "the weights are not used: that is the sum of all channels, the same for every class",
        lambda features, w, classes: _scaled(features.sum(axis=3)),
    ),
    Mistake(
        "wrong axis: w[classes] takes rows, which are channels. w is (C, K), the class comes second: w[:, classes]",
        lambda features, w, classes: _scaled(
            np.maximum(np.einsum("nijc,nc->nij", features, w[classes]), 0),
        ),
    ),
    Mistake(
        "one class for all: every image gets the map of the first image's class. classes has one for each",
        lambda features, w, classes: _cam(features, w, np.full_like(classes, classes[0])),
    ),
    Mistake(
        "rows and columns of the map are swapped",
        lambda features, w, classes: _cam(features, w, classes).swapaxes(1, 2),
    ),
]

# --- intersection_over_union ---


def _iou(found, truth):
    both, either = (found & truth).sum(axis=(1, 2)), (found | truth).sum(axis=(1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def _iou_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    found, truth = rng.random((3, 4, 5)) < 0.5, rng.random((3, 4, 5)) < 0.4
    empty = np.zeros((2, 3, 3), bool)
    half = empty.copy()
    half[0, :2] = True
    return [
        {"found": found, "truth": truth},
        {"found": half, "truth": empty},
        {"found": empty, "truth": half},
        {"found": rng.random((2, 6, 3)) < 0.7, "truth": rng.random((2, 6, 3)) < 0.3},
    ]


def _ratio(above, below):
    return np.where(below > 0, above / np.maximum(below, 1), 1.0)


def _overlap(found, truth):
    N = len(found)
    result = np.ones(N)
    for n in range(N):
        both = (found[n] & truth[n]).sum()
        either = (found[n] | truth[n]).sum()
        if either > 0:
            result[n] = both / either
    return result


IOU_MISTAKES = [
    Mistake(
        "the union is taken as exclusive or (^), the pixels in one of the masks and not in both. found | truth is the "
        "union",
        lambda found, truth: _ratio((found & truth).sum((1, 2)), (found ^ truth).sum((1, 2))),
    ),
    Mistake(
        "the denominator is the mask that was found alone. Then one right pixel would be a perfect answer: divide by "
        "the union",
        lambda found, truth: _ratio((found & truth).sum((1, 2)), found.sum((1, 2))),
    ),
    Mistake(
        "the union counts what lies in both twice: that is |found| + |truth|. found | truth counts every pixel once",
        lambda found, truth: _ratio((found & truth).sum((1, 2)), found.sum((1, 2)) + truth.sum((1, 2))),
    ),
    Mistake(
        "that is the Dice coefficient, 2·both / (|found| + |truth|). Here it is both / either",
        lambda found, truth: _ratio(2 * (found & truth).sum((1, 2)), found.sum((1, 2)) + truth.sum((1, 2))),
    ),
    Mistake(
        "the denominator is the true mask alone. Then the whole image would be a perfect answer: divide by the union",
        lambda found, truth: _ratio((found & truth).sum((1, 2)), truth.sum((1, 2))),
    ),
    Mistake(
        "the denominator is the whole image: that measures only how large the masks are",
        lambda found, truth: (found & truth).mean((1, 2)),
    ),
    Mistake(
        "that is the fraction of pixels on which the masks agree; empty corners, which are easy, count as much "
        "as the object",
        lambda found, truth: (found == truth).mean((1, 2)),
    ),
    Mistake(
        "all images in one number: sum over axes 1 and 2 only, so that each image keeps its own",
        lambda found, truth: (found & truth).sum() / (found | truth).sum(),
    ),
    Mistake(
        "integer division: // rounds every quotient below 1 down to 0. Use /",
        lambda found, truth: np.where(
            (found | truth).sum((1, 2)) > 0,
            (found & truth).sum((1, 2)) // np.maximum((found | truth).sum((1, 2)), 1),
            1.0,
        ),
    ),
    Mistake(
        "two empty masks: 0/0 is NaN. They agree: 1",
        lambda found, truth: _quotient((found & truth).sum((1, 2)), (found | truth).sum((1, 2))),
    ),
    Mistake(
        "two empty masks agree, which is 1 and not 0",
        lambda found, truth: (found & truth).sum((1, 2)) / np.maximum((found | truth).sum((1, 2)), 1),
    ),
]

# --- dead_channels ---


def _dead(a):
    return ~(a > 0).any(axis=(0, 1, 2))


def _dead_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases = []
    for shape, dead, rare in (
        ((3, 4, 5, 6), (1, 4), (2, 5)),
        ((2, 3, 3, 3), (), (0,)),
        ((4, 2, 2, 5), (0,), (3,)),
    ):
        a = np.maximum(rng.standard_normal(shape), 0).astype(np.float32)
        a[..., [*dead, *rare]] = 0
        for image, c in enumerate(rare, start=-1):
            a[image, 1, 0, c] = 1e-6  # one small value: not dead
        cases.append({"a": a})
    constant = np.zeros((2, 3, 2, 4), np.float32)
    constant[..., 1] = 0.5  # the same everywhere, and not dead
    constant[..., 2] = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    alive = np.full((2, 2, 3, 1), 0.25, np.float32)
    elsewhere = np.ones((2, 2, 2, 3), np.float32)
    elsewhere[0, ..., 1] = elsewhere[..., 2] = 0  # zero in one image, and in both
    return [*cases, {"a": constant}, {"a": alive}, {"a": 0 * alive}, {"a": elsewhere}]


def _all_zero(a):
    return (a <= 0).all(axis=(0, 1, 2))


DEAD_MISTAKES = [
    Mistake(
        "constant for dead: a channel without any variation is not dead unless it is zero. Look whether all are 0",
        lambda a: a.max((0, 1, 2)) == a.min((0, 1, 2)),
    ),
    Mistake(
        "any for all: a channel with one zero is not dead. All of its pixels have to be zero",
        lambda a: (a == 0).any(axis=(0, 1, 2)),
    ),
    Mistake(
        "reversed: that is true for the channels that are not dead",
        lambda a: (a > 0).any(axis=(0, 1, 2)),
    ),
    Mistake(
        "wrong axis: channels are the last axis of a; look over axes 0, 1 and 2",
        lambda a: ~(a > 0).any(axis=(0, 2, 3)),
    ),
    Mistake(
        "only the first image is used",
        lambda a: ~(a[0] > 0).any(axis=(0, 1)),
    ),
    Mistake(
        "one image is enough here: a channel that is zero in one of them is not dead if it is not in another. All have "
        "to be zero",
        lambda a: (~(a > 0).any(axis=(1, 2))).any(axis=0),
    ),
    Mistake(
        "channels with few or small values are called dead. One pixel above zero is enough not to be",
        lambda a: a.mean(axis=(0, 1, 2)) < 1e-3,
    ),
    Mistake(
        "one answer for each image: a channel is dead if it is zero in *every* image, so axis 0 goes, too",
        lambda a: ~(a > 0).any(axis=(1, 2)),
    ),
    Mistake(
        "the channels' numbers are returned (np.flatnonzero); it should be a bool for each channel",
        lambda a: np.flatnonzero(_dead(a)),
    ),
    Mistake(
        "it returns the number of dead channels; it should be a bool for each channel",
        lambda a: int(_dead(a).sum()),
    ),
]

EXERCISES = [
    Exercise("class_activation_map", _cam_cases, _cam, CAM_MISTAKES, solutions=(_of_each,)),
    Exercise("intersection_over_union", _iou_cases, _iou, IOU_MISTAKES, solutions=(_overlap,)),
    Exercise("dead_channels", _dead_cases, _dead, DEAD_MISTAKES, solutions=(_all_zero,)),
]
