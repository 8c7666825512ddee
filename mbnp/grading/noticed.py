"""What the text of a function shows: arguments that are never used, and numbers that only some cases have as sizes."""

import ast
import inspect
import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mbnp.grading.additions import numbers_of


def noticed(
    function: Callable, cases: Sequence[Mapping[str, Any]], right: Sequence[bool], needed: Sequence[str]
) -> str:
    """Return what is wrong in the text of a function that is right in some cases only, in a line, or nothing.

    needed: the arguments that every right answer uses
    """
    node = _definition(function)
    if node is None:
        return ""
    read = {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)}
    unused = [name for name in needed if name not in read]
    if unused:
        *some, last = [f"`{name}`" for name in unused[:3]]
        names = f"{', '.join(some)} and {last}" if some else last
        return f"{names} {'is' if len(unused) == 1 else 'are'} never used in it: where that matters it comes out wrong"
    return _number(node, cases, right) or _empty_slice(node, cases, right)


def idle(function: Callable) -> str:
    """Name what a function computes and never reads: where nothing else is known, that may be what is missing."""
    node = _definition(function)
    parts = list(ast.walk(node)) if node else []
    read = {part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)}
    for part in parts:
        if isinstance(part, ast.Assign) and isinstance(part.value, ast.BinOp | ast.Call):
            (target, *_) = part.targets
            if isinstance(target, ast.Name) and target.id not in read:
                return f"`{target.id}` is computed and never used"
    return ""


def _definition(function: Callable) -> ast.FunctionDef | None:
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    return node if isinstance(node, ast.FunctionDef) else None


def _empty_slice(node: ast.FunctionDef, cases: Sequence[Mapping[str, Any]], right: Sequence[bool]) -> str:
    """Name a slice that ends at -n, if all cases are wrong, and no others, in which n is 0."""
    for part in ast.walk(node):
        if isinstance(part, ast.Slice) and isinstance(part.upper, ast.UnaryOp) and isinstance(part.upper.op, ast.USub):
            name = ast.unparse(part.upper.operand)
            if name in cases[0] and [case[name] != 0 for case in cases] == list(right):
                return f"`{ast.unparse(part)}` is empty where `{name}` is 0: count its end from the beginning"
    return ""


def _number(node: ast.FunctionDef, cases: Sequence[Mapping[str, Any]], right: Sequence[bool]) -> str:
    """Name a number of the text if all cases are right, and no others, in which one axis or two have that length."""
    places = [place for place in numbers_of(node) if not isinstance(place[0], ast.Tuple | ast.List)]
    numbers = [ast.literal_eval(place[3]) for place in places]
    lengths = [_lengths(case) for case in cases]
    arrays = [list(names) for _, names in itertools.groupby(lengths[0], lambda name: name.partition("[")[0])]
    some = [names for array in arrays for names in [*((one,) for one in array), *itertools.pairwise(array)]]
    for number, names in itertools.product(dict.fromkeys(value for value in numbers if value > 2), some):
        alike = [all(each.get(name) == number for name in names) for each in lengths]
        if alike == list(right) and 2 <= sum(right) <= len(right) - 2:
            where = " and ".join(f"`{name}`" for name in names)
            return f"{number} is written as a number, and it is right only where that is {where}: take it from there"
    return ""


def _lengths(case: Mapping[str, Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, value in case.items():
        shape = value.shape if isinstance(value, np.ndarray) else value if isinstance(value, tuple) else ()
        word = f"{name}.shape" if isinstance(value, np.ndarray) else name
        found |= {f"{word}[{k}]": n for k, n in enumerate(shape) if type(n) is int}
        if type(value) is int:
            found[name] = value
    return found
