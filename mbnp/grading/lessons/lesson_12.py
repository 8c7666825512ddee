"""The exercises of lesson 12: layouts of weights, SAME padding, and the first layer at which two networks differ."""

from typing import Any

import numpy as np

from mbnp.grading.exercise import Case, Exercise, Mistake
from mbnp.layers import Conv, Depthwise
from mbnp.network import Network
from mbnp.ops.window import same_padding
from mbnp.weights import from_torch

# --- weight_from_torch ---


def _weight_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    shapes = (
        ((4, 2, 3, 3), False),
        ((3, 3, 3, 3), False),
        ((5, 1, 3, 2), True),
        ((3, 1, 3, 3), True),
        ((1, 1, 3, 2), True),  # one channel: only the second axis is to go
        ((4, 1, 1, 2), False),
    )
    return [{"w": rng.standard_normal(shape, dtype=np.float32), "depthwise": depthwise} for shape, depthwise in shapes]


def _weight(w, depthwise):
    c_out, c_in, *kernel = w.shape
    layer: Any = Depthwise(c_out, kernel, bias=False) if depthwise else Conv(c_in, c_out, kernel, bias=False)
    net = Network({"conv": layer}, resolution=32)
    from_torch(net, {"conv.weight": w})
    return layer.weight.value


def _weight_by(conv, depthwise_too):
    """Make a function from one for each of the two kinds."""
    return lambda w, depthwise: depthwise_too(w) if depthwise else conv(w)


def _conv(w):
    return w.transpose(2, 3, 1, 0)


def _depthwise(w):
    return w[:, 0].transpose(1, 2, 0)


def _reshaped(w):
    O, I, KH, KW = w.shape
    return w.reshape(KH, KW, I, O)


def _flipped(w):
    return np.ascontiguousarray(w[::-1, ::-1])


def _by_loops(w, depthwise):
    c_out, c_in, KH, KW = w.shape
    if depthwise:
        result = np.zeros((KH, KW, c_out), w.dtype)
        for u in range(KH):
            for v in range(KW):
                result[u, v] = w[:, 0, u, v]
        return result
    result = np.zeros((KH, KW, c_in, c_out), w.dtype)
    for u in range(KH):
        for v in range(KW):
            result[u, v] = w[:, :, u, v].T
    return result


def _by_axes(w, depthwise):
    if depthwise:
        return w[:, 0].transpose(1, 2, 0)
    return w.transpose(2, 3, 1, 0)


WEIGHT_MISTAKES = [
    Mistake(
        "squeeze: without an axis it drops every axis of length 1, that of a single channel too. Drop the second one: "
        "w[:, 0]",
        _weight_by(_conv, lambda w: w.squeeze().transpose(1, 2, 0)),
    ),
    Mistake(
        "squeeze: without an axis it drops every axis of length 1, that of a single channel too. Drop the one that is "
        "meant: w[:, 0]",
        _weight_by(_conv, lambda w: _conv(w).squeeze()),
    ),
    Mistake(
        "reshape: it keeps the order of the numbers in memory and divides them differently. transpose reorders axes",
        _weight_by(_reshaped, lambda w: w.reshape(w.shape[2], w.shape[3], w.shape[0])),
    ),
    Mistake(
        "reshape: the depthwise kernel is right in shape only. Drop the axis of length 1, then transpose",
        _weight_by(_conv, lambda w: w.reshape(w.shape[2], w.shape[3], w.shape[0])),
    ),
    Mistake(
        "the kernel is flipped: PyTorch's convolution does not flip it, and neither does mbnp's",
        _weight_by(lambda w: _flipped(_conv(w)), lambda w: _flipped(_depthwise(w))),
    ),
    Mistake(
        "the two axes of the kernel are swapped: KH stays before KW. (w.T reverses all axes, these two included)",
        _weight_by(lambda w: w.transpose(3, 2, 1, 0), lambda w: w[:, 0].transpose(2, 1, 0)),
    ),
    Mistake(
        "input and output channels are swapped: mbnp has C in before C out, so their order is reversed too",
        _weight_by(lambda w: w.transpose(2, 3, 0, 1), _depthwise),
    ),
    Mistake(
        "depthwise: an axis of length 1 is left. mbnp's depthwise kernel is (KH, KW, C)",
        _weight_by(_conv, _conv),
    ),
    Mistake(
        "depthwise: an axis of length 1 is left. mbnp's depthwise kernel is (KH, KW, C)",
        _weight_by(_conv, lambda w: w.transpose(2, 3, 0, 1)),
    ),
]

# --- same_padding ---


def _same_with(total, split=lambda total: (total // 2, total - total // 2)):
    return lambda size, kernel, stride: split(total(size, kernel, stride))


def _total(size, kernel, stride):
    return sum(same_padding(size, kernel, stride))


SAME: list[Case] = [
    {"size": size, "kernel": kernel, "stride": stride}
    for size, kernel, stride in (
        (8, 3, 2),
        (7, 3, 2),
        (32, 3, 1),
        (10, 5, 3),
        (11, 4, 2),
        (13, 2, 3),
        (9, 4, 1),
        (10, 1, 2),
        (5, 7, 2),
        (6, 5, 1),
        (16, 6, 4),
        (14, 8, 5),
        (3, 2, 2),
    )
]


def _zeros_needed(size, kernel, stride):
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + kernel - size, 0)
    before = total // 2
    return before, total - before


SAME_MISTAKES = [
    Mistake(
        "integer division: / gives half zeros. The start gets total // 2, the end the rest",
        _same_with(_total, lambda total: (total / 2, total / 2)),
    ),
    Mistake(
        "this is PyTorch's padding, (K - 1) // 2 on either side. SAME adds as many zeros as the last window needs",
        lambda size, kernel, stride: ((kernel - 1) // 2, (kernel - 1) // 2),
    ),
    Mistake(
        "both ends get the same. An odd number of zeros cannot be divided evenly: the end gets one more",
        _same_with(_total, lambda total: (total // 2, total // 2)),
    ),
    Mistake(
        "the odd zero goes to the end, not to the start",
        _same_with(_total, lambda total: (total - total // 2, total // 2)),
    ),
    Mistake(
        "rounding: SAME makes ceil(size / stride) outputs, also where size is not divisible by stride: -(-size "
        "// stride)",
        _same_with(lambda size, kernel, stride: max((max(size // stride, 1) - 1) * stride + kernel - size, 0)),
    ),
    Mistake(
        "remainder 0: where stride divides size the last window begins stride pixels before the end, so max(kernel - "
        "stride, 0) zeros are missing; kernel - size % stride is right only elsewhere",
        _same_with(lambda size, kernel, stride: max(kernel - size % stride, 0)),
    ),
    Mistake(
        "stride: it is left out. kernel - 1 zeros are right at stride 1; at stride 2 the last window ends earlier",
        _same_with(lambda size, kernel, stride: kernel - 1),
    ),
    Mistake(
        "the last window begins at (outputs - 1) * stride, not at outputs * stride: count from 0",
        _same_with(lambda size, kernel, stride: -(-size // stride) * stride + kernel - size),
    ),
    Mistake(
        "negative: where the windows leave pixels unused, nothing is padded and nothing is cut off: max(..., 0)",
        _same_with(lambda size, kernel, stride: (-(-size // stride) - 1) * stride + kernel - size),
    ),
]

# --- first_difference ---


def _pairs_cases(seed: int) -> list[Case]:
    """Make four feature maps and the logits of two networks; `off`: layer -> (by how much, at how many numbers)."""
    rng = np.random.default_rng(seed)
    cases = []
    for scales, off in (
        # Large numbers may be off by more; a single number counts; the largest difference comes later.
        ((1, 100, 1, 1, 1), {1: (1e-3, None), 2: (0.005, 1), 3: (-0.5, None), 4: (0.3, None)}),
        # Only downwards, then only upwards.
        ((1, 1, 1, 1, 1), {1: (-0.005, 1), 2: (0.02, None), 4: (0.5, None)}),
        ((1, 1, 1, 1, 1), {0: (0.005, 1), 3: (-0.5, None)}),
        # Small numbers may be off by less.
        ((1, 1e-3, 1, 1, 1), {1: (5e-5, None), 3: (0.3, None)}),
        # All agree but for rounding.
        ((1, 1, 0.01, 50, 1), {}),
    ):
        ours, theirs = [], []
        for k, scale in enumerate(scales):
            shape = (2, 4, 4, 3) if k != 2 else (2, 3, 3, 3)  # which no shape tells from its transpose
            a = scale * rng.uniform(-1, 1, shape if k < 4 else (2, 6))
            b = a * (1 + 1e-7 * rng.standard_normal(a.shape))
            shift, count = off.get(k, (0, None))
            b.reshape(-1)[:count] += shift
            ours.append(b)
            theirs.append(a.transpose(0, 3, 1, 2).copy() if a.ndim == 4 else a)
        cases.append({"ours": ours, "theirs": theirs, "tolerance": 1e-4})
    return [*cases, *_more_pairs(rng)]


def _more_pairs(rng) -> list[Case]:
    """Make pairs of which the last layer is off; numbers that are negative; a layer of zeros; a large tolerance."""
    maps = [rng.uniform(-1, 1, (2, 3, 4, 2)) for _ in range(3)]
    negative, zero = -3 - np.abs(maps[1]), np.zeros_like(maps[2])
    logits = rng.uniform(-1, 1, (2, 6))

    def case(ours, theirs, tolerance):
        theirs = [b.transpose(0, 3, 1, 2).copy() if b.ndim == 4 else b for b in theirs]
        return {"ours": ours, "theirs": theirs, "tolerance": tolerance}

    theirs = [maps[0], negative, zero, logits]
    only_logits = [maps[0], negative * (1 + 1e-6), zero, logits + 0.01]
    # Off by 35 % of theirs, which is 26 % of ours, and the other way round.
    larger, smaller = [1.35 * maps[0], maps[1], maps[2]], [0.75 * maps[0], maps[1], maps[2]]
    # Off in the second image only; the same numbers at other pixels; one number in many, by a little; by the image that
    # has the larger numbers.
    second, moved, single = [maps[0] * 1, maps[1] * 1], [maps[0], maps[1][:, ::-1].copy()], [maps[0] * 1, maps[1] * 1]
    second[1][1] += 0.01
    single[0][1, 2, 1, 0] += 4e-4
    images = np.array([1.0, 100.0]).reshape(2, 1, 1, 1)
    unlike = [maps[0] * images, maps[1]]
    return [
        case(only_logits, theirs, 1e-4),
        case(larger, maps, 0.3),
        case(smaller, maps, 0.3),
        case(second, maps[:2], 1e-4),
        case(moved, maps[:2], 1e-2),
        case(single, maps[:2], 1e-4),
        case([unlike[0] + 1e-3, maps[1]], unlike, 1e-4),
    ]


def _first(ours, theirs, tolerance):
    return _first_with()(ours, theirs, tolerance)


def _first_with(
    measure=lambda difference: np.abs(difference).max(),
    scale=lambda b: np.abs(b).max(),
    layout=lambda b, shape: b.transpose(0, 2, 3, 1),
    choose=lambda off: off[0],
):
    def wrong(ours, theirs, tolerance):
        off = []
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            b = layout(b, a.shape) if b.ndim == 4 else b
            if measure(a - b) > tolerance * scale(b):
                off.append(k)
        return choose(off) if off else -1

    return wrong


def _worst(ours, theirs, tolerance):
    worst, at = tolerance, -1
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        b = b.transpose(0, 2, 3, 1) if b.ndim == 4 else b
        if (difference := np.abs(a - b).max() / np.abs(b).max()) > worst:
            worst, at = difference, k
    return at


def _from_the_first(ours, theirs, tolerance):
    for k, (a, b) in enumerate(zip(ours, theirs)):  # noqa: B905 (as a reader writes it)
        if b.ndim == 4:
            b = b.transpose(0, 2, 3, 1)
        largest = np.abs(b).max()
        if np.abs(a - b).max() > tolerance * largest:
            return k
    return -1


def _maps_only(ours, theirs, tolerance):
    maps = [k for k, b in enumerate(theirs) if b.ndim == 4]
    at = _first([ours[k] for k in maps], [theirs[k] for k in maps], tolerance)
    return maps[at] if at >= 0 else -1


def _relative_to_ours(ours, theirs, tolerance):
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        b = b.transpose(0, 2, 3, 1) if b.ndim == 4 else b
        if np.abs(a - b).max() > tolerance * np.abs(a).max():
            return k
    return -1


def _each_by_itself(rtol, atol):
    """Measure every number by itself, and not by the largest of the layer."""

    def wrong(ours, theirs, tolerance):
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            b = b.transpose(0, 2, 3, 1) if b.ndim == 4 else b
            if not np.allclose(a, b, rtol=rtol(tolerance), atol=atol(tolerance)):
                return k
        return -1

    return wrong


_SIGN = "sign: without abs, differences downwards are never found, or hide in the sum: np.abs(a - b).max()"
_EACH = (
    "each number is measured by itself (np.allclose does that, too), so that one near 0 may not be off at all. The "
    "tolerance is one for the whole layer: times the largest of theirs"
)
FIRST_MISTAKES = [
    Mistake(_EACH, _each_by_itself(lambda tolerance: tolerance, lambda tolerance: 0)),
    Mistake(_EACH, _each_by_itself(lambda tolerance: tolerance, lambda tolerance: 1e-8)),
    Mistake(
        "means are compared, which hide a few wrong numbers: take the largest difference, and the largest of theirs",
        _first_with(lambda difference: np.abs(difference).mean(), lambda b: np.abs(b).mean()),
    ),
    Mistake(
        "the number of layers that differ is returned; the index of the first one is asked for",
        _first_with(choose=len),
    ),
    Mistake(
        "the layout is told by the shape, which is the same in both where channels, height and width are: go by the "
        "number of axes, b.ndim == 4",
        _first_with(layout=lambda b, shape: b if b.shape == shape else b.transpose(0, 2, 3, 1)),
    ),
    Mistake("relative to ours: the tolerance is measured by the largest of *their* output", _relative_to_ours),
    Mistake(
        "sign: the scale is the maximum of theirs, without abs. Where their numbers are negative, that is too small or "
        "negative: np.abs(theirs).max()",
        _first_with(scale=lambda b: b.max()),
    ),
    Mistake(
        "early return: `return -1` stands inside the loop, which ends after the first layer. It belongs behind it",
        lambda ours, theirs, tolerance: _first(ours[:1], theirs[:1], tolerance),
    ),
    Mistake(
        "maps only: layers of (N, C), after the pool, are not compared. Only the transpose is for maps", _maps_only
    ),
    Mistake(
        "it counts layers from 1; the index of the first one is 0",
        lambda ours, theirs, tolerance: k + 1 if (k := _first(ours, theirs, tolerance)) >= 0 else k,
    ),
    Mistake(
        "the number of layers is returned where none differs; -1 is asked for",
        lambda ours, theirs, tolerance: k if (k := _first(ours, theirs, tolerance)) >= 0 else len(ours),
    ),
    Mistake(_SIGN, _first_with(measure=lambda difference: difference.max())),
    Mistake(_SIGN, _first_with(measure=lambda difference: (-difference).max())),
    Mistake(
        "the mean hides a few wrong numbers, such as those at the edge that padding spoils: take the largest",
        _first_with(measure=lambda difference: np.abs(difference).mean()),
    ),
    Mistake(
        "absolute: an output of 100 may be off by more than one of 0.01. Measure it by the largest of theirs",
        _first_with(scale=lambda b: 1.0),
    ),
    Mistake(
        "the layer with the largest difference is not the one with the mistake: differences grow from layer to "
        "layer. The first one is",
        _worst,
    ),
    Mistake("this is the last one that is off: return as soon as you find one", _first_with(choose=max)),
    Mistake(
        "layout: their feature maps are (N, C, H, W). transpose(0, 2, 3, 1) brings the channels to the "
        "end; reshape moves nothing, and (0, 3, 2, 1) swaps H and W",
        _first_with(layout=lambda b, shape: b.reshape(shape)),
    ),
]

EXERCISES = [
    Exercise("weight_from_torch", _weight_cases, _weight, WEIGHT_MISTAKES, solutions=(_by_axes, _by_loops)),
    Exercise(
        "same_padding", SAME, same_padding, SAME_MISTAKES, outputs=("before", "after"), solutions=(_zeros_needed,)
    ),
    Exercise("first_difference", _pairs_cases, _first, FIRST_MISTAKES, solutions=(_from_the_first,)),
]
