"""Compare what a reader's function returned with what it should be, and describe the difference in one line."""

import copy
import itertools
import types
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

EVERYTHING_ZERO = "everything is 0: is the result ever written to?"


@dataclass(eq=False)
class Trial:
    """One call: the result, or the exception, and what is wrong with it."""

    case: dict[str, Any]
    result: Any = None
    error: BaseException | None = None
    problem: str = ""
    likely: str = ""
    only_type: bool = False  # the numbers are right and their type is not, or there are none
    output: int | None = None  # which of several results is wrong


class StoppedError(BaseException):
    """The function did not come back: it ended its process, or exceeded a limit. `line` is the reader's, or 0."""

    def __init__(self, why: str, line: int = 0) -> None:
        super().__init__(why)
        self.line = line


class DroppedError(BaseException):
    """Nobody waits for the result any more."""


# --- comparing ---


def golden_key(name: str, number: int, output: str = "") -> str:
    """Return the key of a golden array: the exercise, the case from 0, and the output where there are several."""
    return f"{name}.{number}.{output}" if output else f"{name}.{number}"


def compare(exercise: Any, trial: Trial, number: int, golden: Mapping[str, np.ndarray]) -> None:
    """Write into `trial` what is wrong with its result, if anything is."""
    expected = exercise.reference(**copy.deepcopy(trial.case))
    several = isinstance(expected, tuple)
    got = trial.result
    if got is None and expected is not None:
        trial.problem, trial.only_type = "it returned None: does it end with `return`?", True
        return
    if several and (not isinstance(got, tuple | list) or len(got) != len(expected)):
        names = ", ".join(exercise.outputs) or f"{len(expected)} results"
        due = f"all of them are due, with commas between: return {names}"
        trial.problem = f"it returned {_kind(got)}, expected a tuple of {len(expected)}: {names}"
        trial.likely, trial.only_type = _too_many(expected, got, exercise.rtol) or _form(got) or due, True
        return
    if not several and isinstance(expected, np.ndarray) and (more := _too_many((expected,), got, exercise.rtol)):
        trial.problem, trial.likely = f"it returned {_kind(got)}, expected {_kind(expected)}", more
        trial.only_type = True
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
            trial.output = k if several else None
            return


def _too_many(expected: tuple[Any, ...], got: Any, rtol: float) -> str:
    """Say that the right results are returned, and others behind them; or nothing."""
    due = len(expected)
    if not isinstance(got, tuple | list) or len(got) <= due or not equal(expected, got[:due], rtol):
        return ""
    return f"the first {due} are right: return only these" if due > 1 else "the first one is right: return it alone"


def _like(golden: np.ndarray, mine: Any) -> Any:
    """Convert a golden array to what mbnp returns: an array of its dtype, a number, or a tuple of numbers."""
    if isinstance(mine, np.ndarray | np.generic):
        return golden.astype(mine.dtype)[()]  # a number where mbnp returns one
    return type(mine)(golden.tolist())


def _compare_one(exercise: Any, trial: Trial, name: str, expected: Any, got: Any) -> None:
    it = name or "the result"
    if not isinstance(expected, np.ndarray | np.generic | float):
        trial.problem, trial.likely = _compare_exact(it, expected, got)
        trial.only_type = bool(trial.likely)
        return
    array, wanted = as_array(got), np.asarray(expected)
    if array is None:
        trial.problem, trial.likely = f"{it} is {_kind(got)}, expected {_kind(expected)}", _form(got)
        trial.only_type = True
    elif array.shape != wanted.shape:
        trial.problem = f"{it} has the shape {array.shape}, expected {wanted.shape}"
        trial.likely = (_form(got) if isinstance(got, tuple) else "") or _guess_shape(array.shape, wanted.shape)
    elif (differs := differ(array, wanted, exercise.rtol)).any():
        trial.problem = _values(name or "result", array, wanted, differs)
        trial.likely = _guess(array, wanted, exercise)
    elif isinstance(expected, np.ndarray) and array.dtype != wanted.dtype:
        trial.problem = f"{it} is {array.dtype}, expected {wanted.dtype}; its numbers are right in this case"
        trial.likely, trial.only_type = _guess_type(got, array.dtype, wanted.dtype), True
        if isinstance(got, list | tuple):
            kind = f"a {type(got).__name__}, expected an array of {wanted.dtype}"
            trial.problem = f"{it} is {kind}; its numbers are right in this case"


def _guess_type(got: Any, mine: np.dtype, wanted: np.dtype) -> str:
    """Return what to do about an array whose numbers are right, and their dtype is not."""
    if isinstance(got, list | tuple):
        return f"a list has no dtype of its own: make it an array, np.array(..., dtype=np.{wanted})"
    if wanted.kind == "f" and mine.kind == "f":
        if mine.itemsize < wanted.itemsize:
            return f"digits are lost: {mine} has fewer than {wanted}. Make arrays with the dtype of the input"
        return (
            "float64 promotion: np.zeros, np.ones, np.eye, np.arange and np.array([0.5]) are float64 by default, and "
            "any operation with a float64 array gives float64. Give them the dtype of the input, dtype=..."
        )
    if wanted.kind == "f":
        return "whole numbers: was // used for /, or an array made of integers?"
    if wanted.kind == "b":
        return "true or false is asked for: return the comparison itself, or convert by .astype(bool)"
    if mine.kind == "f":
        return "whole numbers as floats: // keeps them whole, and np.zeros, np.ones and np.empty take a dtype"
    return f"another kind of whole number: convert it by .astype(np.{wanted})"


def _guess_shape(mine: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Return which axes are exchanged or superfluous, as far as the two shapes tell."""
    if len(mine) == len(wanted) and sorted(mine) == sorted(wanted):
        moved = [axis for axis in range(len(mine)) if mine[axis] != wanted[axis]]
        if len(moved) == 2 and (len(mine) != 4 or 3 not in moved):
            return f"axes {moved[0]} and {moved[1]} are in the other order"
        return "the axes are in another order" + (": mbnp keeps channels last" if len(mine) == 4 else "")
    if [n for n in mine if n != 1] == [n for n in wanted if n != 1]:
        more = len(mine) > len(wanted)
        return "an axis of length 1 is left over: keepdims, or x[None]?" if more else "an axis of length 1 is gone"
    return ""


def _compare_exact(it: str, expected: Any, got: Any) -> tuple[str, str]:
    """Compare counts, shapes, names: return the problem, empty if they are equal, and what to do about the form."""
    plain = got.item() if isinstance(got, np.generic) or (isinstance(got, np.ndarray) and got.ndim == 0) else got
    if isinstance(plain, tuple | list) and isinstance(expected, tuple | list):
        plain = type(expected)(item.item() if isinstance(item, np.generic) else item for item in plain)
    if type(plain) is type(expected) and same(plain, expected):
        return "", ""
    if isinstance(expected, int) and isinstance(plain, float) and plain == expected:
        return (
            f"{it} is the float {plain!r}, expected the whole number {expected!r}",
            "a count: // in place of /",
        )
    if isinstance(expected, int) and isinstance(plain, bool):
        return f"{it} is {plain}, expected {expected!r}", "that is true or false. Is a comparison returned?"
    problem = f"{it} is {_short(got)}, expected {_short(expected)}"
    return problem, "" if isinstance(plain, int | float) else _form(got)


def _form(got: Any) -> str:
    """Return what to do about a result that is no number or array."""
    if isinstance(got, str | bytes):
        return "that is text: return the value itself, without quotes, str() or an f-string"
    if isinstance(got, Mapping):
        return "that is a dict: return its value, or its values in a tuple"
    if isinstance(got, set | frozenset):
        return "that is a set, which has no order: return an array"
    if isinstance(got, types.GeneratorType | map | filter | zip | range):
        return "that has no values until it is gone through: np.array(list(...))"
    if isinstance(got, type) or callable(got):
        return "that is a function and not its result: are the brackets missing, f(...)?"
    if isinstance(got, np.ndarray) and got.dtype == object:
        return "an array of Python objects: it is made of rows of different lengths, or holds None"
    if isinstance(got, list | tuple) and len(got) == 1:
        return "one value in a list or tuple: return the value itself (a comma at the end makes a tuple)"
    if isinstance(got, tuple) and any(isinstance(item, np.ndarray) for item in got):
        return "several values are returned, with commas between, and one is expected: return it alone"
    if isinstance(got, list | tuple) and as_array(got) is None:
        return "its items are not all numbers, or its rows have different lengths"
    if isinstance(got, np.ndarray) and got.size == 1:
        return "an array of one number: return the number itself, a.item()"
    return ""


def differ(got: np.ndarray, expected: np.ndarray, rtol: float) -> np.ndarray:
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
    digits = next(n for n in (6, 9, 17) if n == 17 or _number(got[worst], n) != _number(expected[worst], n))
    text = f"{where} is {_number(got[worst], digits)}, expected {_number(expected[worst], digits)}"
    return text + (f" ({differs.sum()} of {differs.size} numbers are off)" if worst else "")


def _guess(got: np.ndarray, expected: np.ndarray, exercise: Any) -> str:
    """Return a likely reason that can apply to any operation, or nothing."""
    if np.isnan(got).any() and not np.isnan(expected).any():
        return (
            "NaN: a division by zero, the root or logarithm of a negative number, infinite / infinite after exp of a "
            "large number, or np.empty never filled"
        )
    if not np.isfinite(got).all():
        return "infinite: a division by zero, or exp of a large number"
    if not got.any():
        return EVERYTHING_ZERO

    def alike(other: np.ndarray) -> bool:
        return not differ(got, other, exercise.rtol).any()

    if expected.size > 1:
        for a, b in itertools.combinations(range(expected.ndim), 2):
            if expected.shape[a] == expected.shape[b] and alike(expected.swapaxes(a, b)):
                return f"axes {a} and {b} are swapped"
        for axis in range(expected.ndim):
            if alike(np.flip(expected, axis)):
                return f"axis {axis} runs backwards"
    if expected.any():
        factor = float((got.astype(np.float64) * expected).sum() / (expected.astype(np.float64) ** 2).sum())
        if alike(factor * expected) and (expected.size > 1 or factor == -1):
            if abs(factor + 1) < 1e-6:
                return "the sign is wrong"
            return f"every number is {factor:.6g} times what it should be: a mean for a sum, or a factor left out?"
    return ""


# --- the same, or not ---


def same(a: Any, b: Any) -> bool:
    """Return whether the two are exactly the same, NaN included."""
    if isinstance(a, np.ndarray):
        same_kind = isinstance(b, np.ndarray) and a.shape == b.shape and a.dtype == b.dtype
        return bool(same_kind and np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a).__eq__ is object.__eq__ or bool(a == b)  # objects without a meaning of equality pass


def equal(a: Any, b: Any, rtol: float) -> bool:
    """Return whether the numbers are the same, whatever their dtype; what is no number equals nothing."""
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(equal(x, y, rtol) for x, y in zip(a, b, strict=True))
    first, second = as_array(a), as_array(b)
    if first is None or second is None or first.shape != second.shape:
        return False
    return not differ(second, first, rtol).any()


def alike(a: Any, b: Any, rtol: float) -> bool:
    """Return whether the two are equal as numbers, or else, as text and the like, the same."""
    return equal(a, b, rtol) or (type(a) is type(b) and same(a, b))


def types_of(value: Any) -> Any:
    """Return the dtype of an array, the type of anything else, and of a list or tuple those of its items."""
    if isinstance(value, tuple | list):
        return [types_of(item) for item in value]
    return value.dtype if isinstance(value, np.ndarray | np.generic) else type(value)


# --- in words ---


def as_array(value: Any) -> np.ndarray | None:
    """Return `value` as an array of numbers, or None if it is not one."""
    if value is None or isinstance(value, str | dict | set) or callable(value) or _is_deep(value):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = np.asarray(value)
    except Exception:  # it is the reader's object, whose __array__ may do anything
        return None
    return array if array.dtype.kind in "biuf" else None


def _is_deep(value: Any, most: int = 8) -> bool:
    """Return whether lists stand in lists in so many levels, as in one that contains itself: NumPy would never end."""
    return isinstance(value, list | tuple) and (most == 0 or any(_is_deep(item, most - 1) for item in value))


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        kind = "an array" if value.dtype.kind in "fiub" else f"an array of {value.dtype}"
        return f"{kind} of shape {value.shape}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int | float | np.generic):
        return f"the number {_number(value)}"
    return f"of the type {type(value).__name__}"


def _number(value: Any, digits: int = 6) -> str:
    return f"{value:,}" if isinstance(value, int | np.integer) else f"{float(value):.{digits}g}"


def _short(value: Any) -> str:
    if not isinstance(value, str | bytes | int | float | tuple | list | dict | set | np.generic | np.ndarray):
        return _kind(value)
    try:
        text = " ".join(repr(value.tolist() if isinstance(value, np.generic | np.ndarray) else value).split())
    except Exception:  # it holds an object of the reader's
        return _kind(value)
    return text if len(text) <= 60 else text[:56] + "..." + (text[-1] if text[-1] in ")]}" else "")


def describe(case: dict[str, Any]) -> str:
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
