"""A right solution with one fault in it, for every place and every kind of fault that people make.

The lessons' own mistakes have a message each. What they do not foresee is looked for here: `of_source` changes one
thing in the text of a right solution (a term left out, a comparison at its border, two names exchanged, a loop that
returns early), `of_arguments` calls it with another argument, `of_result` changes what it returns. The fault that
gives exactly the reader's numbers in every case is the likely reason.
"""

# mypy: disable-error-code="misc"
# (it cannot infer the types of lambdas with defaults)

import ast
import contextlib
import copy
import functools
import inspect
import itertools
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mbnp.grading.changes import Change, changes


class Fault(NamedTuple):
    """What is wrong, in words, and a function that has it; where the text of a solution was changed, and of which."""

    message: str
    wrong: Callable
    texts: Sequence[tuple[str, str]] = ()
    solution: Callable | None = None

    def said(self, names: Mapping[str, str]) -> str:
        """Return the message in the reader's names, `names` by the solution's; without the text if one has no name."""
        if not self.texts or self.solution is None:
            return self.message
        words = dict.fromkeys(re.findall(WORD, " ".join(text for pair in self.texts for text in pair)))
        own, names = _locals(self.solution), dict(names)
        for name, text in _definitions(self.solution):  # what has no name in theirs is written out
            assigned = any(re.match(rf"{name}\b[^=]* = ", code) for pair in self.texts for code in pair)
            if name not in names and not assigned and not (set(re.findall(WORD, text)) & own) - names.keys():
                names[name] = _renamed(text, names)
        if not (words.keys() & own) - names.keys():
            return re.sub(r"`[^`]*`", lambda part: _renamed(part[0], names), self.message)
        kind, known = self.message.partition(":")[0], inspect.signature(self.solution).parameters
        if set(re.findall(WORD, kind)) & own - names.keys():
            return ""
        (right, wrong), *_ = self.texts
        lost = [word for word in re.findall(f"{WORD}|\\b\\d+\\b", right) if word not in re.findall(r"\w+", wrong)]
        if not wrong or not any(word in known for word in lost):  # a whole statement, or a number, which says nothing
            lost = []
        for some, said in (
            (lost, f"{kind}: {{}} {{}} missing"),
            ([*words], f"{kind}: look at where {{}} {{}} used"),
        ):
            shown = [f"`{word}`" for word in dict.fromkeys(some) if word in known or word.isdigit()]
            if shown:
                *first, last = shown
                return said.format(f"{', '.join(first)} and {last}" if first else last, "are" if first else "is")
        return ""


WORD = r"(?<![\w.'\"])[A-Za-z_]\w*"


def _definitions(solution: Callable) -> Iterator[tuple[str, str]]:
    """Yield each local name of the solution that is assigned once, and not in part, with what it stands for."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(solution)))
    assert isinstance(tree.body[0], ast.FunctionDef)
    stored = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            stored.append(node.value.id)
    for node in tree.body[0].body:
        if not isinstance(node, ast.Assign):
            continue
        target, value = node.targets[0], ast.unparse(node.value)
        if isinstance(target, ast.Tuple) and value.endswith(".shape"):
            pairs = [(ast.unparse(name), f"{value}[{k}]") for k, name in enumerate(target.elts)]
        else:
            pairs = [(ast.unparse(target), f"({value})" if isinstance(node.value, ast.BinOp) else value)]
        yield from ((name, text) for name, text in pairs if stored.count(name) == 1)


def _locals(solution: Callable) -> set[str]:
    """Return the names that only the solution has: its local ones, those of functions in it too."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(solution)))
    nodes = list(ast.walk(tree))
    own = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    return own - set(inspect.signature(solution).parameters)


def _renamed(code: str, names: Mapping[str, str]) -> str:
    return re.sub(WORD, lambda word: names.get(word[0], word[0]), code)


# --- the same variable in two functions ---


def values(function: Callable, case: Mapping[str, Any]) -> dict[str, str]:
    """Return for each local name of a function all values that it has in turn, as text that can be compared."""
    found: dict[str, list[str]] = {}

    def look(frame: types.FrameType) -> None:
        for name, value in frame.f_locals.items():
            text = _shown(value)
            if text and (not found.get(name) or found[name][-1] != text) and len(found.setdefault(name, [])) < STEPS:
                found[name].append(text)

    def trace(frame: types.FrameType, event: str, argument: object) -> Any:
        if frame.f_code is not function.__code__:
            return None
        look(frame)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    with contextlib.suppress(Exception):
        try:
            function(**copy.deepcopy(dict(case)))
        finally:
            sys.settrace(before)
    sys.settrace(before)
    return {name: " ".join(texts) for name, texts in found.items()}


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.ndim and value.dtype.kind in "biuf":
        return f"{value.shape} {float(np.abs(value).sum()):.3g}"
    if isinstance(value, bool | int | float | np.generic):
        return f"{float(value):.5g}"
    return ""


def names_of(ours: Mapping[str, str], theirs: Mapping[str, str], arguments: Iterable[str]) -> dict[str, str]:
    """Return the name in `theirs` for each in `ours` that has the same values; that of the same name if several do."""
    found = {name: name for name in arguments}
    for name, value in ours.items():
        alike = [other for other, its in theirs.items() if its == value and other not in arguments]
        if name not in found and alike:
            found[name] = name if name in alike else alike[0]
    return {name: other for name, other in found.items() if [*found.values()].count(other) == 1}


STEPS = 300  # of values of one name; more tell nothing new


# --- the text of the solution ---


def of_source(solution: Callable, case: Mapping[str, Any], level: int = 1) -> Iterator[Fault]:
    """Yield the solution with one thing in its text changed, as `changes` makes them of it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(solution)))
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    for change in changes(function, level, case):
        if change.kind.fault and (wrong := changed(tree, change, solution.__globals__)):
            said = change.said("the numbers come out so", fault=True)
            yield Fault(said, wrong[solution.__name__], change.texts(), solution)


def changed(tree: ast.Module, change: Change, names: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return `names` and those that the tree defines with a change, or None if that is no program."""
    own = dict(names)
    change.do()
    try:
        exec(compile(tree, "<a fault>", "exec"), own)
    except (SyntaxError, TypeError, ValueError):
        return None
    finally:
        change.undo()
    return own


# --- the arguments ---


def of_arguments(function: Callable, case: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield the function with another value for one of the arguments that `case` shows, or two exchanged."""
    for a, b in itertools.combinations(case, 2):
        if _alike(case[a], case[b]):
            yield Fault(f"`{a}` and `{b}` are exchanged", _called_with(function, {a: b, b: a}, None))
    for name, value in case.items():
        for said, change in _changes(value):
            yield Fault(said.format(name=name), _called_with(function, {name: name}, change))


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.ndim == b.ndim and a.dtype.kind == b.dtype.kind
    plain = (int, float)
    return (type(a) in plain and type(b) in plain) or (type(a) is type(b) and not isinstance(a, np.ndarray))


def _called_with(function: Callable, names: Mapping[str, str], change: Callable | None) -> Callable:
    def wrong(**case: Any) -> Any:
        others = {name: case[source] if change is None else change(case[source]) for name, source in names.items()}
        return function(**(case | others))

    return wrong


Named = tuple[str, Callable[[Any], Any]]


def _changes(value: Any) -> Iterator[Named]:
    """Yield (what is said, with {name} for the argument's; the change) for an argument like `value`."""
    if isinstance(value, bool):
        yield "`{name}` is reversed", lambda v: not v
    elif isinstance(value, int | float):
        yield "`{name}` is not used: the numbers are those of {name} = 0", lambda v: v * 0
        yield "`{name}` is not used: the numbers are those of {name} = 1", lambda v: v * 0 + 1
        yield "off by one: the numbers are those of {name} + 1", lambda v: v + 1
        yield "off by one: the numbers are those of {name} - 1", lambda v: v - 1
        yield "the numbers are those of 2 * {name}: does it count twice?", lambda v: 2 * v
        yield "the numbers are those of half of {name}", lambda v: v // 2 if isinstance(v, int) else v / 2
        yield "the numbers are those of {name} squared", lambda v: v * v
        yield "the numbers are those of 1 - {name}", lambda v: 1 - v
        yield "the numbers are those of 1000 * {name}: another unit?", lambda v: 1000 * v
        yield "the numbers are those of {name} / 1000: another unit?", lambda v: v / 1000
        yield "the numbers are those of 8 * {name}: bits for bytes?", lambda v: 8 * v
    elif isinstance(value, list | tuple):
        yield "`{name}` is gone through from its end: its last entry comes first", lambda v: v[::-1]
        yield "the first entry of `{name}` is left out", lambda v: v[1:]
        yield "the last entry of `{name}` is left out", lambda v: v[:-1]
        yield "only the first entry of `{name}` is used", lambda v: v[:1]
        yield "`{name}` is sorted first, and should not be", lambda v: type(v)(sorted(v))
    elif isinstance(value, np.ndarray) and value.ndim:
        yield from _array_changes(value)


def _array_changes(value: np.ndarray) -> Iterator[Named]:
    first = "the first entry of `{name}` is used for all of them"
    yield first, lambda v: np.broadcast_to(v[:1], v.shape).copy()
    yield "the last entry of `{name}` is used for all of them", lambda v: np.broadcast_to(v[-1:], v.shape).copy()
    for axis in range(value.ndim):
        said = "`{name}` runs backwards" if value.ndim == 1 else f"`{{name}}` runs backwards along axis {axis}"
        yield said, lambda v, axis=axis: np.flip(v, axis).copy()
    if value.ndim > 1:
        yield "`{name}` runs backwards along axes 0 and 1: it is rotated", lambda v: v[::-1, ::-1].copy()
    for a, b in itertools.combinations(range(value.ndim), 2):
        yield f"axes {a} and {b} of `{{name}}` are exchanged", lambda v, a=a, b=b: np.swapaxes(v, a, b).copy()
    true, false = ("true everywhere", "false everywhere") if value.dtype.kind == "b" else ("ones", "zeros")
    yield f"`{{name}}` is not used: the numbers are those for {false}", np.zeros_like
    yield f"`{{name}}` is not used: the numbers are those for {true}", np.ones_like
    if value.dtype.kind == "b":
        yield "`{name}` is reversed", np.logical_not
        return
    yield "sign: the numbers are those of -{name}", np.negative
    yield "the numbers are those of the absolute values of `{name}`", np.abs
    yield "`{name}` is cut at 0: its negative numbers count as 0", lambda v: np.maximum(v, 0)
    yield "`{name}` is sorted first, and should not be", lambda v: np.sort(v, axis=0)
    if value.dtype.kind == "f":
        yield "the numbers are those of the square of `{name}`", np.square
        yield "the mean of `{name}` is used for all of them", lambda v: np.full_like(v, v.mean())
        yield "the numbers are those of 1 / {name}", np.reciprocal
    else:
        yield "off by one: the numbers are those of {name} + 1", lambda v: v + 1
        yield "off by one: the numbers are those of {name} - 1", lambda v: v - 1


# --- the result ---


def of_result(function: Callable, result: Any) -> Iterator[Fault]:
    """Yield the function with its result, which is like `result`, changed."""
    if not isinstance(result, tuple):
        for said, change in _result_changes(result):
            yield Fault(said, _then(function, change))
        return
    for a, b in itertools.combinations(range(len(result)), 2):
        said = "the results are in another order: two of them are exchanged"
        yield Fault(said, _then(function, _swap(a, b)))
    for k in range(len(result)):
        for said, change in _result_changes(result[k]):
            yield Fault(said, _then(function, _change_one(k, change)))


def _then(function: Callable, change: Callable) -> Callable:
    return lambda **case: change(function(**case))


def _swap(a: int, b: int) -> Callable:
    def change(results: tuple) -> tuple:
        order = list(results)
        order[a], order[b] = order[b], order[a]
        return tuple(order)

    return change


def _change_one(k: int, change: Callable) -> Callable:
    return lambda results: (*results[:k], change(results[k]), *results[k + 1 :])


def _result_changes(result: Any) -> Iterator[Named]:
    array = np.asarray(result)
    if array.dtype.kind == "b":
        yield "reversed: true stands where false belongs, and the other way round", np.logical_not
        yield "the positions are returned, and not true or false for each", np.flatnonzero
        yield "the number of those that are true is returned, and not true or false for each", np.sum
    elif array.dtype.kind in "iuf":
        yield "every result is 1 too large", lambda v: v + 1
        yield "every result is 1 too small", lambda v: v - 1
        yield "the sign is wrong", np.negative
        yield "absolute values: the sign is lost", np.abs
        yield "negative numbers become 0, and should not", lambda v: np.maximum(v, 0)
        yield "every result is its double", lambda v: 2 * v
        yield "every result is half of it", lambda v: v / 2
        if array.dtype.kind == "f":
            yield "upside down: every result is 1 / what it should be", lambda v: 1 / v
            yield "the result is the square of what it should be: is a root left out?", np.square
            yield "the result is the root of what it should be", np.sqrt
            yield "the result is rounded to whole numbers", np.round
            yield "the result is rounded down to whole numbers: was // used for /?", np.floor
            yield "numbers are cut at 6, as by ReLU6: ReLU has no upper limit", lambda v: np.minimum(v, 6)
            yield "numbers are cut at 1, and should not be", lambda v: np.minimum(v, 1)
    if array.ndim:
        yield from _axis_changes(array)


def _all_along(of: Callable) -> Callable:
    return lambda v, axis: np.broadcast_to(of(v, axis), v.shape)


AXIS_CHANGES: list[tuple[str, Callable]] = [
    ("axis {} of the result runs backwards", np.flip),
    ("axis {} is summed over, and should stay", np.sum),
    ("axis {} is averaged over, and should stay", np.mean),
    ("the result is the same all along axis {}: its sum", _all_along(lambda v, k: v.sum(k, keepdims=True))),
    ("the result is the same all along axis {}: its mean", _all_along(lambda v, k: v.mean(k, keepdims=True))),
    ("only the first along axis {} is returned", lambda v, axis: v.take(0, axis)),
    ("the result of the first is repeated along axis {}", _all_along(lambda v, k: v.take([0], k))),
    ("the result of the last is repeated along axis {}", _all_along(lambda v, k: v.take([-1], k))),
    ("the result is shifted by one along axis {}", lambda v, axis: np.roll(v, 1, axis)),
    ("the result is shifted by one along axis {}", lambda v, axis: np.roll(v, -1, axis)),
    ("the first along axis {} is missing", lambda v, axis: np.delete(v, 0, axis)),
    ("the last along axis {} is missing", lambda v, axis: np.delete(v, -1, axis)),
]


def _axis_changes(array: np.ndarray) -> Iterator[Named]:
    for a, b in itertools.combinations(range(array.ndim), 2):
        yield f"axes {a} and {b} of the result are exchanged", lambda v, a=a, b=b: np.swapaxes(v, a, b)
        yield (
            f"the shape is that of axes {a} and {b} exchanged, by a reshape: it moves no number. transpose does",
            lambda v, a=a, b=b: v.reshape(np.swapaxes(v, a, b).shape),
        )
    for axis in range(array.ndim):
        for said, change in AXIS_CHANGES:
            yield said.format(axis), functools.partial(change, axis=axis)
    yield "the numbers are right, in one long row: give the result its shape", np.ravel
    yield "the numbers are sorted, and should not be", lambda v: np.sort(v, axis=0)
