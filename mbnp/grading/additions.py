"""What is missing in a reader's function, or stands there as a number: changes that only a mistake needs.

`changes.py` has what goes wrong at one place of a right text, and how to undo it. Here are the changes that add what a
right text has and theirs does not: a size for a number, a condition around indices, padding, an index, a cut.
"""

import ast
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mbnp.grading.changes import REDUCE, Change, Kind, Place, change_of, places, put, small_in_sum, together, uses

SIZE = "a number where a size belongs"
OUTSIDE = "indices outside of the array: a negative one counts from its end, and one too large fails"
UNCUT = "the slices are longer than what they belong to"
NO_INDEX = "an index is left out"
AXES = ("transpose", "swapaxes", "moveaxis")  # their arguments are no sizes
NO_WEIGHT = "a factor is left out"


def additions(
    function: ast.FunctionDef, level: int, case: Mapping[str, Any], kinds: Mapping[str, str]
) -> Iterator[Change]:
    """Yield changes of a level, as `changes` has it. kinds: "int", "float", "array", ... by local names."""
    sizes = _sizes(case)
    numbers = [name for name in uses(function) if kinds.get(name) == "int"]
    if level == 1:
        yield from _guarded(function)
        yield from _kept(function)
        yield from _bounded(function, numbers)
        yield from _single(function, numbers)
        yield from _repeated(function)
        yield from _falsy(function)
    elif level == 2:
        yield from _padded(function, case)
        yield from _exchanged(function, numbers)
        yield from _sized(function, sizes, numbers)
        yield from _other_size(function, sizes, numbers)
        yield from _weighted(function, [name for name, kind in kinds.items() if kind == "float"])
        yield from _cut_to_size(function, kinds)
        yield from _strided(function, kinds)
    else:
        yield from _indexed(function, kinds)


def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


# --- sizes ---


def _sizes(case: Mapping[str, Any]) -> list[list[str]]:
    """Return the lengths of the axes of each argument, as expressions; those of whole numbers in a tuple, too."""
    found = []
    for name, value in case.items():
        if isinstance(value, np.ndarray) and value.ndim:
            found.append([f"{name}.shape[{k}]" for k in range(value.ndim)])
            if value.ndim > 2:
                found[-1].append(f"{name}[..., 0].size")  # pixels
        elif isinstance(value, tuple) and all(type(item) is int for item in value):
            found.append([f"{name}[{k}]" for k in range(len(value))])
    return found


def numbers_of(function: ast.FunctionDef) -> Iterator[Place]:
    """Yield the places of whole numbers that may stand for a size: not an axis, an index, or 1 outside of a range."""
    for place in places(function):
        owner, field, _, node = place
        axis = isinstance(owner, ast.keyword) or getattr(getattr(owner, "func", None), "attr", "") in AXES
        at_index = isinstance(owner, ast.Subscript) and field == "slice"
        if isinstance(node, ast.Constant) and type(node.value) is int and not (axis or at_index or small_in_sum(place)):
            in_range = isinstance(owner, ast.Call) and getattr(owner.func, "id", "") == "range"
            if node.value > 1 or (node.value == 1 and in_range):
                yield place


def _sized(function: ast.FunctionDef, sizes: Sequence[Sequence[str]], names: Sequence[str]) -> Iterator[Change]:
    """Yield a name or a size in place of a number: at one place, at all places of the number, by rows and columns."""
    found: dict[int, list[Place]] = {}
    for place in numbers_of(function):
        found.setdefault(ast.literal_eval(place[3]), []).append(place)
    texts = [*names, *itertools.chain(*sizes)]
    for number, where in found.items():
        kind = Kind("", SIZE, 2, 0)
        squares = [f"{name} * {name}" for name in names] if number in (4, 9, 25) else []
        for text in [*texts, *squares]:
            every = [change_of(place, _expression(text), kind) for place in where]
            for count in {1, 2, len(where)} if len(where) < 6 else {1, len(where)}:
                for some in itertools.combinations(every, count):
                    yield together(some)
        pairs = [*itertools.pairwise(names), *itertools.chain(*map(itertools.pairwise, sizes))]
        for two in pairs if len(where) > 1 else []:
            yield together([change_of(place, _expression(two[k % 2]), kind) for k, place in enumerate(where)])


def _other_size(function: ast.FunctionDef, sizes: Sequence[Sequence[str]], names: Sequence[str]) -> Iterator[Change]:
    """Yield a size in place of a name, such as that of the kernel's columns for that of its rows."""
    for place in places(function):
        shown = ast.unparse(place[3])
        if shown in names or any(shown in array for array in sizes):
            for text in itertools.chain(*sizes):
                yield change_of(place, _expression(text), Kind("", "another size", 2, 3))


def _exchanged(function: ast.FunctionDef, names: Sequence[str]) -> Iterator[Change]:
    """Yield the function with two numbers exchanged in one statement: i and j, or u and v."""
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign | ast.AugAssign | ast.Return):
            continue
        for a, b in itertools.combinations(names, 2):
            found = [place for place in places(node) if ast.unparse(place[3]) in (a, b)]
            if len({ast.unparse(place[3]) for place in found}) == 2:
                kind = Kind("", f"`{a}` and `{b}` are exchanged", 2, 1)
                text = ast.unparse(node)
                swapped = [
                    change_of(place, _expression(b if ast.unparse(place[3]) == a else a), kind) for place in found
                ]
                yield together(swapped)._replace(texts=functools.partial(list, [(text, "")]))


# --- conditions and padding ---


def _guarded(function: ast.FunctionDef) -> Iterator[Change]:
    """Yield a statement of a loop under the condition that its indices lie in the array."""
    targets = [loop.target for loop in ast.walk(function) if isinstance(loop, ast.For)]
    counted = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    for loop in ast.walk(function):
        for owner in [loop, *ast.walk(loop)] if isinstance(loop, ast.For) else []:
            body = getattr(owner, "body", None)
            if owner is function or not isinstance(body, list) or (isinstance(owner, ast.For) and owner is not loop):
                continue
            for k, node in enumerate(body):
                for condition in _conditions(node, counted):
                    new = [*body[:k], ast.If(_expression(condition), [node], []), *body[k + 1 :]]
                    text = ast.unparse(node).split("\n")[0]
                    yield _inserted(owner, new, Kind("", OUTSIDE, 1, 2), text, f"if {condition}:")


def _conditions(node: ast.stmt, counted: set[str]) -> Iterator[str]:
    """Yield conditions that two indices or one of an array lie in it. counted: indices that loops count, which do."""
    known = set()
    for part in ast.walk(node):
        if not isinstance(part, ast.Subscript) or isinstance(part.value, ast.Attribute):
            continue
        items = part.slice.elts if isinstance(part.slice, ast.Tuple) else [part.slice]
        array = ast.unparse(part.value)
        inside = [
            f"0 <= {ast.unparse(item)} < {array}.shape[{axis}]"
            for axis, item in enumerate(items)
            if isinstance(item, ast.BinOp) or (isinstance(item, ast.Name) and item.id not in counted)
        ]
        for some in [*itertools.pairwise(inside), *((one,) for one in inside)]:
            if (condition := " and ".join(some)) not in known:
                known.add(condition)
                yield condition


def _bounded(function: ast.FunctionDef, names: Sequence[str]) -> Iterator[Change]:
    """Yield a comparison with one bound with the other one, too."""
    for place in places(function):
        node = place[3]
        if not isinstance(node, ast.Compare) or len(node.ops) > 1:
            continue
        value, bound = ast.unparse(node.left), ast.unparse(node.comparators[0])
        if isinstance(node.ops[0], ast.Lt | ast.LtE):
            texts = [f"({value} >= 0) & ({value} < {bound})"]
        elif bound == "0" and isinstance(node.ops[0], ast.GtE):
            texts = [f"({value} >= 0) & ({value} < {name})" for name in names]
        else:
            continue
        for text in texts:
            yield change_of(place, _expression(text), Kind("", "a bound is left out", 1, 2))


def _kept(function: ast.FunctionDef) -> Iterator[Change]:
    """Yield the function with keepdims wherever an axis is summed over and the like."""
    found = []
    for place in places(function):
        node = place[3]
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in REDUCE:
            options = [keyword.arg for keyword in node.keywords]
            if "keepdims" not in options and ("axis" in options or node.args):
                kept = ast.keyword("keepdims", ast.Constant(True))
                new = ast.Call(node.func, node.args, [*node.keywords, kept])
                found.append(change_of(place, new, Kind("", "the axis is lost", 1, 2)))
    for count in range(2, min(len(found), 4) + 1):
        yield from map(together, itertools.combinations(found, count))


def _single(function: ast.FunctionDef, names: Sequence[str]) -> Iterator[Change]:
    """Yield one entry of an array in place of whether any or all of them are true."""
    for place in places(function):
        func = getattr(place[3], "func", None)
        if isinstance(func, ast.Attribute) and func.attr in ("any", "all"):
            array = next(iter(place[3].args), func.value)  # type: ignore[attr-defined]  # np.any(x), and x.any()
            for name in names:
                new = ast.Subscript(array, ast.Name(name, ast.Load()), ast.Load())
                yield change_of(place, new, Kind("", "one of them was meant, and not any or all of them", 1, 1))


def _repeated(function: ast.FunctionDef) -> Iterator[Change]:
    """Yield lists of their own in place of a list times a number within a list times a number."""
    for place in places(function):
        node = place[3]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and isinstance(node.left, ast.List):
            (row, *more) = node.left.elts or [ast.Constant(0)]
            if not more and (
                isinstance(row, ast.List) or (isinstance(row, ast.BinOp) and isinstance(row.left, ast.List))
            ):
                new = _expression(f"[{ast.unparse(row)} for _ in range({ast.unparse(node.right)})]")
                yield change_of(place, new, Kind("", "a list times a number is one and the same list each time", 1, -1))


def _falsy(function: ast.FunctionDef) -> Iterator[Change]:
    """Yield a comparison with None in place of `or`, which passes over 0, too."""
    for place in places(function):
        node = place[3]
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or) and len(node.values) == 2:
            first, other = map(ast.unparse, node.values)
            new = _expression(f"({other}) if ({first}) is None else ({first})")
            yield change_of(place, new, Kind("", "0 counts as false: `or` takes what stands behind it", 1, -1))


def _padded(function: ast.FunctionDef, case: Mapping[str, Any]) -> Iterator[Change]:
    """Yield the function with zeros around an image, or a batch of them, from one of its first statements on."""
    arrays = {name: value.ndim for name, value in case.items() if isinstance(value, np.ndarray)}
    for name in arrays if "padding" in case else ():
        if arrays[name] not in (3, 4):
            continue
        batch = "(0, 0), " if arrays[name] == 4 else ""
        text = f"{name} = np.pad({name}, ({batch}(padding, padding), (padding, padding), (0, 0)))"
        for k, node in enumerate(function.body[:8]):
            before = ast.unparse(node).split("\n")[0]
            new = [*function.body[:k], *ast.parse(text).body, *function.body[k:]]
            yield _inserted(function, new, Kind("", f"`{name}` is not padded", 2, -1), before, text)


def _inserted(owner: Any, body: list[ast.stmt], kind: Kind, before: str, text: str) -> Change:
    return Change(kind, *put(owner, "body", None, body), lambda: [(before, text)], joint="before")


# --- indices, weights, slices ---


def _indexed(function: ast.FunctionDef, kinds: Mapping[str, str]) -> Iterator[Change]:
    """Yield an array with an index more, the last or the first."""
    numbers = [name for name, kind in kinds.items() if kind == "int"]
    for place in places(function):
        owner, _, _, node = place
        array = isinstance(node, ast.Name) and kinds.get(node.id) == "array"
        if isinstance(owner, ast.Attribute) or not (array or isinstance(node, ast.BinOp | ast.Subscript)):
            continue
        for name, form in itertools.product(numbers, ("..., {}", "{}")):
            index = _expression(f"_[{form.format(name)}]")
            assert isinstance(index, ast.Subscript)
            yield change_of(place, ast.Subscript(node, index.slice, ast.Load()), Kind("", NO_INDEX, 3, -1))


def _weighted(function: ast.FunctionDef, names: Sequence[str]) -> Iterator[Change]:
    """Yield a value times 1 - a fraction, as averages need it."""
    for place in places(function):
        if isinstance(place[3], ast.Name | ast.Subscript) and not isinstance(place[0], ast.Attribute):
            for name in names:
                new = ast.BinOp(_expression(f"1 - {name}"), ast.Mult(), place[3])
                yield change_of(place, new, Kind("", NO_WEIGHT, 2, 1))


def _cut_to_size(function: ast.FunctionDef, kinds: Mapping[str, str]) -> Iterator[Change]:
    """Yield slices with a step cut to two sizes, which stand one after the other, or are those of an array."""
    numbers = [name for name in uses(function) if kinds.get(name) == "int"]
    pairs = list(itertools.pairwise(numbers))
    pairs += [(f"{n}.shape[{k}]", f"{n}.shape[{k + 1}]") for n in kinds if kinds[n] == "array" for k in (0, 1)]
    for place in places(function):
        node = place[3]
        if not isinstance(node, ast.Subscript) or not isinstance(node.slice, ast.Tuple):
            continue
        slices = [part for part in node.slice.elts if isinstance(part, ast.Slice)]
        if sum(part.step is not None for part in slices) != 2:
            continue
        for pair in pairs:
            rest = iter(pair)
            cut = ", ".join(f":{next(rest)}" if part.step else ":" for part in slices)
            index = _expression(f"_[{cut}]")
            assert isinstance(index, ast.Subscript)
            yield change_of(place, ast.Subscript(node, index.slice, ast.Load()), Kind("", UNCUT, 2, 0))


def _strided(function: ast.FunctionDef, kinds: Mapping[str, str]) -> Iterator[Change]:
    """Yield slices from a number on, all or one, with a step: [u : u + n] becomes [u : u + n * stride : stride]."""
    for place in places(function):
        node = place[3]
        if not isinstance(node, ast.Subscript) or not isinstance(node.slice, ast.Tuple):
            continue
        parts = node.slice.elts
        bounds = [_bounds(part) for part in parts]
        at = [k for k, found in enumerate(bounds) if found]
        for name in [name for name, kind in kinds.items() if kind == "int"] if at else ():
            for some in [at, *([k] for k in at)] if len(at) > 1 else [at]:
                texts = [
                    "{0}:{0} + ({1}) * {2}:{2}".format(*(bounds[k] or ()), name) if k in some else ast.unparse(part)
                    for k, part in enumerate(parts)
                ]
                index = _expression(f"_[{', '.join(texts)}]")
                assert isinstance(index, ast.Subscript)
                new = ast.Subscript(node.value, index.slice, ast.Load())
                yield change_of(place, new, Kind("", "the step of a slice is left out", 2, 1))


def _bounds(part: ast.expr) -> tuple[str, str] | None:
    """Return where a slice [a : a + b] begins, and its length; None if it is something else."""
    if not isinstance(part, ast.Slice) or part.step or not isinstance(part.upper, ast.BinOp) or not part.lower:
        return None
    first, length = ast.unparse(part.upper.left), ast.unparse(part.upper.right)
    is_length = isinstance(part.upper.op, ast.Add) and first == ast.unparse(part.lower)
    return (first, length) if is_length else None
