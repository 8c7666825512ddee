"""The exercises of lesson 7: the cost of a separable block, and two networks compared over several seeds."""

import math

import numpy as np

from mbnp import cost
from mbnp.grading.exercise import Case, Exercise, Mistake

# --- cost_ratio ---

RATIOS = [
    {"k": k, "c_in": c_in, "c_out": c_out}
    for k, c_in, c_out in ((3, 32, 64), (3, 3, 10), (5, 16, 16), (3, 4, 1), (1, 8, 4), (7, 6, 96))
]


def _ratio(k, c_in, c_out):
    return 1 / c_out + 1 / k**2


def _ratio_of_costs(k, c_in, c_out):
    depthwise = k * k * c_in
    pointwise = c_in * c_out
    standard = k * k * c_in * c_out
    return (depthwise + pointwise) / standard


RATIO_MISTAKES = [
    Mistake(
        "integer division: // rounds down, and a ratio below 1 becomes 0. Use /",
        lambda k, c_in, c_out: (k * k * c_in + c_in * c_out) // (k * k * c_in * c_out),
    ),
    Mistake(
        "integer division: 1 // k**2 is 0. Use /",
        lambda k, c_in, c_out: 1 / c_out + 1 // k**2,
    ),
    Mistake(
        "integer division: 1 // c_out is 0. Use /",
        lambda k, c_in, c_out: 1 // c_out + 1 / k**2,
    ),
    Mistake(
        "upside down: it is standard over separable; the ratio should be separable over standard, below 1 "
        "where it saves",
        lambda k, c_in, c_out: (k * k * c_in * c_out) / (k * k * c_in + c_in * c_out),
    ),
    Mistake(
        "channels: the depthwise convolution has one kernel for each of the c_in channels, k*k*c_in, and c_in cancels. "
        "What remains is 1/c_out, not 1/c_in",
        lambda k, c_in, c_out: 1 / c_in + 1 / k**2,
    ),
    Mistake(
        "1/k for 1/k**2: the kernel has k rows and k columns",
        lambda k, c_in, c_out: 1 / c_out + 1 / k,
    ),
    Mistake(
        "one fraction: 1/a + 1/b is not 1/(a + b)",
        lambda k, c_in, c_out: 1 / (c_out + k**2),
    ),
    Mistake(
        "a product for a sum: the two convolutions run one after the other, so their costs are added",
        lambda k, c_in, c_out: 1 / c_out * 1 / k**2,
    ),
    Mistake(
        "depthwise: its cost is missing, 1/c_out of the standard convolution's",
        lambda k, c_in, c_out: 1 / k**2,
    ),
    Mistake(
        "pointwise: its cost is missing, 1/k**2 of the standard convolution's",
        lambda k, c_in, c_out: 1 / c_out,
    ),
    Mistake(
        "operator precedence: a / k * k * c divides once and then multiplies. Put the denominator in brackets",
        lambda k, c_in, c_out: (k * k * c_in + c_in * c_out) / k * k * c_in * c_out,
    ),
]

# --- paired_difference ---


def _paired_difference(first, second):
    d = second - first
    return float(d.mean()), float(d.std(ddof=1) / math.sqrt(len(d)))


def _run_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases = [{"first": np.array([70.0, 74.0, 72.0]), "second": np.array([75.0, 80.0, 76.0])}]
    for count, gap in ((2, 1.5), (5, -3.0), (8, 0.2)):
        offset = 4 * rng.standard_normal(count)  # of the seed, which both networks share
        first, second = 80 + offset + rng.standard_normal((2, count))
        cases.append({"first": first, "second": second + gap})
    return cases


def _with_error(error, centre=np.mean):
    """Return the difference, and an `error` computed from (d, first, second)."""

    def wrong(first, second):
        d = second - first
        return float(centre(d)), float(error(d, first, second))

    return wrong


def _of_pairs(first, second):
    d = second - first
    return d.mean(), d.std(ddof=1) / np.sqrt(len(d))


PAIR_MISTAKES = [
    Mistake(
        "sign: absolute differences are averaged. Where the second is worse, that counts against it: second - first "
        "as it is",
        lambda first, second: _with_error(
            lambda d, a, b: np.abs(d).std(ddof=1) / math.sqrt(len(d)), lambda d: np.abs(d).mean()
        )(first, second),
    ),
    Mistake(
        "the two results are exchanged: the difference comes first, then its error",
        lambda first, second: _paired_difference(first, second)[::-1],
    ),
    Mistake(
        "relative: the differences are divided by the first network's accuracies. They are in points already",
        lambda first, second: (
            float(((second - first) / first).mean()),
            float(((second - first) / first).std(ddof=1) / math.sqrt(len(first))),
        ),
    ),
    Mistake(
        "standard deviation for error: this is how far single runs are apart. The mean of S runs is known "
        "better: divide by sqrt(S)",
        _with_error(lambda d, first, second: d.std(ddof=1)),
    ),
    Mistake(
        "divided by S, as np.std does by default. The mean was taken from the same numbers, which leaves S - 1: ddof=1",
        _with_error(lambda d, first, second: d.std() / math.sqrt(len(d))),
    ),
    Mistake(
        "np.std divides by S by default (ddof=1 divides by S - 1), and the error of a mean of S runs "
        "is smaller again by sqrt(S)",
        _with_error(lambda d, first, second: d.std()),
    ),
    Mistake(
        "divided by S; the error of a mean falls with sqrt(S)",
        _with_error(lambda d, first, second: d.std(ddof=1) / len(d)),
    ),
    Mistake(
        "variance for standard deviation: the error has the unit of an accuracy, so take the root: std, not var",
        _with_error(lambda d, first, second: d.var(ddof=1) / len(d)),
    ),
    Mistake(
        "not paired: run s of both networks has the same seed. Take the difference of each pair first, then "
        "its standard deviation",
        _with_error(
            lambda d, first, second: math.sqrt((first.var(ddof=1) + second.var(ddof=1)) / len(d)),
        ),
    ),
    Mistake(
        "not paired: run s of both networks has the same seed. Take the difference of each pair first, then "
        "its standard deviation (with ddof=1)",
        _with_error(lambda d, first, second: math.sqrt((first.var() + second.var()) / len(d))),
    ),
    Mistake(
        "sign: it is first minus second. It should be by how much the second is better: second - first",
        lambda first, second: _paired_difference(second, first),
    ),
    Mistake(
        "the difference of the standard deviations is none of the differences. Take the difference of each pair "
        "first, then its standard deviation",
        _with_error(lambda d, first, second: (second.std(ddof=1) - first.std(ddof=1)) / math.sqrt(len(d))),
    ),
    Mistake(
        "median for mean: the error that goes with it is the mean's",
        _with_error(lambda d, first, second: d.std(ddof=1) / math.sqrt(len(d)), np.median),
    ),
]

EXERCISES = [
    Exercise(
        "cost_ratio",
        RATIOS,
        lambda k, c_in, c_out: cost.separable_ratio(k, c_out),
        RATIO_MISTAKES,
        solutions=(_ratio, _ratio_of_costs),
    ),
    Exercise(
        "paired_difference",
        _run_cases,
        _paired_difference,
        PAIR_MISTAKES,
        rtol=1e-9,
        outputs=("difference", "error"),
        solutions=(_of_pairs,),
    ),
]
