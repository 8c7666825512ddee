"""The exercises of lesson 8: the MACs of a scaled network, and the networks on the Pareto front."""

import itertools

import numpy as np

from mbnp import cost, models
from mbnp.grading.exercise import Case, Exercise, Mistake
from mbnp.models.article import BLOCKS, STEM

# --- scaled_macs: of the article's network ---

SIZES = [
    {"width": width, "resolution": resolution}
    for width, resolution in ((1.0, 32), (0.5, 32), (1.0, 20), (0.3, 32), (0.7, 27), (0.25, 45))
]


def _scaled_macs(width, resolution):
    return cost.of(models.mobilenet_v1_small(width_mult=width), (resolution, resolution, 3)).macs


def _halved(size, stride):
    return (size - 1) // stride + 1


def _count(width, resolution, scale=lambda c, width: int(c * width), shrink=_halved, c_in=3, article=False, **without):
    """Count with one thing changed; without: stem, depthwise, pointwise or classifier = 0 leaves it out."""
    size = resolution
    channels = scale(STEM, width)
    total = without.get("stem", 1) * size * size * 9 * c_in * channels
    for c_out, stride in BLOCKS:
        before, size = size, shrink(size, stride)
        pixels = before * before if article else size * size
        c_out = scale(c_out, width)
        kernels = c_out if without.get("swapped") else channels
        total += without.get("depthwise", 1) * pixels * 9 * kernels
        total += without.get("pointwise", 1) * (size * size) * channels * c_out
        channels = channels if without.get("kept") else c_out
    return total + without.get("classifier", 1) * channels * 10


def _by_hand(width, resolution):
    size, channels = resolution, int(STEM * width)
    macs = size * size * 9 * 3 * channels
    for c_out, stride in BLOCKS:
        c_out = int(c_out * width)
        read = size * size  # noqa: F841 (it is there to be taken by mistake)
        size = (size - 1) // stride + 1
        pixels = size * size
        macs += pixels * 9 * channels
        macs += pixels * channels * c_out
        channels = c_out
    return macs + channels * 10


def _unscaled(width, resolution, stem=False, last=False):
    """Count with the first convolution's channels, or those that the classifier reads, as at width 1."""
    right = _count(width, resolution)
    if last:
        return right + 10 * (BLOCKS[-1][0] - int(BLOCKS[-1][0] * width))
    size, more = _halved(resolution, BLOCKS[0][1]), STEM - int(STEM * width)
    c_out = int(BLOCKS[0][0] * width)
    return right + more * (27 * resolution * resolution + size * size * (9 + c_out))


def _before_its_stride(width, resolution):
    """Count each block at the size that it reads, both of its convolutions."""
    size, channels = resolution, int(STEM * width)
    macs = size * size * 27 * channels
    for c_out, stride in BLOCKS:
        macs += size * size * channels * (9 + int(c_out * width))
        size, channels = _halved(size, stride), int(c_out * width)
    return macs + channels * 10


MACS_MISTAKES = [
    Mistake(
        "resolution and width: the full network's MACs times width**2 and (resolution / 32)**2 are only near. The "
        "first layer, the depthwise ones and the classifier shrink with width alone, and sizes are rounded",
        lambda width, resolution: int(_count(1, 32) * width**2 * (resolution / 32) ** 2),
    ),
    Mistake(
        "stride: a block's convolutions are counted at the size before its stride. MACs count the pixels that are "
        "written, so the size shrinks first",
        _before_its_stride,
    ),
    Mistake(
        "channels: each block takes the output channels of the previous one",
        lambda width, resolution: _count(width, resolution, kept=True),
    ),
    Mistake(
        "width: the first convolution's channels are not scaled. They are int(STEM * width), also where the first "
        "block reads them",
        lambda width, resolution: _unscaled(width, resolution),
    ),
    Mistake(
        "width: the linear layer is counted with all channels. It reads those of the last block, scaled: "
        "int(c * width)",
        lambda width, resolution: _unscaled(width, resolution, last=True),
    ),
    Mistake(
        "rounding: the channels are int(c * width), rounded down; round(19.2) and round(9.6) are not the same thing",
        lambda width, resolution: _count(width, resolution, lambda c, width: round(c * width)),
    ),
    Mistake(
        "output size: with padding 1 and a 3x3 kernel, stride 2 leaves (size - 1) // 2 + 1 rows; size // 2 loses one "
        "of an odd feature map",
        lambda width, resolution: _count(width, resolution, shrink=lambda size, stride: size // stride),
    ),
    Mistake(
        "output size: a feature map has whole rows; use // instead of /",
        lambda width, resolution: _count(width, resolution, shrink=lambda size, stride: size / stride),
    ),
    Mistake(
        "output size: MACs are counted at the height and width of a layer's output. The depthwise convolution at "
        "stride 2 was counted at those of its input, four times too many",
        lambda width, resolution: _count(width, resolution, article=True),
    ),
    Mistake(
        "stride: the feature maps never shrink; each stride of 2 halves their height and width for all later layers",
        lambda width, resolution: _count(width, resolution, shrink=lambda size, stride: size),
    ),
    Mistake(
        "width: the images still have 3 channels; the width multiplier scales only the channels of the "
        "network's own feature maps",
        lambda width, resolution: _count(width, resolution, c_in=int(3 * width)),
    ),
    Mistake(
        "width: it was applied to the MACs of the full network. Most of them are in pointwise convolutions, whose "
        "channels shrink on both sides: scale the channels, then count",
        lambda width, resolution: int(width * _count(1.0, resolution)),
    ),
    Mistake(
        "width: width**2 is only nearly right: the first layer, the depthwise ones and the classifier shrink with "
        "width alone. Scale the channels, then count",
        lambda width, resolution: int(width**2 * _count(1.0, resolution)),
    ),
    Mistake(
        "resolution: (resolution / 32)**2 is only nearly right, because the classifier does not shrink and "
        "feature maps have whole rows. Follow the size from layer to layer",
        lambda width, resolution: int((resolution / 32) ** 2 * _count(width, 32)),
    ),
    Mistake(
        "depthwise: it has one kernel for each input channel of the block; the output channels were taken",
        lambda width, resolution: _count(width, resolution, swapped=True),
    ),
    Mistake(
        "the first convolution is missing: 9 taps, 3 channels in",
        lambda width, resolution: _count(width, resolution, stem=0),
    ),
    Mistake(
        "the classifier is missing: its 10 outputs each take one MAC per channel",
        lambda width, resolution: _count(width, resolution, classifier=0),
    ),
    Mistake(
        "the depthwise convolutions are missing: 9 MACs per pixel and channel",
        lambda width, resolution: _count(width, resolution, depthwise=0),
    ),
    Mistake(
        "FLOPs for MACs: a multiplication and the addition after it are one MAC and two FLOPs",
        lambda width, resolution: 2 * _count(width, resolution),
    ),
]

# --- pareto_front ---


def _front(macs, accuracy):
    """Return whether no other point is at least as good in both and better in one."""
    return _undominated(macs, accuracy, lambda m, a, m0, a0: (m <= m0) & (a >= a0) & ((m < m0) | (a > a0)))


def _undominated(macs, accuracy, dominates):
    return np.array([not dominates(macs, accuracy, m, a).any() for m, a in zip(macs, accuracy, strict=True)], bool)


def _running(macs, accuracy, better, order=None, restore=True):
    """Go by increasing cost: a point stays if it is `better` than the best so far."""
    order = np.argsort(macs, kind="stable") if order is None else order
    kept = np.zeros(len(macs), bool)
    best = -np.inf
    for position, i in enumerate(order):
        if better(accuracy[i], best):
            kept[i if restore else position] = True
            best = accuracy[i]
    return kept


def _neighbours(macs, accuracy):
    order = np.argsort(macs, kind="stable")
    kept = np.ones(len(macs), bool)
    for i, j in itertools.pairwise(order):
        kept[j] = accuracy[j] > accuracy[i]
    return kept


def _front_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases = [
        {"macs": np.array([4, 1, 2, 3]), "accuracy": np.array([70.0, 50.0, 65.0, 60.0])},
        # The same cost twice, the same accuracy twice, the same point twice.
        {
            "macs": np.array([2, 1, 2, 3, 3, 5, 2]),
            "accuracy": np.array([60.0, 55.0, 64.0, 70.0, 70.0, 70.0, 61.0]),
        },
    ]
    cases.append(  # one point that is better than all others in both; costs in no order
        {"macs": np.array([7, 3, 9, 2, 5]), "accuracy": np.array([60.0, 71.0, 66.0, 75.0, 73.0])}
    )
    # The cheapest has neither the best accuracy nor the best accuracy for its cost.
    cases.append({"macs": np.array([10, 2, 5, 4]), "accuracy": np.array([60.0, 5.0, 50.0, 30.0])})
    for count in (8, 16):
        macs = rng.integers(1, 40, count)
        accuracy = np.round(40 + 8 * np.log(macs) + 4 * rng.standard_normal(count), 1)
        cases.append({"macs": macs, "accuracy": accuracy})
    return cases


def _not_dominated(macs, accuracy):
    front = np.ones(len(macs), bool)
    for i in range(len(macs)):
        for j in range(len(macs)):
            no_worse = macs[j] <= macs[i] and accuracy[j] >= accuracy[i]
            better = macs[j] < macs[i] or accuracy[j] > accuracy[i]
            if no_worse and better:
                front[i] = False
    return front


def _dominates_one(macs, accuracy):
    no_worse = (macs[:, None] <= macs) & (accuracy[:, None] >= accuracy)
    return (no_worse & ((macs[:, None] < macs) | (accuracy[:, None] > accuracy))).any(axis=1)


FRONT_MISTAKES = [
    Mistake(
        "ties: a point that is exactly like another is taken off the front. Equal points do not dominate each other: "
        "one has to be strictly better in cost or accuracy",
        lambda macs, accuracy: np.array(
            [
                not any(i != j and macs[j] <= macs[i] and accuracy[j] >= accuracy[i] for j in range(len(macs)))
                for i in range(len(macs))
            ]
        ),
    ),
    Mistake(
        "or for and: a point falls if another is cheaper *or* more accurate. It has to be no worse in both at once",
        lambda macs, accuracy: _undominated(macs, accuracy, lambda m, a, m0, a0: (m < m0) | (a > a0)),
    ),
    Mistake(
        "one number for two: accuracy / macs has a single best point. The front has every point that no other "
        "dominates",
        lambda macs, accuracy: accuracy / macs == (accuracy / macs).max(),
    ),
    Mistake(
        "the wrong way round: true marks the points that dominate another one. It should mark those that no other "
        "dominates",
        lambda macs, accuracy: _dominates_one(macs, accuracy),
    ),
    Mistake(
        "only the ends of the front are found, the cheapest and the most accurate point. Between them are others that "
        "no other dominates",
        lambda macs, accuracy: (accuracy == accuracy.max()) | (macs == macs.min()),
    ),
    Mistake(
        "only the most accurate point is found. The front has cheaper ones, too, that no other dominates",
        lambda macs, accuracy: accuracy == accuracy.max(),
    ),
    Mistake(
        "only the cheapest point is found. The front has more accurate ones, too, that no other dominates",
        lambda macs, accuracy: macs == macs.min(),
    ),
    Mistake(
        "order: it goes through the points as they come, and keeps what is better than all before. Sort them by cost "
        "first",
        lambda macs, accuracy: _running(macs, accuracy, lambda a, best: a > best, np.arange(len(macs))),
    ),
    Mistake(
        "reversed: true marks the points that are dominated; it should mark those that are not",
        lambda macs, accuracy: ~_front(macs, accuracy),
    ),
    Mistake(
        "every point is at least as good as itself. Test for at least as good in both and better in one",
        lambda macs, accuracy: _undominated(macs, accuracy, lambda m, a, m0, a0: (m <= m0) & (a >= a0)),
    ),
    Mistake(
        "ties: a point of equal cost with more accuracy, or of equal accuracy at less cost, dominates too. Not "
        "both need to be strictly better",
        lambda macs, accuracy: _undominated(macs, accuracy, lambda m, a, m0, a0: (m < m0) & (a > a0)),
    ),
    Mistake(
        "ties: of two points with the same cost the less accurate one is dominated; only strictly cheaper ones "
        "were tested",
        lambda macs, accuracy: _undominated(macs, accuracy, lambda m, a, m0, a0: (m < m0) & (a >= a0)),
    ),
    Mistake(
        "ties: of two points with the same accuracy the more expensive one is dominated; only strictly better "
        "ones were tested",
        lambda macs, accuracy: _undominated(macs, accuracy, lambda m, a, m0, a0: (m <= m0) & (a > a0)),
    ),
    Mistake(
        "order: the result is in the order of increasing cost; bring it back into the order of the arguments",
        lambda macs, accuracy: _front(macs, accuracy)[np.argsort(macs, kind="stable")],
    ),
    Mistake(
        "order: the result is in the order of increasing cost; bring it back into the order of the arguments "
        "(and look at points of equal cost, the more accurate one first)",
        lambda macs, accuracy: _running(macs, accuracy, lambda a, best: a > best, restore=False),
    ),
    Mistake(
        "ties: a later point as accurate as the best so far costs more, or the same. Where it costs more it is "
        "dominated",
        lambda macs, accuracy: _running(macs, accuracy, lambda a, best: a >= best),
    ),
    Mistake(
        "ties: sorted by cost alone, points of equal cost come in any order, and a worse one may come first. And a "
        "second point that is just as good and just as cheap is not dominated",
        lambda macs, accuracy: _running(macs, accuracy, lambda a, best: a > best),
    ),
    Mistake(
        "ties: two points with the same cost and the same accuracy do not dominate each other; both stay",
        lambda macs, accuracy: _running(macs, accuracy, lambda a, best: a > best, np.lexsort((-accuracy, macs))),
    ),
    Mistake(
        "neighbours: each point is compared with the next cheaper one only; one that is cheaper still may dominate it",
        _neighbours,
    ),
    Mistake(
        "direction: it looks for points that cost more. Cheaper is better: macs <= this one's",
        lambda macs, accuracy: _undominated(
            macs, accuracy, lambda m, a, m0, a0: (m >= m0) & (a >= a0) & ((m > m0) | (a > a0))
        ),
    ),
    Mistake(
        "indices: it returns the positions of the points. It should be a mask, true or false for every point",
        lambda macs, accuracy: np.flatnonzero(_front(macs, accuracy)),
    ),
]

EXERCISES = [
    Exercise("scaled_macs", SIZES, _scaled_macs, MACS_MISTAKES, solutions=(_by_hand,)),
    Exercise("pareto_front", _front_cases, _front, FRONT_MISTAKES, solutions=(_not_dominated,)),
]
