"""The exercises of lesson 14: overlaps, boxes as offsets and back, suppression, average precision."""

import numpy as np

from mbnp.detection import boxes as detection_boxes
from mbnp.detection import precision, suppression
from mbnp.grading.exercise import Case, Exercise, Mistake, variants


def _f(numbers) -> np.ndarray:
    return np.array(numbers, np.float32)


# --- overlaps ---


def _boxes(rng: np.random.Generator, n: int, extent: float = 20.0) -> np.ndarray:
    """Return boxes of 3 to 9 pixels, (n, 4) float32, around points of a square."""
    centre, half = extent * rng.random((n, 2)), 1.5 + 3 * rng.random((n, 2))
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)


def _overlap_cases(seed: int) -> list[Case]:
    """Return boxes apart in one direction and in both, boxes in boxes, and equal ones."""
    rng = np.random.default_rng(seed)
    a, b = _f([[0, 1, 4, 5], [10, 0, 16, 3], [1, 2, 3, 3]]), _f([[0, 1, 4, 5], [5, 6, 8, 9]])
    return [
        {"a": a, "b": b},
        {"a": _boxes(rng, 4, 8), "b": _boxes(rng, 3, 8)},
        {"a": _boxes(rng, 2), "b": _boxes(rng, 5)},
    ]


def _sides(a, b):
    """Return width and height (n, m, 2) of what two boxes have in common, negative where they are apart."""
    return np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])


def _sizes(a):
    return a[:, 2:] - a[:, :2]


def _clipped(sides):
    return np.maximum(sides, 0).prod(axis=2)


def _ratio(both, area_a, area_b):
    return both / (area_a + area_b - both)


def _overlaps(a, b, inter=_clipped, more=0, ratio=_ratio, sides=_sides, sizes=_sizes):
    """Return the right answer, or one with another intersection, sizes, or quotient."""
    more = a.dtype.type(more)
    both = inter(sides(a, b) + more)
    return ratio(both, (sizes(a) + more).prod(axis=1)[:, None], (sizes(b) + more).prod(axis=1))


def _corner_and_size(a, b):
    """Return what comes out where the last two numbers are taken for width and height."""
    ends = [np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1) for boxes in (a, b)]
    return _overlaps(*ends)


def _centre_and_size(a, b):
    ends = [np.concatenate([c[:, :2] - c[:, 2:] / 2, c[:, :2] + c[:, 2:] / 2], axis=1) for c in (a, b)]
    return _overlaps(*ends)


def _pair_by_pair(a, b):
    shared = np.zeros((len(a), len(b)), a.dtype)
    for n in range(len(a)):
        for m in range(len(b)):
            width = min(a[n, 2], b[m, 2]) - max(a[n, 0], b[m, 0])
            height = min(a[n, 3], b[m, 3]) - max(a[n, 1], b[m, 1])
            both = max(width, 0) * max(height, 0)
            area_a = (a[n, 2] - a[n, 0]) * (a[n, 3] - a[n, 1])
            area_b = (b[m, 2] - b[m, 0]) * (b[m, 3] - b[m, 1])
            shared[n, m] = both / (area_a + area_b - both)
    return shared


def _all_at_once(a, b):
    first, last = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    both = np.maximum(last - first, 0).prod(axis=2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(axis=1), (b[:, 2:] - b[:, :2]).prod(axis=1)
    return both / (area_a[:, None] + area_b - both)


def _over_the_box_around(a, b):
    sides = np.maximum(a[:, None, 2:], b[:, 2:]) - np.minimum(a[:, None, :2], b[:, :2])
    return _clipped(_sides(a, b)) / sides.prod(axis=2)


OVERLAP_MISTAKES = [
    Mistake(
        "the denominator is the box around both. It is the union: area_a + area_b - intersection", _over_the_box_around
    ),
    *variants(
        _overlaps,
        {
            "one pixel more: here a box is right - left wide. The + 1 belongs to corners that are numbers of pixels": {
                "more": 1
            },
            "the union: what lies in both is counted twice. It is area_a + area_b - intersection": {
                "ratio": lambda both, area_a, area_b: both / (area_a + area_b)
            },
            "boxes apart: their intersection has a negative width and a negative height, whose product is positive. "
            "Clip both at 0 before multiplying": {"inter": lambda sides: np.maximum(sides.prod(axis=2), 0)},
            "boxes apart: where they do not meet, width or height of the intersection is negative. Clip both at 0": {
                "inter": lambda sides: sides.prod(axis=2)
            },
            "boxes apart: the width of the intersection is clipped at 0, and its height is not": {
                "inter": lambda sides: np.maximum(sides[..., 0], 0) * sides[..., 1]
            },
            "boxes apart: the height of the intersection is clipped at 0, and its width is not": {
                "inter": lambda sides: sides[..., 0] * np.maximum(sides[..., 1], 0)
            },
            "minimum and maximum are exchanged: that is the box around both. The intersection begins at the larger "
            "left and ends at the smaller right": {
                "sides": lambda a, b: np.maximum(a[:, None, 2:], b[:, 2:]) - np.minimum(a[:, None, :2], b[:, :2])
            },
            "the quotient is missing: that is the area of the intersection": {"ratio": lambda both, *areas: both},
            "that is the Dice coefficient, 2 * intersection / (area_a + area_b). Here it is intersection / union": {
                "ratio": lambda both, area_a, area_b: 2 * both / (area_a + area_b)
            },
            "the denominator is the smaller box. Then a tiny box within a large one would be a perfect answer: divide "
            "by the union": {"ratio": lambda both, area_a, area_b: both / np.minimum(area_a, area_b)},
            "the denominator is the box of a alone: divide by the union": {
                "ratio": lambda both, area_a, area_b: both / (area_a + 0 * area_b)
            },
            "the denominator is the box of b alone: divide by the union": {
                "ratio": lambda both, area_a, area_b: both / (0 * area_a + area_b)
            },
            "the intersection is subtracted from the quotient's numerator as well: intersection / union": {
                "ratio": lambda both, area_a, area_b: (area_a + area_b - 2 * both) / (area_a + area_b - both)
            },
        },
    ),
    Mistake(
        "corners: the last two numbers are right and bottom, not width and height",
        _corner_and_size,
    ),
    Mistake(
        "corners: the first two numbers are left and top, not the centre, and the last two are right and bottom",
        _centre_and_size,
    ),
    Mistake(
        "corners: the four are left, top, right, bottom, not left, right, top, bottom",
        lambda a, b: _overlaps(a[:, [0, 2, 1, 3]], b[:, [0, 2, 1, 3]]),
    ),
    Mistake(
        "rows and columns are exchanged: a row is for a box of a, a column for a box of b",
        lambda a, b: _overlaps(a, b).T,
    ),
    Mistake(
        "pairs: each box of a is compared with one box of b. Every box of a meets every box of b: a[:, None]",
        lambda a, b: _overlaps(a, b).diagonal().copy(),
    ),
]

# --- box_coding ---

SCALES = _f([10, 8, 5, 4])


def _coding_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases = []
    for n in (3, 1, 4):
        anchors = _boxes(rng, n)
        boxes, offsets = anchors + _boxes(rng, n, 4) - 2, rng.standard_normal((n, 4)).astype(np.float32) * 3
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        cases.append({"boxes": boxes, "offsets": offsets, "anchors": anchors, "scales": SCALES})
    return cases


def _centre(boxes):
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _corner(boxes):
    return boxes[:, :2]


def _corners(centre, size):
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1)


def _coding(
    boxes, offsets, anchors, scales, *, place=_centre, log=np.log, exp=np.exp, unit=_sizes, into=None, back=None,
    by=_sizes, ends=_corners, there=None,
):  # fmt: skip
    """Return the right answer, or one with another place, logarithm, unit, scale or form of the boxes."""
    into = scales if into is None else into(scales)
    back = scales if back is None else back(scales)
    moved = (place(boxes) - place(anchors)) / unit(boxes if by is None else anchors)
    encoded = into * np.concatenate([moved, log(_sizes(boxes) / _sizes(anchors))], axis=1)
    steps = offsets / back
    moves_by = unit(anchors) if there is None else there(anchors, steps)
    centre, size = place(anchors) + moves_by * steps[:, :2], _sizes(anchors) * exp(steps[:, 2:])
    return encoded.astype(boxes.dtype), ends(centre, size).astype(boxes.dtype)


def _right_coding(boxes, offsets, anchors, scales):
    return (
        detection_boxes.encode(boxes, anchors, scales),
        detection_boxes.decode(offsets, anchors, scales),
    )


def _by_corners(boxes, offsets, anchors, scales):
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    middle, extent = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    encoded = scales * np.concatenate([(centre - middle) / extent, np.log(size / extent)], axis=1)
    back = offsets / scales
    new_centre, half = middle + extent * back[:, :2], extent * np.exp(back[:, 2:]) / 2
    return encoded, np.concatenate([new_centre - half, new_centre + half], axis=1)


def _same(x):
    return x


def _ones(of):
    return of * 0 + 1


CODING_MISTAKES = [
    *variants(
        _coding,
        {
            "back: the centre moves by offset / scale times the anchor's size, not the new size": {
                "there": lambda anchors, steps: _sizes(anchors) * np.exp(steps[:, 2:])
            },
            "the logarithm is missing, and back again the exponential: sizes are log(w / wa)": {
                "log": _same,
                "exp": _same,
            },
            "the logarithm is missing: the last two offsets are log(w / wa) and log(h / ha)": {"log": _same},
            "the exponential is missing: the logarithm of the size has to be undone, w = wa * exp(offset / scale)": {
                "exp": _same
            },
            "the logarithm: log(1 + x) and exp(x) - 1 are for small x. Here it is log(w / wa), and exp": {
                "log": np.log1p,
                "exp": np.expm1,
            },
            "the logarithm has the base 2: the natural one, np.log and np.exp": {"log": np.log2, "exp": np.exp2},
            "the logarithm has the base 10: the natural one, np.log and np.exp": {
                "log": np.log10,
                "exp": lambda x: 10**x,
            },
            "the ratio of the sizes is upside down: w / wa, the box's width by the anchor's": {
                "log": lambda ratio: -np.log(ratio),
                "exp": lambda step: np.exp(-step),
            },
            "corners for centres: offsets are between the centres, (left + right) / 2, not between the upper left "
            "corners": {"place": _corner, "ends": lambda corner, size: np.concatenate([corner, corner + size], axis=1)},
            "corners for centres: (x, y) are the centres, (left + right) / 2 and (top + bottom) / 2": {
                "place": _corner
            },
            "the anchor's size: the distance of the centres is measured in the anchor's width and height: divide by "
            "wa and ha, and multiply by them on the way back": {"unit": lambda a: _ones(_sizes(a))},
            "the anchor's size: the distance of the centres is divided by the box's own size. Back again nobody knows "
            "that: divide by wa and ha": {"by": None},
            "width and height are exchanged: x is measured in wa, and y in ha": {"unit": lambda a: _sizes(a)[:, ::-1]},
            "the scales are missing: multiply the offsets by them, and divide on the way back": {
                "into": _ones,
                "back": _ones,
            },
            "the scales are missing on the way there: multiply the offsets by them": {"into": _ones},
            "the scales are missing on the way back: divide the offsets by them first": {"back": _ones},
            "the scales: offsets are multiplied by them, and divided on the way back. Yours go the other way": {
                "into": np.reciprocal,
                "back": np.reciprocal,
            },
            "the scales: on the way back the offsets are divided by them, not multiplied once more": {
                "back": np.reciprocal
            },
            "the scales: all four are the first one. x, y, width and height have one each": {
                "into": lambda scales: scales[:1],
                "back": lambda scales: scales[:1],
            },
            "half a width: the box is half as wide on either side of its centre, x - w / 2 and x + w / 2": {
                "ends": lambda centre, size: np.concatenate([centre - size, centre + size], axis=1)
            },
            "half a width: right and bottom are half a width and half a height from the centre, as left and top are": {
                "ends": lambda centre, size: np.concatenate([centre - size / 2, centre + size], axis=1)
            },
            "corners: what comes back is the centre and the size. It should be left, top, right, bottom": {
                "ends": lambda centre, size: np.concatenate([centre, size], axis=1)
            },
            "corners: the centre is taken for the upper left corner. It is in the middle: x - w / 2, x + w / 2": {
                "ends": lambda centre, size: np.concatenate([centre, centre + size], axis=1)
            },
        },
    ),
    Mistake(
        "order: the offsets of the boxes come first, then the boxes that offsets mean",
        lambda *case, **named: _coding(*case, **named)[::-1],
    ),
]

# --- suppress ---


def _suppress_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    # Two that overlap a little less than allowed; three in a row, each over half of the next; a box over exactly a
    # half of another, and two classes on one place.
    near = _f([[0, 0, 3, 3], [1, 0, 4, 3], [9, 9, 12, 12]])
    row = _f([[3, 0, 13, 10], [0, 0, 10, 10], [6, 0, 16, 10]])
    half = _f([[0, 0, 8, 4], [0, 0, 4, 4], [30, 0, 38, 4], [31, 0, 39, 4]])
    cases = [
        {"boxes": near, "scores": _f([0.7, 0.6, 0.8]), "labels": np.array([2, 2, 2]), "limit": 0.55},
        {"boxes": row, "scores": _f([0.8, 0.9, 0.7]), "labels": np.array([1, 1, 1]), "limit": 0.5},
        {"boxes": half, "scores": _f([0.6, 0.9, 0.7, 0.95]), "labels": np.array([0, 0, 1, 2]), "limit": 0.5},
    ]
    for n, classes, limit in ((9, 2, 0.3), (12, 3, 0.5)):
        boxes = _boxes(rng, 3, 12)[rng.integers(0, 3, n)] + rng.random((n, 4)).astype(np.float32)
        scores = rng.permutation(n).astype(np.float32) / n
        scores[1] = scores[0] = scores.max()  # equal ones, at one place
        boxes[1], labels = boxes[0] + np.float32(0.1), rng.integers(0, classes, n)
        labels[1] = labels[0]
        cases.append({"boxes": boxes, "scores": scores, "labels": labels, "limit": limit})
    # The best drops two in a row; and boxes that are moved apart by their class, by 50 or by the largest coordinate,
    # come to lie on others.
    three = _f([[0, 0, 10, 10], [1, 0, 11, 10], [2, 0, 12, 10], [30, 0, 40, 10]])
    far = _f([[-60, -60, -50, -50], [0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 10]])
    same, falling = np.zeros(4, np.int64), _f([0.9, 0.8, 0.7, 0.6])
    cases.append({"boxes": three, "scores": falling, "labels": same, "limit": 0.5})
    for owners in ([1, 0, 0, 1], [0, 1, 1, 0]):
        cases.append({"boxes": far, "scores": falling, "labels": np.array(owners), "limit": 0.5})
    # A large box and a half of it, the better one first: the union has both areas.
    large, small = [0, 0, 10, 10], [0, 0, 5, 10]
    for pair, limit in (([large, small], 0.6), ([small, large], 0.4)):
        cases.append({"boxes": _f(pair), "scores": _f([0.9, 0.8]), "labels": same[:2], "limit": limit})
    # One of each class, with two scores: an unstable sort exchanges equal ones only where there are many.
    each = np.arange(24)
    scores = np.where(each % 2, 0.75, 0.5).astype(np.float32)
    return [*cases, {"boxes": near[0 * each], "scores": scores, "labels": each, "limit": 0.5}]


def _falling(scores):
    return np.argsort(-scores, kind="stable")


def _over(shared, limit):
    return shared > limit


def _same_class(one, other):
    return one == other


def _suppress(
    boxes, scores, labels, limit, *, order=_falling, over=_over, rival=_same_class, among="kept", measure=_overlaps,
    result=None,
):  # fmt: skip
    """Return the right answer, or one with another order, comparison, or rivals."""
    shared = measure(boxes, boxes)
    kept: list[int] = []
    seen: list[int] = []
    for n in order(scores).tolist():
        against = {"kept": kept, "seen": seen, "last": kept[-1:]}[among]
        if not any(over(shared[n, k], limit) and rival(labels[k], labels[n]) for k in against):
            kept.append(n)
        seen.append(n)
    indices = np.array(kept, np.int64)
    return indices if result is None else result(indices, scores)


def _by_class(boxes, scores, labels, limit):
    parts = [
        at[suppression.suppress(boxes[at], scores[at], limit)]
        for at in (np.flatnonzero(labels == label) for label in np.unique(labels))
    ]
    kept = np.sort(np.concatenate(parts))  # so that of equal scores the first comes first
    return kept[suppression.falling(scores[kept])]


def _one_by_one(boxes, scores, labels, limit):
    kept: list[int] = []
    for n in np.argsort(-scores, kind="stable"):
        rivals = [k for k in kept if labels[k] == labels[n]]
        first, last = np.maximum(boxes[rivals, :2], boxes[n, :2]), np.minimum(boxes[rivals, 2:], boxes[n, 2:])
        both = np.maximum(last - first, 0).prod(axis=1)
        areas = (boxes[rivals, 2:] - boxes[rivals, :2]).prod(axis=1) + (boxes[n, 2:] - boxes[n, :2]).prod()
        if not (both / (areas - both) > limit).any():
            kept.append(n)
    return np.array(kept, np.int64)


def _removed_on_the_way(boxes, scores, labels, limit):
    shared, left, kept = _overlaps(boxes, boxes), _falling(scores).tolist(), list[int]()
    while left:
        kept.append(n := left.pop(0))
        for k in left:
            if shared[n, k] > limit and labels[k] == labels[n]:
                left.remove(k)
    return np.array(kept, np.int64)


def _moved_apart(by):
    def suppress(boxes, scores, labels, limit):
        moved = boxes + by(boxes) * labels[:, None].astype(np.float32)
        return _suppress(moved, scores, labels, limit, rival=lambda one, other: True)

    return suppress


def _places(kept, scores):
    """Return where in the sorted order the kept boxes stand."""
    return np.sort(np.argsort(_falling(scores))[kept])


def _class_by_class(boxes, scores, labels, limit):
    """Return what is kept of each class after the other, not sorted by score again."""
    kept = _by_class(boxes, scores, labels, limit)
    return kept[np.argsort(labels[kept], kind="stable")]


def _mask(kept, scores):
    mask = np.zeros(len(scores), bool)
    mask[kept] = True
    return mask


SUPPRESS_MISTAKES = [
    *variants(
        _suppress,
        {
            "the classes: a box is dropped for one of another class. A star in front of a ring is two objects: compare "
            "labels, too": {"rival": lambda one, other: True},
            "the classes are the wrong way round: only boxes of the same class suppress one another": {
                "rival": lambda one, other: one != other
            },
            "not sorted: the boxes are gone through as they come. The highest score comes first": {
                "order": lambda scores: np.arange(len(scores))
            },
            "sorted upwards: argsort begins with the lowest score. np.argsort(-scores)": {
                "order": lambda scores: np.argsort(scores, kind="stable")
            },
            "equal scores: argsort(scores)[::-1] turns them round, too. np.argsort(-scores, kind='stable')": {
                "order": lambda scores: np.argsort(scores, kind="stable")[::-1]
            },
            "equal scores: argsort(scores)[::-1] has them in any order. np.argsort(-scores, kind='stable')": {
                "order": lambda scores: np.argsort(scores)[::-1]
            },
            "equal scores: np.argsort is not stable, it has them in any order. np.argsort(-scores, kind='stable')": {
                "order": lambda scores: np.argsort(-scores)
            },
            "a box that was dropped drops another one. Compare only with those that are kept": {"among": "seen"},
            "only the box that was kept last is compared. Compare with all that are kept": {"among": "last"},
            "the limit: an overlap of exactly limit is allowed. Drop a box if it is larger": {
                "over": lambda shared, limit: shared >= limit
            },
            "the limit is the wrong way round: what overlaps *more* than limit is dropped": {
                "over": lambda shared, limit: shared < limit
            },
            "any overlap at all drops a box: compare with limit": {"over": lambda shared, limit: shared > 0},
            "the overlap: the intersection is divided by the smaller box. Divide by the union": {
                "measure": lambda a, b: _overlaps(a, b, ratio=lambda both, one, other: both / np.minimum(one, other))
            },
            "the overlap: what lies in both is counted twice. The union is area_a + area_b - intersection": {
                "measure": lambda a, b: _overlaps(a, b, ratio=lambda both, one, other: both / (one + other))
            },
            "the overlap is one pixel too large on each side: a box is right - left wide": {
                "measure": lambda a, b: _overlaps(a, b, more=1)
            },
            "the order of the result: by falling score, not by index": {"result": lambda kept, scores: np.sort(kept)},
            "the order of the result: the highest score comes first": {"result": lambda kept, scores: kept[::-1]},
            "these are places in the sorted order. Boxes are asked for by their own index: order[...]": {
                "result": _places
            },
            "that is a mask: the indices are asked for, by falling score": {"result": _mask},
        },
    ),
    Mistake(
        "only the best box of each class is kept: an image may show two objects of one class",
        lambda boxes, scores, labels, limit: _suppress(boxes, scores, labels, limit, over=lambda shared, limit: True),
    ),
    Mistake(
        "the order of the result: by falling score, whatever the class, and not one class after the other",
        _class_by_class,
    ),
    Mistake(
        "a list is changed while a loop goes through it: the one after each that is removed is passed over. Go through "
        "a copy, or make a new list",
        _removed_on_the_way,
    ),
    *(
        Mistake(
            "the classes are moved apart, but not far enough: some boxes come to lie on those of another class. Move "
            "each class by more than the largest coordinate less the smallest",
            _moved_apart(by),
        )
        for by in (lambda boxes: np.float32(50), lambda boxes: boxes.max())
    ),
]

# --- average_precision ---


def _precision_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases = [{"scores": np.array([0.9, 0.5, 0.8, 0.6, 0.7]), "right": np.array([1, 1, 0, 1, 0], bool), "objects": 4}]
    for n, objects in ((8, 6), (12, 9), (6, 2), (3, 5)):
        right = np.zeros(n, bool)
        right[rng.permutation(n)[: min(objects - 1, n // 2 + 1)]] = True
        scores = 0.05 + 0.9 * rng.permutation(n) / n
        right[scores.argmax()] = n != 8  # false first: the precision rises later
        cases.append({"scores": scores, "right": right, "objects": objects})
    return [*cases, {"scores": np.array([0.4, 0.8, 0.6]), "right": np.ones(3, bool), "objects": 3}]


def _interpolated(precision):
    return np.maximum.accumulate(precision[::-1])[::-1]


def _area(precision, recall):
    return (precision * np.diff(recall, prepend=0)).sum()


def _average(
    scores, right, objects, *, order=lambda scores: np.argsort(-scores), highest=_interpolated, area=_area,
    total=lambda right, objects: objects, counted=None,
):  # fmt: skip
    """Return the right answer, or one with another order, envelope, sum, or number of objects."""
    right = right[order(scores)]
    found, tried = np.cumsum(right), np.arange(1, len(right) + 1)
    precision = found / (tried if counted is None else counted(found, tried))
    return float(area(highest(precision), found / total(right, objects)))


def _right_average(scores, right, objects):
    order = np.argsort(-scores)
    verdicts = np.where(right[order], precision.RIGHT, precision.FALSE)
    judged = precision.Judged(np.zeros(len(order), np.int64), scores[order], verdicts, np.array([objects]))
    return precision.average(precision.curve(judged, 0))


def _below_the_stairs(scores, right, objects):
    found = np.cumsum(right[np.argsort(-scores)])
    precision, recall = found / np.arange(1, len(found) + 1), found / objects
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float((highest * np.diff(recall, prepend=0)).sum())


def _at(recalls):
    def mean(precision, recall):
        reached = [precision[recall >= r].max(initial=0) for r in recalls]
        return np.mean(reached)

    return mean


PRECISION_MISTAKES = [
    *variants(
        _average,
        {
            "the interpolation is missing: the precision at a recall is the highest one there or further right": {
                "highest": _same
            },
            "the interpolation runs the wrong way: the highest precision so far is meant for lower recalls. Begin at "
            "the right": {"highest": np.maximum.accumulate},
            "precision: the k-th box is the k-th that was tried, from 1 on: np.arange(1, n + 1)": {
                "counted": lambda found, tried: tried + 1
            },
            "not sorted: precision and recall are counted by falling score": {
                "order": lambda scores: np.arange(len(scores))
            },
            "sorted upwards: argsort begins with the lowest score. np.argsort(-scores)": {"order": np.argsort},
            "recall: divide by all objects, not by those that were found. Otherwise missing one costs nothing": {
                "total": lambda right, objects: right.sum()
            },
            "recall: divide by the number of objects, not by that of boxes": {
                "total": lambda right, objects: len(right)
            },
            "that is the mean at the 11 recalls of VOC 2007. Here it is the area, as in VOC 2010": {
                "area": _at(np.arange(11) / 10)
            },
            "that is the mean at the 101 recalls of COCO. Here it is the area, as in VOC 2010": {
                "area": _at(np.linspace(0, 1, 101))
            },
            "the area: np.trapezoid joins the points by slopes. The interpolated curve is a staircase: multiply its "
            "precision by what the recall has grown by": {
                "highest": _same,
                "area": lambda precision, recall: np.trapezoid(precision, recall),
            },
            "the first step of the recall, from 0, is missing (np.trapezoid leaves it out, too): np.diff(recall, "
            "prepend=0)": {"area": lambda precision, recall: (precision[1:] * np.diff(recall)).sum()},
            "the mean over all boxes found: weigh each precision by what the recall has grown by": {
                "area": lambda precision, recall: precision.mean()
            },
            "recall is not used: each precision counts by what the recall has grown by, and not once a box": {
                "area": lambda precision, recall: precision.sum()
            },
            "precision: divide by the number of boxes so far, not by that of the false ones": {
                "counted": lambda found, tried: np.maximum(tried - found, 1)
            },
            "precision: divide by the number of boxes so far, which is 1 after the first, not 0": {
                "counted": lambda found, tried: np.maximum(tried - 1, 1)
            },
        },
    ),
]

EXERCISES = [
    Exercise(
        "overlaps", _overlap_cases, detection_boxes.overlap, OVERLAP_MISTAKES, solutions=(_all_at_once, _pair_by_pair)
    ),
    Exercise(
        "box_coding",
        _coding_cases,
        _right_coding,
        CODING_MISTAKES,
        outputs=("offsets", "boxes"),
        solutions=(_by_corners,),
    ),
    Exercise("suppress", _suppress_cases, _by_class, SUPPRESS_MISTAKES, solutions=(_one_by_one,)),
    Exercise("average_precision", _precision_cases, _right_average, PRECISION_MISTAKES, solutions=(_below_the_stairs,)),
]
