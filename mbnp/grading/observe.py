"""Say how wrong results differ from the right ones, where no reason for it was found: that shows where to look.

Each observation holds in every case: right in all cases with padding 0 and wrong in all others, right but for the
border, off by a factor for each channel, too large by a product of sizes.
"""

# mypy: disable-error-code="misc"
# (it cannot infer the types of lambdas with defaults)

import contextlib
import copy
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mbnp.grading.compare import Trial, as_array, differ

PADDING = "is the image padded with zeros, on both sides of rows and columns, and do sizes count them?"
TOLERANCE = 1e-4  # of factors; results are float32


# What to do about errors that NumPy and Python name in words of their own, by what is in their message.
ADVICE = (
    (
        r"remapped shapes.*requested shape",
        "np.pad takes a pair for each axis, and (0, 0) for those that are not padded",
    ),
    (r"remapped shapes", "in np.einsum a letter stands for two axes of different lengths"),
    (
        r"broadcast together with shapes",
        "NumPy compares lengths from the last axis on: they have to be equal, or one of them 1. After a sum, a mean or "
        "a maximum keepdims=True keeps its axis; [..., None] and [:, None] put one of length 1 in",
    ),
    (
        r"could not broadcast input array",
        "what is assigned has another shape than its place on the left: look at where slices begin and end",
    ),
    (
        r"core dimension 0|not aligned",
        "a matrix product sums over the last axis of its left side and the last but one of its right side: their "
        "lengths have to be equal",
    ),
    (
        r"shape-mismatch for sum",
        "np.tensordot sums over the last axes of the first array and the first axes of the second: their lengths have "
        "to be equal. axes=([...], [...]) names others",
    ),
    (r"must provide window_shape", "sliding_window_view has to know the axes of the window, such as axis=(1, 2)"),
    (
        r"converted to a scalar index|arrays used as indices|array element with a sequence",
        "an array stands where one whole number belongs: go through its entries, one after the other",
    ),
    (
        r"truth value of an array",
        "`if`, `and` and `or` take one true or false. np.where chooses for each entry, and & joins masks",
    ),
    (
        r"converted to Python scalars",
        "functions of math, int and float take one number: for arrays use NumPy's, such as np.cos",
    ),
    (
        r"'NoneType' object has no attribute '(append|extend|sort)'",
        "a list's own methods change it and return None: call them without assigning their result",
    ),
    (
        r"cannot access local variable|referenced before assignment",
        "it is used before it has a value: does another name stand there, or is it assigned on another way only?",
    ),
    (
        r"slice indices must be integers|cannot be interpreted as an integer|an integer is required",
        "a float or an array stands where a whole number belongs: / makes a float of two sizes, // keeps them whole",
    ),
    (
        r"can only concatenate|unsupported operand type.*('list'|'tuple')",
        "a list or a tuple stands where one number belongs: take an entry of it, such as shape[k]",
    ),
    (
        r"einstein sum subscripts string contains too (many|few) subscripts",
        "in np.einsum each operand has as many letters as axes",
    ),
    (r"values to unpack", "on the left there must be one name for each value: a shape has one for each axis"),
    (r"name 'np' is not defined", "`import numpy as np` belongs at the beginning of the file"),
)


class Pair(NamedTuple):
    """What came out of a case, and what should have."""

    trial: Trial
    got: np.ndarray
    expected: np.ndarray
    wrong: np.ndarray


def observed(exercise: Any, trials: Sequence[Trial], first: Trial, further: Sequence[Trial] = ()) -> str:
    """Return what all results of a wrong function have in common, in a line, or nothing.

    further: trials of other cases, for which what is said of cases has to hold, too
    """
    every = [*trials, *further]
    failed = [trial for trial in every if trial.problem]
    if first.result is None and first.error is None and first.only_type:
        return "nothing is returned: is the value printed, or is `return` missing on the way that this case takes?"
    if "wrote into" in first.problem:
        return "an operation in place (-=, *=, x[...] = ...) writes into the caller's array: begin with a copy of it"
    pairs = [pair for trial in trials if (pair := _pair(exercise, trial, first.output)) is not None]
    if not any(pair.trial is first for pair in pairs):
        known = (said for form, said in ADVICE if first.error and re.search(form, first.problem))
        shape = next(known, "") or _shape(exercise, first)
        where = _cases(every, failed)
        return "; ".join(filter(None, (shape or first.likely, where)))
    wrong = [pair for pair in pairs if pair.wrong.any()]
    if not wrong:  # in the form only
        return ""
    if len(pairs) < len(trials):  # some have another shape, or raised
        return _cases(every, failed)
    for look in (_sizes, _ends, _by_axis, _places):
        if text := look(pairs if look is _sizes else wrong):
            return text
    return _cases(every, failed) or _order(wrong)


def _pair(exercise: Any, trial: Trial, output: int | None) -> Pair | None:
    expected, got = exercise.reference(**copy.deepcopy(trial.case)), trial.result
    if output is not None and isinstance(expected, tuple):
        if not isinstance(got, tuple | list) or len(got) != len(expected):
            return None
        expected, got = expected[output], got[output]
    a, b = as_array(got), as_array(expected)
    if trial.error or a is None or b is None or a.shape != b.shape:
        return None
    return Pair(trial, a.astype(float), b.astype(float), np.asarray(differ(a, b, exercise.rtol)))


# --- shapes ---


def _shape(exercise: Any, first: Trial) -> str:
    """Say which axes are there that should not be, or are missing, or have another length."""
    expected, got = exercise.reference(**copy.deepcopy(first.case)), first.result
    if first.output is not None and isinstance(expected, tuple):
        expected, got = expected[first.output], got[first.output]
    a, b = as_array(got), as_array(expected)
    if first.error or a is None or b is None or a.shape == b.shape:
        return ""
    mine, wanted = a.shape, b.shape
    if len(mine) < len(wanted):
        for gone in itertools.combinations(range(len(wanted)), len(wanted) - len(mine)):
            if mine == tuple(n for k, n in enumerate(wanted) if k not in gone):
                axes = _axes(gone)
                return (
                    f"{axes} of the result {_is(gone)} gone: summed over, indexed by one number, or only the last kept?"
                )
        if a.size == b.size:
            return "there are as many numbers as there should be, with axes merged: a reshape is missing"
        return "the result has too few axes"
    if len(mine) > len(wanted):
        for more in itertools.combinations(range(len(mine)), len(mine) - len(wanted)):
            if wanted == tuple(n for k, n in enumerate(mine) if k not in more):
                what = "is something to be summed over, or one entry to be taken?"
                return f"{_axes(more)} of the result {_is(more)} too many: {what}"
        return "the result has too many axes"
    wrong = [k for k, (m, n) in enumerate(zip(mine, wanted, strict=True)) if m != n]
    if len(wrong) < len(mine):
        longer = {mine[k] > wanted[k] for k in wrong}
        length = "of another length" if len(longer) > 1 else "longer" if True in longer else "shorter"
        return f"only {_axes(wrong)} of the result {_is(wrong)} {length} than {_it(wrong)} should be"
    return "entries are left out" if a.size < b.size else "there are entries too many"


def _axes(axes: Sequence[int]) -> str:
    *first, last = map(str, axes)
    return f"axes {', '.join(first)} and {last}" if first else f"axis {last}"


def _is(axes: Sequence[int]) -> str:
    return "is" if len(axes) == 1 else "are"


def _it(axes: Sequence[int]) -> str:
    return "it" if len(axes) == 1 else "they"


# --- in which cases ---


def _cases(trials: Sequence[Trial], wrong: Sequence[Trial]) -> str:
    """Say what the right cases have in common, and no wrong one has."""
    right = [trial for trial in trials if not trial.problem]
    for words, few, holds in _conditions(trials[0].case) if right else ():
        if min(len(right), len(wrong)) < few:
            continue  # by chance
        with contextlib.suppress(TypeError, IndexError, ValueError):
            if all(holds(trial.case) for trial in right) and not any(holds(trial.case) for trial in wrong):
                look = PADDING if words == "`padding` is 0" else "look at what that changes"
                return f"it is right in all cases in which {words}, and in no other: {look}"
    return ""


Condition = tuple[str, int, Callable[[dict[str, Any]], bool]]


def _conditions(case: dict[str, Any]) -> Iterator[Condition]:
    """Yield conditions of a case: in words, how many cases it takes on either side to believe it, and the condition."""
    numbers = [name for name, value in case.items() if type(value) is int]
    for name, value in case.items():
        if isinstance(value, bool):
            yield f"`{name}` is true", 1, lambda c, n=name: c[n]
            yield f"`{name}` is false", 1, lambda c, n=name: not c[n]
        elif isinstance(value, int | float):
            for number in (0, 1):
                yield f"`{name}` is {number}", 1, lambda c, n=name, k=number: c[n] == k
                yield f"`{name}` is more than {number}", 2, lambda c, n=name, k=number: c[n] > k
        elif isinstance(value, list | tuple):
            yield f"`{name}` has one entry", 2, lambda c, n=name: len(c[n]) == 1
        elif isinstance(value, np.ndarray):
            for axis in range(value.ndim - 1):
                same = f"axes {axis} and {axis + 1} of `{name}` have the same length"
                yield same, 2, lambda c, n=name, k=axis: c[n].shape[k] == c[n].shape[k + 1]
            if value.dtype.kind == "b":
                yield f"`{name}` is the same everywhere", 2, lambda c, n=name: len(np.unique(c[n])) == 1
                continue
            yield f"`{name}` has no negative number", 2, lambda c, n=name: (c[n] >= 0).all()
            yield f"`{name}` has no two equal numbers", 2, lambda c, n=name: len(np.unique(c[n])) == c[n].size
    for a, b in itertools.permutations(numbers, 2):
        yield f"`{a}` is 0 or `{b}` is 1", 4, lambda c, a=a, b=b: c[a] == 0 or c[b] == 1
        yield f"`{a}` is a multiple of `{b}`", 4, lambda c, a=a, b=b: c[b] > 0 and c[a] % c[b] == 0
        yield f"`{a}` is less than `{b}`", 4, lambda c, a=a, b=b: c[a] < c[b]


# --- which numbers ---


def _in_places(wrong: Sequence[Pair]) -> bool:
    """Return whether some numbers are right and others wrong, in arrays of as many axes, and not by chance."""
    same_axes = len({pair.wrong.ndim for pair in wrong}) == 1
    return same_axes and len(wrong) > 1 and all(1 < pair.wrong.sum() < pair.wrong.size for pair in wrong)


def _ends(wrong: Sequence[Pair]) -> str:
    """Say that along one axis the first or the last entry, the border or every other one is right, or is wrong."""
    if not _in_places(wrong):
        return ""
    for axis in range(wrong[0].wrong.ndim):
        masks: list[Any] = [
            pair.wrong.any(axis=tuple(k for k in range(pair.wrong.ndim) if k != axis)) for pair in wrong
        ]
        if any(len(mask) < 2 for mask in masks):
            continue
        for words, holds in (
            ("only the first entry along axis {} is right", lambda m: not m[0] and m[1:].all()),
            ("only the last entry along axis {} is right", lambda m: not m[-1] and m[:-1].all()),
            ("only the first entry along axis {} is wrong", lambda m: m[0] and not m[1:].any()),
            ("only the last entry along axis {} is wrong", lambda m: m[-1] and not m[:-1].any()),
            ("only the border along axis {} is wrong", lambda m: len(m) > 2 and not m[1:-1].any()),
            (
                "every other entry along axis {} is right",
                lambda m: len(m) > 2 and m[::2].all() != m[1::2].all() == m[1::2].any(),
            ),
            (
                "the first entries along axis {} are right, and in each after them something is wrong: look at what "
                "changes there",
                lambda m: m[-2:].all() and (at := int(m.argmax())) >= 2 and m[at:].all(),
            ),
            (
                "the last entries along axis {} are right, and in each before them something is wrong: look at what "
                "changes there",
                lambda m: m[:2].all() and (at := int(m[::-1].argmax())) >= 2 and m[: len(m) - at].all(),
            ),
        ):
            if all(holds(mask) for mask in masks):
                rest = "" if ":" in words else ": is it treated in another way than the rest?"
                return words.format(axis) + rest
    return ""


def _places(wrong: Sequence[Pair]) -> str:
    """Say which of the numbers are right: those off the border, those where the right one is 0."""
    if not _in_places(wrong):
        return ""
    if all(pair.wrong.ndim == 4 and not pair.wrong[:, 1:-1, 1:-1].any() for pair in wrong):
        return "only numbers at the border of the image are wrong: look at what happens where the padding begins"
    for words, holds in (
        ("where the right result is positive", lambda pair: pair.expected > 0),
        ("where the right result is negative", lambda pair: pair.expected < 0),
        ("where the right result is 0", lambda pair: pair.expected == 0),
        ("where the right result is not 0", lambda pair: pair.expected != 0),
        ("where the right result is 1", lambda pair: pair.expected == 1),
        ("where the right result is not 1", lambda pair: pair.expected != 1),
    ):
        if all((holds(pair) != pair.wrong).all() for pair in wrong):
            return f"it is right {words}, and wrong everywhere else: is a condition or a limit missing, or too many?"
    return ""


# --- by how much ---


def _by_axis(wrong: Sequence[Pair]) -> str:
    """Say that along one axis each entry has a factor, or something added, of its own."""
    axes = min(pair.expected.ndim for pair in wrong)
    for axis in range(axes) if axes > 1 else []:
        rows = [
            (
                np.moveaxis(p.got, axis, 0).reshape(p.got.shape[axis], -1),
                np.moveaxis(p.expected, axis, 0).reshape(p.got.shape[axis], -1),
            )
            for p in wrong
            if np.isfinite(p.got).all()
        ]
        if len(rows) < len(wrong) or any(b.shape[1] < 4 or b.std() == 0 for _, b in rows):
            continue
        each = f"each entry along axis {axis} has"
        look = "look at the numbers of which there is one for each, such as a mean, a scale or a bias"
        if all(_near(a - (a - b).mean(1, keepdims=True), b) for a, b in rows):
            return f"{each} something of its own added to all its numbers: {look}"
        fits = [
            [np.polyfit(y, x, 1) if y.std() > 0 else np.array([1.0, 0.0]) for x, y in zip(a, b, strict=True)]
            for a, b in rows
        ]
        lines = [
            np.stack([f[0] * y + f[1] for f, y in zip(fit, b, strict=True)])
            for fit, (_, b) in zip(fits, rows, strict=True)
        ]
        if all(_near(line, a) for line, (a, _) in zip(lines, rows, strict=True)):
            if all(
                abs(f[1]) <= TOLERANCE * np.abs(b).max() for fit, (_, b) in zip(fits, rows, strict=True) for f in fit
            ):
                return f"{each} a factor of its own in all its numbers: {look}"
            if all(_near(a.mean(1), b.mean(1)) for a, b in rows):
                by = "look at what its numbers are multiplied with, or divided by"
                return f"{each} the right mean and another spread: {by}"
            return f"{each} another mean and another spread: look at brackets, and at what is subtracted and divided"
    return ""


def _near(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() <= TOLERANCE * max(np.abs(b).max(), 1e-30))


def _sizes(pairs: Sequence[Pair]) -> str:
    """Say that all results are too large, or too small, by a product of sizes, as a factor or added."""
    factors, shifts = [], []
    for pair in pairs:
        got, expected = pair.got.ravel(), pair.expected.ravel()
        if not got.size or not np.isfinite(got).all() or not expected.any():
            return ""
        factor = float((got * expected).sum() / (expected**2).sum())
        factors.append(factor if _near(factor * expected, got) else np.nan)
        shifts.append(
            float(got[0] - expected[0]) if np.ptp(got - expected) <= TOLERANCE * np.abs(expected).max() else np.nan
        )
    sizes = _quantities([pair.trial for pair in pairs])
    for values, large, small in (
        (np.array(factors), "every result is too large by the factor {}", "every result is too small by the factor {}"),
        (np.array(shifts), "every result is too large by {}", "every result is too small by {}"),
    ):
        if np.isnan(values).any() or len(np.unique(values)) < 2:
            continue
        sign = [
            (large, values),
            (small, -values if large.endswith("by {}") else 1 / np.where(values == 0, np.nan, values)),
        ]
        for words, wanted in sign:
            if product := _product(wanted, sizes):
                return (
                    words.format(f"`{product}`") + ": does something count more often, or less often, than it should?"
                )
    return ""


def _quantities(trials: Sequence[Trial]) -> dict[str, np.ndarray]:
    """Return the numbers among the arguments, and the lengths of their axes: by name, one for each case."""
    found = {}
    for name, value in trials[0].case.items():
        if type(value) in (int, float):
            found[name] = np.array([float(trial.case[name]) for trial in trials])
        elif isinstance(value, list | tuple):
            found[f"len({name})"] = np.array([float(len(trial.case[name])) for trial in trials])
        elif isinstance(value, np.ndarray):
            for axis in range(value.ndim):
                found[f"{name}.shape[{axis}]"] = np.array([float(trial.case[name].shape[axis]) for trial in trials])
    return {name: values for name, values in found.items() if len(np.unique(values)) > 1 or values[0] not in (0, 1)}


def _product(wanted: np.ndarray, sizes: dict[str, np.ndarray]) -> str:
    """Return a product of at most three quantities, or twice or half of one, that has these values."""
    found = []
    for count in (1, 2, 3):
        for names in itertools.combinations_with_replacement(sizes, count):
            values = np.prod([sizes[name] for name in names], axis=0)
            for number in (1, 2, 0.5):
                if (np.abs(number * values - wanted) <= TOLERANCE * np.abs(wanted)).all():
                    text = " * ".join(([f"{number:g}"] if number != 1 else []) + list(names))
                    found.append((len({name.split(".")[0] for name in names}), count, text))
    return min(found)[2] if found else ""  # of one array rather than of several


def _order(wrong: Sequence[Pair]) -> str:
    """Say that the results are a function of the right ones: another function stands at the end."""
    if any(pair.got.size < 8 or np.isnan(pair.got).any() for pair in wrong):
        return ""
    got = np.concatenate([pair.got.ravel() for pair in wrong])  # one function for all cases
    expected = np.concatenate([pair.expected.ravel() for pair in wrong])
    order = np.argsort(expected, kind="stable")
    steps, rises = np.diff(got[order]), np.diff(expected[order])
    equal = rises <= TOLERANCE * np.abs(expected).max()
    if (steps < -TOLERANCE * np.abs(got).max()).any() or len(np.unique(got.round(6))) < 3:
        return ""
    if (np.abs(steps[equal]) > 100 * TOLERANCE * np.abs(got).max()).any():
        return ""
    return (
        "the numbers are larger where they should be larger, and have other values: another function stands at the "
        "end, or there is one too many, or one is left out (exp, log, a root, a square, sigmoid)"
    )
