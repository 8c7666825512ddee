"""The exercises of lesson 9: arithmetic intensity, the roofline, the position of a number with channels last."""

import itertools

import numpy as np

from mbnp import cost
from mbnp.grading.exercise import Case, Exercise, Mistake

# --- depthwise_intensity ---


def _intensity(n, h, w, c, k, itemsize):
    return 2 * n * cost.depthwise(h, w, k, c) / (itemsize * (2 * n * h * w * c + k * k * c))


INTENSITY_CASES = [
    {"n": n, "h": h, "w": w, "c": c, "k": k, "itemsize": itemsize}
    for n, h, w, c, k, itemsize in (
        (1, 4, 4, 2, 3, 4),
        (64, 32, 32, 32, 3, 4),
        (2, 5, 7, 3, 5, 8),
        (1, 2, 2, 512, 3, 2),
    )
]


def _by_hand(n, h, w, c, k, itemsize):
    flops = 2 * n * h * w * c * k * k
    return flops / (itemsize * (2 * n * h * w * c + k * k * c))


INTENSITY_MISTAKES = [
    Mistake(
        "bytes: only the feature maps are multiplied by itemsize. Weights take bytes, too: itemsize * (maps + weights)",
        lambda n, h, w, c, k, itemsize: 2 * n * h * w * c * k * k / (itemsize * 2 * n * h * w * c + k * k * c),
    ),
    Mistake(
        "MACs for FLOPs: a multiply-accumulate is a multiplication and an addition, so it counts twice",
        lambda n, h, w, c, k, itemsize: _intensity(n, h, w, c, k, itemsize) / 2,
    ),
    Mistake(
        "bytes: numbers are counted. A number takes `itemsize` bytes, 4 in float32",
        lambda n, h, w, c, k, itemsize: _intensity(n, h, w, c, k, 1),
    ),
    Mistake(
        "bytes: every number is counted as 4 bytes. Use itemsize: float64 has 8, float16 has 2",
        lambda n, h, w, c, k, itemsize: _intensity(n, h, w, c, k, 4),
    ),
    Mistake(
        "bytes: those of the output are missing. It has to be written, too",
        lambda n, h, w, c, k, itemsize: 2 * n * h * w * c * k * k / (itemsize * (n * h * w * c + k * k * c)),
    ),
    Mistake(
        "bytes: the weights are left out. They hardly matter for a large feature map, but they do for a small "
        "one with many channels",
        lambda n, h, w, c, k, itemsize: k * k / itemsize,
    ),
    Mistake(
        "bytes: the weights are counted once for each image; all images of a batch use the same",
        lambda n, h, w, c, k, itemsize: _intensity(1, h, w, c, k, itemsize),
    ),
    Mistake(
        "FLOPs: those of a standard convolution. A depthwise one has one kernel per channel: there is no "
        "second factor c",
        lambda n, h, w, c, k, itemsize: c * _intensity(n, h, w, c, k, itemsize),
    ),
    Mistake(
        "bytes: the weights of a standard convolution, k·k·c·c. A depthwise one has k·k·c",
        lambda n, h, w, c, k, itemsize: 2 * n * h * w * c * k * k / (itemsize * (2 * n * h * w * c + k * k * c * c)),
    ),
    Mistake(
        "bytes: the input is counted once for each tap. Each number is loaded once and then stays in a cache "
        "or register",
        lambda n, h, w, c, k, itemsize: (
            2 * n * h * w * c * k * k / (itemsize * (n * h * w * c * (k * k + 1) + k * k * c))
        ),
    ),
    Mistake(
        "upside down: it is bytes per FLOP. Intensity is FLOPs per byte",
        lambda n, h, w, c, k, itemsize: 1 / _intensity(n, h, w, c, k, itemsize),
    ),
    Mistake(
        "integer division: // drops the fraction; use /",
        lambda n, h, w, c, k, itemsize: _intensity(n, h, w, c, k, itemsize) // 1,
    ),
]

# --- attainable ---


def _roofline(intensity, gflops, bandwidth):
    return np.minimum(gflops, bandwidth * intensity)


ROOFLINE_CASES: list[Case] = [
    {"intensity": np.array(intensity), "gflops": gflops, "bandwidth": bandwidth}
    for intensity, gflops, bandwidth in (
        ([0.125, 2.25, 32.0, 288.0], 200.0, 25.0),
        ([0.125, 2.25, 32.0], 50.0, 160.0),
        ([8.0, 0.5], 64.0, 8.0),
    )
]


def _lower_of_two(intensity, gflops, bandwidth):
    return np.minimum(gflops, bandwidth * intensity)


ROOFLINE_MISTAKES = [
    Mistake(
        "bits: the bandwidth is multiplied by 8. GB/s are bytes already, and the intensity is FLOPs per byte",
        lambda intensity, gflops, bandwidth: np.minimum(gflops, 8 * bandwidth * intensity),
    ),
    Mistake(
        "bits: the bandwidth is divided by 8. GB/s are bytes already, and the intensity is FLOPs per byte",
        lambda intensity, gflops, bandwidth: np.minimum(gflops, bandwidth * intensity / 8),
    ),
    Mistake(
        "the larger of the two is taken. A layer has to stay below both limits: the smaller one counts",
        lambda intensity, gflops, bandwidth: np.maximum(gflops, bandwidth * intensity),
    ),
    Mistake(
        "min(gflops, bandwidth) compares GFLOP/s with GB/s. Bytes become FLOPs by the intensity: bandwidth · intensity",
        lambda intensity, gflops, bandwidth: np.full_like(intensity, min(gflops, bandwidth)),
    ),
    Mistake(
        "the bandwidth is divided by the intensity. GB/s times FLOPs per byte is GFLOP/s",
        lambda intensity, gflops, bandwidth: np.minimum(gflops, bandwidth / intensity),
    ),
    Mistake(
        "the peak is missing: beyond some intensity the arithmetic is the limit, whatever the memory bandwidth is",
        lambda intensity, gflops, bandwidth: bandwidth * intensity,
    ),
    Mistake(
        "the two times are added. The roofline lets them overlap: the slower one alone counts, the smaller rate",
        lambda intensity, gflops, bandwidth: 1 / (1 / gflops + 1 / (bandwidth * intensity)),
    ),
    Mistake(
        "one limit is chosen for all layers. Each layer has its own: np.minimum compares number by number",
        lambda intensity, gflops, bandwidth: (
            np.full_like(intensity, gflops) if (bandwidth * intensity > gflops).any() else bandwidth * intensity
        ),
    ),
    Mistake(
        "scaled so that the largest number reaches the peak. The peak is a limit: what is below it stays as it is",
        lambda intensity, gflops, bandwidth: intensity / intensity.max() * gflops,
    ),
    Mistake(
        "Python's min compares whole arrays, and cannot. np.minimum does it number by number",
        lambda intensity, gflops, bandwidth: min(gflops, bandwidth * intensity),
    ),
    Mistake(
        "np.min finds the smallest number of one array. np.minimum compares two, number by number",
        lambda intensity, gflops, bandwidth: np.min(bandwidth * intensity),
    ),
]

# --- offset_last ---


def _offset(n, c, i, j, shape):
    N, C, H, W = shape
    return int(np.ravel_multi_index((n, i, j, c), (N, H, W, C)))


OFFSET_CASES = [
    {"n": n, "c": c, "i": i, "j": j, "shape": shape}
    for n, c, i, j, shape in (
        (0, 1, 0, 0, (1, 3, 2, 2)),
        (0, 0, 1, 0, (1, 3, 4, 5)),
        (1, 2, 3, 4, (2, 3, 5, 7)),
        (3, 7, 2, 1, (4, 8, 3, 2)),
        (2, 1, 4, 3, (3, 5, 7, 11)),
        (1, 4, 0, 6, (2, 5, 3, 8)),
    )
]


def _steps(n, c, i, j, shape):
    _, C, H, W = shape
    return ((n * H + i) * W + j) * C + c


def _in_order(order):
    """Make the position with the axes in another order in memory, such as "nicj"."""

    def wrong(n, c, i, j, shape):
        index, sizes = dict(zip("ncij", (n, c, i, j), strict=True)), dict(zip("ncij", shape, strict=True))
        return int(np.ravel_multi_index([index[a] for a in order], [sizes[a] for a in order]))

    return wrong


ORDERS = [order for order in itertools.permutations("nijc") if "".join(order) not in {"nijc", "ncij", "njic"}]

OFFSET_MISTAKES = [
    *(
        Mistake(
            f"order: the position with the axes in the order {', '.join(order)}. Channels last, it is n, i, j, c",
            _in_order(order),
        )
        for order in ORDERS
    ),
    Mistake(
        "that is its position with channels first. Channels last, the order of the axes is n, i, j, c",
        lambda n, c, i, j, shape: ((n * shape[1] + c) * shape[2] + i) * shape[3] + j,
    ),
    Mistake(
        "rows and columns: one step down (i) skips a whole row of W pixels, not H",
        lambda n, c, i, j, shape: ((n * shape[2] + i) * shape[2] + j) * shape[1] + c,
    ),
    Mistake(
        "rows and columns are swapped: rows come before columns, n, i, j, c",
        lambda n, c, i, j, shape: ((n * shape[3] + j) * shape[2] + i) * shape[1] + c,
    ),
    Mistake(
        "the image: one image is H·W·C numbers, and n of them come before this one",
        lambda n, c, i, j, shape: (i * shape[3] + j) * shape[1] + c,
    ),
    Mistake(
        "bytes: the answer counts numbers, not bytes of 4",
        lambda n, c, i, j, shape: 4 * _offset(n, c, i, j, shape),
    ),
    Mistake(
        "shape is (N, C, H, W), and it is read as (N, H, W, C)",
        lambda n, c, i, j, shape: ((n * shape[1] + i) * shape[2] + j) * shape[3] + c,
    ),
]

EXERCISES = [
    Exercise("depthwise_intensity", INTENSITY_CASES, _intensity, INTENSITY_MISTAKES, solutions=(_by_hand,)),
    Exercise("attainable", ROOFLINE_CASES, _roofline, ROOFLINE_MISTAKES, solutions=(_lower_of_two,)),
    Exercise("offset_last", OFFSET_CASES, _offset, OFFSET_MISTAKES, solutions=(_steps,)),
]
