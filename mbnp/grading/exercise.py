"""One exercise: its cases, the reference, and the mistakes that people make.

A reader's function is called on copies of each case's arguments. Its result is compared with that of mbnp's own
function and, where there is one, with a golden value that PyTorch computed. If it is wrong, the known mistakes are
run on the same case: the one that gives exactly the reader's result is the likely reason.
"""

import contextlib
import copy
import io
import itertools
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Case = dict[str, Any]


class Mistake(NamedTuple):
    """A wrong function that people write, and the message for it: the reason, and what to check."""

    message: str
    wrong: Callable


@dataclass(frozen=True)
class Exercise:
    """A function for the reader to write.

    name: the function's
    cases: the arguments of each trial by their names, or a function that makes them from a seed
    reference: mbnp's own function, called with the same arguments
    mistakes: the first one that explains all results, or else the first wrong one, is reported
    rtol: the largest error of a number, relative to the largest of the expected array
    outputs: the names of the results, if there is a tuple of them, such as ("dx", "dw", "db")
    """

    name: str
    cases: Sequence[Case] | Callable[[int], Sequence[Case]]
    reference: Callable
    mistakes: Sequence[Mistake] = ()
    rtol: float = 1e-5
    outputs: Sequence[str] = ()

    def make_cases(self) -> list[Case]:
        """Return the cases, the same ones every time."""
        return list(self.cases(0) if callable(self.cases) else self.cases)

    def output_name(self, k: int) -> str:
        """Return the name of the k-th of several results."""
        return self.outputs[k] if k < len(self.outputs) else f"result {k}"


@dataclass
class Outcome:
    """The result for one exercise. `status` is "solved", "not yet" or "wrong"; the rest says what is wrong.

    problem: one line, such as "y[0, 2, 1, 3] is 0.5, expected 1.25 (3 of 24 numbers are off)"
    case: the arguments for which it happened, in words
    likely: the likely reason, if there is one
    printed: what the function printed
    """

    name: str
    status: str
    problem: str = ""
    case: str = ""
    likely: str = ""
    printed: str = ""


@dataclass
class _Trial:
    """One call: the result, or the exception, and what is wrong with it."""

    case: Case
    result: Any = None
    error: BaseException | None = None
    problem: str = ""
    likely: str = ""
    only_type: bool = False  # the numbers are right, their type is not


def grade(exercise: Exercise, function: Callable, golden: Mapping[str, np.ndarray] | None = None) -> Outcome:
    """Run the reader's function on every case. golden: arrays by the keys that `golden_key` gives."""
    outcome = Outcome(exercise.name, "solved")
    trials: list[_Trial] = []
    with captured() as printed:
        for number, case in enumerate(exercise.make_cases()):
            try:
                trials.append(_try(exercise, function, case))
            except StoppedError as error:
                outcome.status, outcome.problem, outcome.case = "wrong", str(error), _describe(case)
                break
            if not trials[-1].problem:
                _compare(exercise, trials[-1], number, golden or {})
            if isinstance(trials[-1].error, NotImplementedError):
                break
    outcome.printed = printed.getvalue()
    failed = [trial for trial in trials if trial.problem]
    if failed and outcome.status == "solved":
        first = failed[0]
        if isinstance(first.error, NotImplementedError):
            return Outcome(exercise.name, "not yet", printed=outcome.printed)
        outcome.status, outcome.problem = "wrong", first.problem
        outcome.case = _describe(first.case)
        outcome.likely = _known_mistake(exercise, trials, first) or first.likely
    return outcome


def golden_key(name: str, number: int, output: str = "") -> str:
    """Return the key of a golden array: the exercise, the case from 0, and the output where there are several."""
    return f"{name}.{number}.{output}" if output else f"{name}.{number}"


# --- one call ---


def _try(exercise: Exercise, function: Callable, case: Case) -> _Trial:
    trial = _Trial(case)
    arguments = copy.deepcopy(case)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # show NumPy's warnings, such as of an overflow, to the reader
            trial.result = function(**arguments)
    except NotImplementedError as error:
        trial.error, trial.problem = error, "not yet"
    except UnusableError as error:
        trial.error, trial.problem = error, str(error)
    except SystemExit as error:
        trial.error, trial.problem = error, "it ended the program (sys.exit): return the result instead"
    except RecursionError as error:
        trial.error, trial.problem = error, "it calls itself without an end (RecursionError)"
    except Exception as error:
        trial.error = error
        what = f"{type(error).__name__}: {error}".strip(": ").splitlines()[0]
        trial.problem = f"it raised {what}{_line_of(error, function)}"
    else:
        touched = [name for name in case if not _same(case[name], arguments[name])]
        if touched:
            trial.problem = f"it wrote into its argument {touched[0]}, which belongs to the caller: work on a copy"
    return trial


def _line_of(error: BaseException, function: Callable) -> str:
    """Return the last line of the reader's file in the error's traceback, or what another process said it was."""
    if isinstance(where := getattr(error, "where", None), str):
        return where
    code = getattr(function, "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if code and frame.filename == code.co_filename]
    return f" (line {own[-1].lineno}: {own[-1].line})" if own else ""


class StoppedError(BaseException):
    """The function did not come back: it ended its process, or exceeded a limit. `line` is the reader's, or 0."""

    def __init__(self, why: str, line: int = 0) -> None:
        super().__init__(why)
        self.line = line


class UnusableError(Exception):
    """The function cannot be called as it is, or used up the memory; the message is the whole problem."""


@contextlib.contextmanager
def captured() -> Iterator[io.StringIO]:
    """Yield the text that the block prints, which does not reach the screen."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        yield text


# --- comparing ---


def _compare(exercise: Exercise, trial: _Trial, number: int, golden: Mapping[str, np.ndarray]) -> None:
    expected = exercise.reference(**copy.deepcopy(trial.case))
    several = isinstance(expected, tuple)
    got = trial.result
    if got is None and expected is not None:
        trial.problem = "it returned None: does it end with `return`?"
        return
    if several and (not isinstance(got, tuple | list) or len(got) != len(expected)):
        names = ", ".join(exercise.outputs) or f"{len(expected)} results"
        trial.problem = f"it returned {_kind(got)}, expected a tuple of {len(expected)}: {names}"
        return
    for k, (mine, yours) in enumerate(zip(expected, got, strict=True) if several else [(expected, got)]):
        name = exercise.output_name(k) if several else ""
        _compare_one(exercise, trial, name, mine, yours)
        torchs = golden.get(golden_key(exercise.name, number, name))
        if not trial.problem and torchs is not None:
            _compare_one(exercise, trial, name, _like(torchs, mine), yours)
            if trial.problem:
                trial.problem += "; that is PyTorch's value, while mbnp's own agrees with yours: please report it"
        if trial.problem:
            return


def _like(golden: np.ndarray, mine: Any) -> Any:
    """Convert a golden array to what mbnp returns: an array of its dtype, a number, or a tuple of numbers."""
    if isinstance(mine, np.ndarray | np.generic):
        return golden.astype(mine.dtype)
    return type(mine)(golden.tolist())


def _compare_one(exercise: Exercise, trial: _Trial, name: str, expected: Any, got: Any) -> None:
    it = name or "the result"
    if not isinstance(expected, np.ndarray | np.generic | float):
        trial.problem, trial.likely = _compare_exact(it, expected, got)
        trial.only_type = bool(trial.likely)
        return
    array, wanted = _as_array(got), np.asarray(expected)
    if array is None:
        trial.problem = f"{it} is {_kind(got)}, expected {_kind(expected)}"
    elif array.shape != wanted.shape:
        trial.problem = f"{it} has the shape {array.shape}, expected {wanted.shape}"
        if sorted(array.shape) == sorted(wanted.shape):
            trial.likely = "the axes are in another order: mbnp keeps channels last"
    elif (differs := _differs(array, wanted, exercise.rtol)).any():
        trial.problem, trial.likely = (
            _values(name or "result", array, wanted, differs),
            _guess(array, wanted, exercise),
        )
    elif isinstance(expected, np.ndarray) and array.dtype != wanted.dtype:
        trial.problem = f"{it} is {array.dtype}, expected {wanted.dtype}; its numbers are right"
        trial.only_type = True
        if array.dtype == np.float64:
            trial.likely = (
                "float64 promotion: np.zeros, np.ones, np.arange and np.array([0.5]) are float64 by default, and any "
                "operation with a float64 array gives float64. Give them dtype=x.dtype"
            )
        elif wanted.dtype.kind == "f" and array.dtype.kind in "iu":
            trial.likely = "whole numbers: was // used for /, or an array made of integers?"


def _compare_exact(it: str, expected: Any, got: Any) -> tuple[str, str]:
    """Compare counts, shapes, names: return the problem and its likely reason, both empty if they are equal."""
    plain = got.item() if isinstance(got, np.generic) or (isinstance(got, np.ndarray) and got.ndim == 0) else got
    if isinstance(plain, tuple | list) and isinstance(expected, tuple | list):
        plain = type(expected)(item.item() if isinstance(item, np.generic) else item for item in plain)
    if isinstance(expected, int) and isinstance(plain, float) and plain == expected:
        return (
            f"{it} is the float {plain!r}, expected the whole number {expected!r}",
            "a count: // in place of /",
        )
    try:
        equal = type(plain) is type(expected) and bool(plain == expected)
    except ValueError:
        equal = False
    return ("", "") if equal else (f"{it} is {_short(got)}, expected {_short(expected)}", "")


def _differs(got: np.ndarray, expected: np.ndarray, rtol: float) -> np.ndarray:
    """Return where the two differ by more than rtol times the largest expected number; NaN equals only NaN."""
    if expected.dtype.kind in "biuSU" and got.dtype.kind in "biuSU":
        return np.asarray(got != expected)
    finite = np.abs(expected[np.isfinite(expected)])
    scale = float(finite.max(initial=0.0)) or 1.0
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(got.astype(np.float64) - expected.astype(np.float64)) <= rtol * scale
    return ~(near | (got == expected) | (np.isnan(got) & np.isnan(expected)))


def _values(name: str, got: np.ndarray, expected: np.ndarray, differs: np.ndarray) -> str:
    """Describe the worst number: its position, its value and the expected one."""
    unwanted = np.isnan(got) & ~np.isnan(expected)
    gap = np.where(unwanted, np.inf, np.abs(got.astype(np.float64) - expected))
    worst = np.unravel_index(int(np.argmax(np.where(differs, gap, -1.0))), expected.shape)
    where = f"{name}[{', '.join(map(str, worst))}]" if worst else f"the {name}" if name == "result" else name
    text = f"{where} is {_number(got[worst])}, expected {_number(expected[worst])}"
    return text + (f" ({differs.sum()} of {differs.size} numbers are off)" if worst else "")


def _guess(got: np.ndarray, expected: np.ndarray, exercise: Exercise) -> str:
    """Return a likely reason that can apply to any operation, or nothing."""
    if np.isnan(got).any() and not np.isnan(expected).any():
        return "NaN: a division by zero, the root or logarithm of a negative number, or np.empty never filled"
    if not np.isfinite(got).all():
        return "infinite: a division by zero, or exp of a large number"
    if not got.any():
        return "everything is 0: is the result ever written to?"

    def same(other: np.ndarray) -> bool:
        return not _differs(got, other, exercise.rtol).any()

    if expected.size > 1:
        for a, b in itertools.combinations(range(expected.ndim), 2):
            if expected.shape[a] == expected.shape[b] and same(expected.swapaxes(a, b)):
                return f"axes {a} and {b} are swapped"
        for axis in range(expected.ndim):
            if same(np.flip(expected, axis)):
                return f"axis {axis} runs backwards"
    if expected.any():
        factor = float((got.astype(np.float64) * expected).sum() / (expected.astype(np.float64) ** 2).sum())
        if same(factor * expected) and (expected.size > 1 or factor == -1):
            if abs(factor + 1) < 1e-6:
                return "the sign is wrong"
            return f"every number is {factor:.6g} times what it should be: a mean for a sum, or a factor left out?"
    return ""


# --- known mistakes ---


def _known_mistake(exercise: Exercise, trials: Sequence[_Trial], first: _Trial) -> str:
    """Return the message of the mistake that explains every trial, else of one that explains the first failure."""
    for explained in (trials, [first]):
        for mistake in exercise.mistakes:
            if all(_explains(mistake, trial, exercise.rtol) for trial in explained):
                return mistake.message
    return ""


def _explains(mistake: Mistake, trial: _Trial, rtol: float) -> bool:
    arguments = copy.deepcopy(trial.case)
    try:
        with np.errstate(all="ignore"):
            result = mistake.wrong(**arguments)
    except Exception as error:
        return type(error) is type(trial.error) and str(error) == str(trial.error)
    touched = any(not _same(trial.case[name], arguments[name]) for name in trial.case)
    if trial.error is not None or touched != ("wrote into" in trial.problem):
        return False
    return _equal(result, trial.result, rtol) and (not trial.only_type or _types(result) == _types(trial.result))


def _types(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_types(item) for item in value]
    return value.dtype if isinstance(value, np.ndarray | np.generic) else type(value)


def _equal(a: Any, b: Any, rtol: float) -> bool:
    """Return whether the numbers are the same, whatever their dtype."""
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_equal(x, y, rtol) for x, y in zip(a, b, strict=True))
    if a is None or b is None or isinstance(a, str | dict) or isinstance(b, str | dict):
        return bool(a == b)
    first, second = _as_array(a), _as_array(b)
    if first is None or second is None or first.shape != second.shape:
        return False
    return not _differs(second, first, rtol).any()


def _same(a: Any, b: Any) -> bool:
    """Return whether the two are exactly the same, NaN included."""
    if isinstance(a, np.ndarray):
        same_kind = isinstance(b, np.ndarray) and a.shape == b.shape and a.dtype == b.dtype
        return bool(same_kind and np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return type(a).__eq__ is object.__eq__ or bool(a == b)  # objects without a meaning of equality pass


# --- in words ---


def _as_array(value: Any) -> np.ndarray | None:
    """Return `value` as an array of numbers, or None if it is not one."""
    if value is None or isinstance(value, str | dict | set) or callable(value):
        return None
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):
        return None
    return array if array.dtype.kind in "biuf" else None


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        kind = "an array" if value.dtype.kind in "fiub" else f"a {value.dtype} array"
        return f"{kind} of shape {value.shape}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int | float | np.generic):
        return f"the number {_number(value)}"
    return f"of the type {type(value).__name__}"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | np.integer) else f"{float(value):.6g}"


def _short(value: Any) -> str:
    text = repr(value.tolist() if isinstance(value, np.generic | np.ndarray) else value)
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."


def _describe(case: Case) -> str:
    """Describe the arguments: arrays by their shape, others as they are."""

    def text_of(value: Any) -> str:
        if isinstance(value, (list, tuple)) and any(isinstance(x, np.ndarray) for x in value):
            shapes = ", ".join(text_of(x) for x in value[:3])
            return f"[{shapes}{', ...' if len(value) > 3 else ''}]"
        if not isinstance(value, np.ndarray):
            return _short(value)
        text = " ".join(np.array2string(value, precision=3, separator=", ").split())
        return text if value.size <= 9 else str(value.shape)

    return ", ".join(f"{name} {text_of(value)}" for name, value in case.items())
