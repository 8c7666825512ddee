"""What people write wrong at one place of a function, as changes of its text.

A change that makes a right solution wrong is a fault (`faults.py`); one that makes a reader's function right mends a
mistake (`mend.py`). A rule of RULES works both ways: `A + B -> A` leaves a term out, and adds one that was left out.
"""

import ast
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

SCALED = "a number, here or in what it is multiplied with"
UNDER_ROOT = "a factor stands under the root"
# What is wrong where the right side stands for the left; what is wrong where it is the other way round ("": the same;
# None: nothing, the rule is for faults only); the two sides, of one rule or several. A to F are any expressions, G is
# any method, *X and **K are all other arguments, and ~ is each of + - * /.
RULES: list[tuple[Any, ...]] = [
    ("a term is left out", "a term too many", "A + B -> A ; B", "A - B -> A ; -B"),
    ("it is not subtracted from 1", "it is subtracted from 1", "1 - A -> A"),
    ("sign", "sign", "A + B -> A - B"),
    ("the difference is the other way round", "", "A - B -> B - A"),
    ("absolute values", "absolute values are left out", "A - B -> abs(A - B)"),
    ("a product for a sum", "a sum for a product", "A + B -> A * B"),
    ("a product for a sum", "a difference for a product", "A - B -> A * B"),
    ("a factor is left out", "a factor too many", "A * B -> A ; B"),
    ("it divides instead of multiplying", "it multiplies instead of dividing", "A * B -> A / B ; A // B"),
    ("a factor counts twice", "a factor is to count twice", "A * B -> A * B * B ; A * (A * B)"),
    ("a division is left out", "a division too many", "A / B -> A", "A // B -> A"),
    ("upside down", "", "A / B -> B / A", "A * B / C -> A * C / B"),
    ("a factor stands at another term", "", "A + B * C -> A * C + B", "A * B + C -> A + C * B ; A + B * C"),
    (UNDER_ROOT, UNDER_ROOT, "A * B / np.sqrt(C + D) -> B / np.sqrt(A * C + D)"),
    ("integer division", "integer division", "A / B -> A // B"),
    ("it is not halved", "it is halved", "A / 2 -> A", "A // 2 -> A"),
    ("it is not doubled", "it is doubled", "2 * A -> A"),
    ("a term is left out", "a term too many", "A + 2 * B -> A"),
    ("1 is not added", "1 is added", "A + 1 -> A"),
    ("1 is not subtracted", "1 is subtracted", "A - 1 -> A"),
    ("it is rounded up", "it is rounded up", "A // B -> -(-A // B)"),
    ("it is rounded", "it is rounded", "A // B -> round(A / B)"),
    ("the remainder is taken", "", "A // B -> A % B"),
    ("a power is left out", "a power too many", "A ** 2 -> A", "A ** B -> A"),
    ("a condition is left out", "a condition too many", "A & B -> A ; B", "A | B -> A ; B"),
    ("and, or", "and, or", "A & B -> A | B"),
    ("exclusive or", "exclusive or", "A | B -> A ^ B"),
    ("the product is the other way round", "", "A @ B -> B @ A"),
    ("transposed", "transposed", "A @ B -> A @ B.T ; A.T @ B"),
    ("a product of numbers for one of matrices", "a product of matrices for one of numbers", "A @ B -> A * B"),
    (
        "brackets",
        "brackets",
        "F(A ~ B) -> F(A) ~ B ; A ~ F(B) ; F(A) ~ F(B)",
        "D * F(A ~ B) -> D * F(A) ~ B",
        "F(A, B ~ C) -> F(A, B) ~ C",
        "F(A ~ B, C) -> F(A, C) ~ B",
        "A * (B - C) / D -> A * B - C / D",
    ),
    ("order", "order", "F(A).G(*X, **K) -> F(A.G(*X, **K))"),
    ("a step is left out", "a step too many", "F(A).G(*X, **K) -> A.G(*X, **K)", "A.G(*X, **K) -> A"),
    ("what is below 0 is kept", "what is below 0 becomes 0, and should not", "max(A, 0) -> A", "np.maximum(A, 0) -> A"),
    (
        "only one of the two",
        "",
        "max(A, B) -> A ; B",
        "min(A, B) -> A ; B",
        "np.maximum(A, B) -> A ; B",
        "np.minimum(A, B) -> A ; B",
    ),
    ("the root is left out", "a root too many", "np.sqrt(A) -> A"),
    ("a step is left out", "absolute values", "np.abs(A) -> A"),
    ("a step is left out", "a step too many", "np.exp(A) -> A"),
    ("a step is left out", "it is rounded", "int(A) -> A", "round(A, *X) -> A", "np.round(A, *X) -> A"),
    ("", "it is rounded to the nearest whole number, and should be rounded up", "round(A / B) -> -(-A // B)"),
    ("", "degrees: np.cos and np.sin take radians", "180 -> np.pi"),
    ("it is not clipped", "it is clipped, and should not be", "np.clip(A, B, C) -> A"),
    ("a step is left out", "a step too many", "np.pad(A, *X, **K) -> A"),
    ("no difference is made", "a difference is made", "np.where(A, B, C) -> B ; C"),
    ("reversed", "", "np.where(A, B, C) -> np.where(A, C, B)"),
    ("no difference is made", "a difference is made", "A if B else C -> A ; C"),
    ("reversed", "", "A if B else C -> C if B else A"),
    ("reversed", "reversed", "not A -> A", "~A -> A"),
    ("sign", "sign", "-A -> A"),
    ("it is not turned round", "it is turned round", "A[::-1] -> A"),
    ("it is not turned round", "its columns are turned round", "A[:, ::-1] -> A"),
    ("it is not rotated", "it is rotated by 180 degrees: a flipped kernel", "A[::-1, ::-1] -> A"),
    ("it is not transposed", "it is transposed", "A.T -> A"),
    (
        "the index stands at another axis",
        "",
        "A[B] -> A[..., B] ; A[:, B] ; A[:, :, B]",
        "A[..., B] -> A[B] ; A[:, B]",
        "A[:, B] -> A[B] ; A[..., B]",
    ),
    ("an axis of length 1 is left out", "an axis of length 1 too many", "A[..., None] -> A", "A[:, None] -> A"),
    ("rows only", "rows only", "A[:, ::B, ::B] -> A[:, ::B]", "A[::B, ::B] -> A[::B]"),
    ("this axis is left out", "this axis is not to be padded", "(A, A) -> (0, 0)"),
    (
        "every axis is padded",
        None,
        "np.pad(A, ((0, 0), (B, B), (B, B), (0, 0))) -> np.pad(A, B)",
        "np.pad(A, ((B, B), (B, B), (0, 0))) -> np.pad(A, B)",
    ),
    (
        "",
        "every axis is padded",
        "np.pad(A, B) -> np.pad(A, ((0, 0), (B, B), (B, B), (0, 0))) ; np.pad(A, ((B, B), (B, B), (0, 0)))",
    ),
    ("one side only", "one side only", "(A, A) -> (0, A) ; (A, 0)"),
    ("one side gets all", None, "(A, A) -> (0, 2 * A) ; (2 * A, 0)"),
    ("a loop's first or last step", "a loop's first or last step", "range(A) -> range(A - 1) ; range(1, A)"),
    (
        "a loop's first or last step",
        "",
        "range(A) -> range(A + 1) ; range(1, A + 1) ; range(1, A - 1)",
        "range(A, B) -> range(A, B - 1) ; range(A, B + 1) ; range(B)",
        "range(A, B, C) -> range(A, B - 1, C) ; range(A, B + 1, C)",
    ),
    ("only the first", None, "range(A) -> range(1)"),
    ("it counts from 1", "", "enumerate(A) -> enumerate(A, 1)", "enumerate(A, 1) -> enumerate(A)"),
    (
        "where a slice begins or ends",
        "",
        "[A:B] -> [A + 1:B] ; [A - 1:B] ; [:B] ; [A:] ; [A:B + 1] ; [A:B - 1]",
        "[A:B:C] -> [A + 1:B:C] ; [A - 1:B:C] ; [A:B + 1:C] ; [A:B - 1:C]",
        "[A:A + B] -> [A:B]",
        "[A:B] -> [A:A + B]",
        "[A:B:C] -> [A:A + B:C]",
    ),
    ("the step of a slice is left out", "the step of a slice is left out", "[A:A + B * C:C] -> [A:A + B]"),
    (
        "where a slice begins or ends",
        "",
        "[A:] -> [A + 1:] ; [A - 1:] ; [:]",
        "[:A] -> [:A + 1] ; [:A - 1] ; [:]",
        "[:] -> [1:] ; [:-1] ; [:1]",
    ),
    ("where a slice begins or ends", "where a slice begins or ends", "[::A] -> [1::A] ; [A::A] ; [A - 1::A]"),
    ("the step of a slice is left out", "a slice has a step too many", "[::A] -> [:]", "[A:B:C] -> [A:B]"),
]
LIKELY_AROUND = "what is below 0 is kept", "the root is left out", "sign"  # of what stands around any value
RARE = "a power is left out", "a condition is left out"  # with a name: it fits by chance, if at all
WILD = frozenset("ABCDEFGXK")

# A function in place of another of the same row.
FAMILIES = [
    row.split()
    for row in (
        "mean sum max min median prod",
        "std var",
        "any all",
        "maximum minimum",
        "max min",
        "cos sin",
        "sqrt square abs exp log",
        "exp exp2 expm1",
        "argmax argmin",
        "ceil floor round rint",
        "zeros ones",
    )
]
AXES = (None, 0, 1, 2, 3, -1, (0, 1), (1, 2), (0, 2), (0, 3), (0, 1, 2), (0, 2, 3), (1, 2, 3))
MODES = "constant", "edge", "reflect", "symmetric", "wrap"
BORDER = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
TURNED = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}
TIMES = ast.Mult | ast.Div | ast.FloorDiv
PLUS = ast.Add | ast.Sub
REDUCE = {"mean", "sum", "max", "min", "median", "prod", "std", "var", "any", "all"}
OTHER = "another function"


INSTEAD = "in place of"


class Kind(NamedTuple):
    """What is wrong where a right text was changed (`fault`), and where the change makes it right (`mend`)."""

    fault: str
    mend: str
    level: int = 1  # as `changes` has it
    rank: int = 0  # within the level
    free: str = ""  # the name that was put in


class Change(NamedTuple):
    """A change of a function's tree: its kind, how to do and to undo it, and the texts before and after it."""

    kind: Kind
    do: Callable[[], None]
    undo: Callable[[], None]
    texts: Callable[[], list[tuple[str, str]]]
    alike: Any = None  # changes with the same here differ in their names only
    text: str = ""  # of what is changed
    joint: str = INSTEAD  # between the text after it and the text before it

    def said(self, what: str, fault: bool) -> str:
        """Return the message: of a fault, or of what mends it. what: a sentence before "with `this` ... `that`"."""
        kind, joint = (self.kind.fault, "where") if fault else (self.kind.mend, self.joint)
        return message(kind, self.texts(), what, joint)


def message(kind: str, texts: Sequence[tuple[str, str]], what: str, joint: str = INSTEAD) -> str:
    """Return what is wrong in one line; what stands behind "in place of" is always the reader's."""
    texts = [(_short(before), _short(after)) for before, after in texts]
    if not texts[0][1]:
        return f"{kind}: `{cut(texts[0][0])}`"
    end = " belongs" if joint == "where" else ""
    pairs = [f"`{cut(after, before)}` {joint} `{cut(before, after)}`{end}" for before, after in texts[:SHOWN]]
    return f"{kind}: {what} with {', and '.join(pairs)}"


LEVELS = 1, 2, 3
NARROW, WIDE = 12, 60  # characters: a text that is shorter tells nothing, and one that is longer is cut
SHOWN = 2  # of changes that are alike


def changes(
    function: ast.FunctionDef,
    level: int,
    case: Mapping[str, Any],
    kinds: Mapping[str, str] | None = None,
    missing: Sequence[str] | None = None,
) -> list[Change]:
    """Return changes of one place, the likelier first, and those that are alike at several places as one.

    level: 1 changes what is there; 2 puts one name in place of another, and functions around what is there; 3 adds
    names where something may be missing. case: arguments like those that the function is called with; kinds: what the
    local names stand for, "int", "float", "array", ..., if that is known; missing: the names that level 3 adds, or all
    """
    used, lists = uses(function), _lists(function, case)
    found = [
        *_expressions(
            function,
            level,
            [name for name in used if name not in lists and (missing is None or name in missing)],
            kinds or {},
        )
    ]
    found += [change for change in _statements(function) if change.kind.level == level]
    found += _alike(found)
    found += [change for change in _names(function, case, used, lists, kinds or {}) if change.kind.level == level]
    return sorted(found, key=lambda change: change.kind.rank)


def _alike(found: list[Change]) -> Iterator[Change]:
    """Yield two or more changes as one where they are the same but for their names, as for the rows and columns."""
    groups: dict[Any, list[Change]] = {}
    for change in found:
        if change.alike:
            groups.setdefault(change.alike, []).append(change)
    for group in groups.values():
        if len(group) > 6:  # only where the names are the same, too
            by_text: dict[str, list[Change]] = {}
            for change in group:
                by_text.setdefault(change.text, []).append(change)
            groups_of_it = [some for some in by_text.values() if len(some) <= 4]
        else:
            groups_of_it = [group]
        for same in groups_of_it:
            yield from map(together, itertools.combinations(same, 2))
            if len(same) > 2:
                yield together(same)


def together(some: Sequence[Change]) -> Change:
    def do() -> None:
        for change in some:
            change.do()

    def undo() -> None:
        for change in reversed(some):
            change.undo()

    def texts() -> list[tuple[str, str]]:
        each = [text for change in some for text in change.texts()]
        if len({before for before, _ in each}) > 1:
            return each
        *others, last = some
        for change in others:
            change.do()
        after = [after for _, after in last.texts()][-1:]
        for change in reversed(others):
            change.undo()
        # Of one expression, once with all its changes; of several that are alike, each.
        return each if after == [text for _, text in each][-1:] else [(each[0][0], after[0])]

    return Change(some[0].kind, do, undo, texts)


def put(owner: Any, field: str, at: int | None, new: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return what puts a node into a field of another, or into an item of it where it is a list; and what undoes it."""
    _locate(new)
    if at is None:
        old = getattr(owner, field)
        return lambda: setattr(owner, field, new), lambda: setattr(owner, field, old)
    items = getattr(owner, field)
    old = items[at]
    return lambda: items.__setitem__(at, new), lambda: items.__setitem__(at, old)


def _locate(node: Any) -> None:
    """Give a place in the text to nodes that have none, which the compiler asks for."""
    if isinstance(node, list):
        for item in node:
            _locate(item)
    elif isinstance(node, ast.AST) and not hasattr(node, "lineno"):
        node.lineno = node.end_lineno = 1  # type: ignore[attr-defined]
        node.col_offset = node.end_col_offset = 0  # type: ignore[attr-defined]
        for field in node._fields:
            _locate(getattr(node, field, None))


def _short(text: str) -> str:
    """Return the text in one line, without what adds up to nothing."""
    return " ".join(text.split()).replace(" - 1 + 1", "").replace(" + 1 - 1", "")


def cut(text: str, other: str = "", most: int = 70) -> str:
    """Return the text, or of a long one what differs from the other one, whole, with what is around it."""
    if len(text) <= most:
        return text
    pairs = list(zip(text, other, strict=False))
    first = next((k for k, (a, b) in enumerate(pairs) if a != b), len(pairs)) if other else 0
    pairs = list(zip(text[:first:-1], other[:first:-1], strict=False))
    last = len(text) - next((k for k, (a, b) in enumerate(pairs) if a != b), len(pairs)) if other else most
    room = max(most - (last - first), 24) // 2
    begin, end = max(first - room, 0), min(last + room, len(text))
    return f"{'... ' if begin else ''}{text[begin:end]}{' ...' if end < len(text) else ''}"


# --- expressions ---

Place = tuple[Any, str, int | None, ast.expr]  # a node, its field, where in it if that is a list, and what stands there


def places(function: ast.AST) -> Iterator[Place]:
    """Yield each place of a function or a statement where an expression is read."""
    for owner in ast.walk(function):
        for field, value in ast.iter_fields(owner):
            if owner is function and isinstance(owner, ast.FunctionDef) and field != "body":
                continue
            for at, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(node, ast.expr):
                    node.inside = owner  # type: ignore[attr-defined]
                    if isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
                        yield owner, field, at, node


def _expressions(
    function: ast.FunctionDef, level: int, names: Sequence[str], kinds: Mapping[str, str]
) -> Iterator[Change]:
    for owner, field, at, node in places(function):
        fit = _fitting(node, names, kinds) if level == 3 else names
        parts = [kinds.get(part.id) for part in ast.walk(node) if isinstance(part, ast.Name)]
        counts = bool(parts) and set(parts) == {"int"}  # nobody takes its logarithm, or divides it by a name
        form = re.sub(r"\bid='\w+'", "", text := ast.dump(node))
        known, before = {text}, text
        factor = isinstance(owner, ast.BinOp) and isinstance(owner.op, TIMES)
        coded = _by_code(node, factor) if level == 1 else ()
        for number, (kind, new) in enumerate(itertools.chain(coded, _by_rule(owner, field, node, level, fit, counts))):
            if level > 1 or (text := ast.dump(new)) not in known:
                known.add(text)
                alike: tuple[Any, ...] = (kind, number, form)
                if kind.mend == OTHER:  # the same function at several places, whatever its arguments
                    alike = (kind, ast.dump(node.func), ast.dump(new.func))  # type: ignore[attr-defined]
                yield change_of((owner, field, at, node), new, kind)._replace(alike=alike, text=before)


def change_of(place: Place, new: ast.expr, kind: Kind) -> Change:
    """Return a change whose texts show the expression with what is around it, if that is an expression."""
    owner, field, at, node = place
    do, undo = put(owner, field, at, new)
    whole = _around(owner, node)

    def texts() -> list[tuple[str, str]]:
        if whole is None:
            return [(ast.unparse(node), ast.unparse(new))]
        before = ast.unparse(whole)
        do()
        after = ast.unparse(whole)
        undo()
        return [(before, after)]

    return Change(kind, do, undo, texts)


def _around(owner: Any, node: ast.expr) -> ast.expr | None:
    """Return what shows where an expression stands, if that is an expression: what it is part of, if that is short."""
    if isinstance(owner, ast.expr) and not isinstance(owner, ast.Call | ast.Tuple):
        return owner
    around = None
    while isinstance(owner, ast.expr) and len(text := ast.unparse(owner)) <= WIDE:
        around, owner = owner, getattr(owner, "inside", None)
        is_index = isinstance(owner, ast.Subscript) and owner.slice is around
        if len(text) > NARROW and not is_index:
            break
    return around


def _fitting(node: ast.expr, names: Sequence[str], kinds: Mapping[str, str]) -> list[str]:
    """Return the names that may be missing beside an expression: numbers beside numbers, arrays beside arrays."""
    inside = {kinds.get(part.id) for part in ast.walk(node) if isinstance(part, ast.Name)} - {None}
    if inside == {"int"}:
        return [name for name in names if kinds.get(name, "int") == "int"]
    return [name for name in names if kinds.get(name) != "int"] if "array" in inside else list(names)


class _Rule(NamedTuple):
    kind: Kind
    pattern: ast.expr
    new: ast.expr
    free: str  # the wildcard of `new` that `pattern` does not have, if there is one


@functools.cache
def _rules() -> dict[tuple[int, type], list[_Rule]]:
    """Return the rules of both directions by level and the type of node that they change; ast.expr: of any."""
    found: dict[tuple[int, type], list[_Rule]] = {}
    for fault, other, *lines in RULES:
        for line, op in [(rule, op) for rule in lines for op in ("+-*/" if "~ " in rule else "~")]:
            left, rights = line.replace("~ ", f"{op} ").split(" -> ") if op != "~" else line.split(" -> ")
            for right in rights.split(" ; "):
                a, b = _template(left), _template(right)
                _add(found, Kind(fault, fault if other == "" else other or ""), a, b)
                if other:
                    _add(found, Kind(other, fault, 2), b, a)
    return found


def _add(found: dict[tuple[int, type], list[_Rule]], kind: Kind, pattern: ast.expr, new: ast.expr) -> None:
    free = sorted(_wild(new) - _wild(pattern))
    if len(free) > 1 or not set(free) <= set("ABC"):
        return  # "A -> A.G()": which method?
    if free:
        commutes = isinstance(new, ast.BinOp) and isinstance(new.op, ast.Add | ast.Mult | ast.BitAnd | ast.BitOr)
        if commutes and free == ["A"]:
            return  # as with B
        if kind.mend in RARE or isinstance(getattr(new, "op", None), ast.FloorDiv):
            return
        kind = kind._replace(level=3)
    elif isinstance(pattern, ast.Name):
        # Nobody puts a logarithm where nothing belongs; who did has it in the text.
        kind = kind._replace(fault="", rank=0 if kind.mend in LIKELY_AROUND else 4)
    key = kind.level, ast.expr if isinstance(pattern, ast.Name) else type(pattern)
    found.setdefault(key, []).append(_Rule(kind, pattern, new, "".join(free)))


def _template(text: str) -> ast.expr:
    if text.startswith("["):
        whole = ast.parse("_" + text, mode="eval").body
        assert isinstance(whole, ast.Subscript)
        return whole.slice
    return ast.parse(text, mode="eval").body


def _wild(template: ast.expr) -> set[str]:
    names = {node.id for node in ast.walk(template) if isinstance(node, ast.Name)}
    return (names | {node.attr for node in ast.walk(template) if isinstance(node, ast.Attribute)}) & WILD


def _by_rule(
    owner: Any, field: str, node: ast.expr, level: int, names: Sequence[str], counts: bool
) -> Iterator[tuple[Kind, ast.expr]]:
    rules = _rules().get((level, type(node)), [])
    if _is_value(owner, field, node) and not (counts and level == 2):
        rules = [*rules, *_rules().get((level, ast.expr), [])]
    for kind, pattern, new, free in rules:
        bound: dict[str, Any] = {}
        if not _match(pattern, node, bound):
            continue
        if not free:
            built = _build(new, bound)
            if not (isinstance(built, ast.BinOp) and isinstance(built.op, TIMES) and _is(built.right, 1)):
                yield kind, built
            continue
        divides = isinstance(getattr(new, "op", None), ast.Div)
        for name in [name for name in names if name != getattr(node, "id", "")] if not (counts and divides) else ():
            yield kind._replace(free=name), _build(new, bound | {free: ast.Name(name, ast.Load())})


def _is_value(owner: Any, field: str, node: ast.expr) -> bool:
    """Return whether a node stands for a value, and not for a function, a module or a shape's part."""
    if field in ("func", "keywords") or isinstance(owner, ast.keyword | ast.For):
        return False
    if isinstance(owner, ast.Attribute) and (owner.attr == "shape" or getattr(node, "id", "") == "np"):
        return False
    return isinstance(node, ast.Name | ast.BinOp | ast.Call | ast.Subscript | ast.Attribute)


def _match(pattern: Any, node: Any, bound: dict[str, Any]) -> bool:
    """Return whether a node has the form of a template; write into `bound` what its wildcards stand for."""
    if isinstance(pattern, ast.Name) and pattern.id in WILD:
        if not isinstance(node, ast.expr) or isinstance(node, ast.Slice | ast.Starred):
            return False
        known = bound.setdefault(pattern.id, node)
        return known is node or ast.dump(known) == ast.dump(node)
    if type(pattern) is not type(node):
        return False
    for field in pattern._fields:
        a: Any = getattr(pattern, field, None)
        b: Any = getattr(node, field, None)
        if field == "attr" and a == "G":
            a = bound.setdefault("G", b)
        if isinstance(a, list):
            if a and (isinstance(a[-1], ast.Starred) or getattr(a[-1], "arg", "") is None):
                bound[a[-1].value.id], a, b = b[len(a) - 1 :], a[:-1], b[: len(a) - 1]
            if len(a) != len(b) or not all(_match(x, y, bound) for x, y in zip(a, b, strict=True)):
                return False
        elif isinstance(a, ast.AST):
            if field != "ctx" and not _match(a, b, bound):
                return False
        elif a != b or type(a) is not type(b):
            return False
    return True


def _build(template: Any, bound: Mapping[str, Any]) -> Any:
    """Return a template with its wildcards filled in."""
    if isinstance(template, ast.Name) and template.id in WILD:
        return bound[template.id]
    if isinstance(template, list):
        items: list[Any] = []
        for item in template:
            rest = isinstance(item, ast.Starred) or (isinstance(item, ast.keyword) and item.arg is None)
            items += bound[item.value.id] if rest else [_build(item, bound)]
        return items
    if not isinstance(template, ast.AST):
        return bound["G"] if template == "G" else template
    return type(template)(**{field: _build(getattr(template, field, None), bound) for field in template._fields})


def _by_code(node: ast.expr, factor: bool) -> Iterator[tuple[Kind, ast.expr]]:
    """Yield (kind, what stands in place of the node) for the kinds that no template describes.

    factor: whether the node is one, so that the mistake may be another factor
    """
    same: dict[type, Callable[[Any], Variants]] = {
        ast.BinOp: _regrouped,
        ast.Compare: _of_comparison,
        ast.Call: _of_call,
        ast.Constant: _of_constant,
    }
    same |= {ast.Subscript: _of_index, ast.Tuple: _of_tuple, ast.List: _of_tuple, ast.BoolOp: _of_condition}
    same |= {ast.UnaryOp: _of_constant} if is_number(node) else {}
    for *kind, new in same[type(node)](node) if type(node) in same else ():
        number = kind[0] == "a number"
        mend = SCALED if number and factor and kind[-1] and not _is(new, 0) else kind[-1]
        yield Kind(kind[0], mend, rank=number), new


def _is(node: ast.expr, number: int) -> bool:
    return isinstance(node, ast.Constant) and node.value == number


ONE = ast.Constant(1)
Variants = Iterator[tuple[Any, ...]]  # (kind, new), or (kind as a fault, kind as a mistake that is mended, new)


def _operation(left: ast.expr, op: ast.operator, right: ast.expr) -> ast.BinOp:
    return ast.BinOp(left, op, right)


def _regrouped(node: ast.BinOp) -> Variants:
    """Yield the operation with its brackets elsewhere."""
    left, op, right = node.left, node.op, node.right
    kind = "brackets"
    if isinstance(left, ast.BinOp):  # (a + b) * c: a + b * c, or a * c + b
        a, inner, b = left.left, left.op, left.right
        yield kind, _operation(a, inner, _operation(b, op, right))
        if isinstance(inner, PLUS) and isinstance(op, TIMES):
            yield kind, _operation(_operation(a, op, right), inner, b)
    if isinstance(right, ast.BinOp):  # a + b * c: (a + b) * c; a * (b + c): a * b + c
        a, inner, b = right.left, right.op, right.right
        yield kind, _operation(_operation(left, op, a), inner, b)
        if isinstance(inner, PLUS) and isinstance(op, ast.Mult):
            yield kind, _operation(a, inner, _operation(left, op, b))


def _of_condition(node: ast.BoolOp) -> Variants:
    for k in range(len(node.values)):
        rest = node.values[:k] + node.values[k + 1 :]
        yield (
            "a condition is left out",
            "a condition too many",
            rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest),
        )
    yield "and, or", ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)


def _of_comparison(node: ast.Compare) -> Variants:
    for k, op in enumerate(node.ops):
        for kind, table in (("the border of a comparison", BORDER), ("a comparison is turned round", TURNED)):
            if type(op) in table:
                ops = [*node.ops[:k], table[type(op)](), *node.ops[k + 1 :]]
                yield kind, ast.Compare(node.left, ops, node.comparators)
    *others, last = node.comparators
    for shift in ast.Sub(), ast.Add():
        one_off = [*others, _operation(last, shift, ast.Constant(1))]
        yield "the border of a comparison", ast.Compare(node.left, node.ops, one_off)
    left_out = "a condition is left out", "a condition too many"
    if len(node.ops) > 1:
        yield *left_out, ast.Compare(node.left, node.ops[:-1], others)
        yield *left_out, ast.Compare(node.comparators[0], node.ops[1:], node.comparators[1:])
    yield *left_out, ast.Constant(True)
    yield "a condition that never holds", "a condition that should never hold", ast.Constant(False)


def is_number(node: ast.AST) -> bool:
    """Return whether a node is a number, or one with a minus."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _of_constant(node: ast.expr) -> Variants:
    value = ast.literal_eval(node)
    if value in MODES:
        yield from (("padding with something else", ast.Constant(mode)) for mode in MODES)
    if isinstance(value, str) and "->" in value:
        yield from _of_formula(value)
    if not is_number(node):
        return
    others = [value + 1, value - 1, 0, 1, -1, -value, 2 * value, value / 2, float("nan")]
    others += [10, 100, 10 * value, value / 10] if abs(value) > 4 else []  # not where arrays would become huge
    for other in dict.fromkeys(int(v) if v == v and v == int(v) else v for v in others):
        if other != value:
            number: ast.expr = ast.Constant(abs(other))
            if other != other:
                number = ast.Attribute(ast.Name("np", ast.Load()), "nan", ast.Load())
            one_of_few = abs(value) < 4 or other not in (0, 1, -1)  # nobody wrote 4 for the 1 of a loop's step
            signed = number if not other < 0 else ast.UnaryOp(ast.USub(), number)
            yield "a number", "a number" if one_of_few else "", signed


def _of_formula(text: str) -> Variants:
    """Yield the formula of an np.einsum with letters of one part exchanged, moved, replaced, left out or added."""
    parts = re.split(r"(,|->)", text.replace(" ", ""))
    letters = sorted({letter for part in parts for letter in part if letter.isalpha()})
    for k, part in enumerate(parts[::2]):
        others = []
        for a, b in itertools.combinations(range(len(part)), 2):
            others.append(part[:a] + part[b] + part[a + 1 : b] + part[a] + part[b + 1 :])
        for a in range(len(part)):
            rest = part[:a] + part[a + 1 :]
            others += [rest[:b] + part[a] + rest[b:] for b in range(len(part))]
            others += [part[:a] + letter + part[a + 1 :] for letter in letters]
            others.append(rest)
        others += [part[:a] + letter + part[a:] for a in range(len(part) + 1) for letter in letters]
        for other in dict.fromkeys(others):
            if other != part:
                new = "".join([*parts[: 2 * k], other, *parts[2 * k + 1 :]])
                yield "letters of the formula", ast.Constant(new)


def _of_call(node: ast.Call) -> Variants:
    called = node.func
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    for function in dict.fromkeys(itertools.chain(*(family for family in FAMILIES if name in family))):
        if isinstance(called, ast.Attribute):
            yield OTHER, ast.Call(ast.Attribute(called.value, function, ast.Load()), node.args, node.keywords)
        elif function in ("max", "min", "sum", "abs", "round"):
            yield OTHER, ast.Call(ast.Name(function, ast.Load()), node.args, node.keywords)
    for k in range(len(node.keywords)):
        fewer = ast.Call(called, node.args, node.keywords[:k] + node.keywords[k + 1 :])
        yield "an option is left out", "an option too many", fewer
        if isinstance(value := node.keywords[k].value, ast.Constant) and isinstance(value.value, bool):
            other = ast.keyword(node.keywords[k].arg, ast.Constant(not value.value))
            turned = ast.Call(called, node.args, [*node.keywords[:k], other, *node.keywords[k + 1 :]])
            yield "an option is the other way round", turned
    if name in {"var", "std"} and not any(keyword.arg == "ddof" for keyword in node.keywords):
        biased = ast.keyword("ddof", ast.Constant(1))
        kind = "divided by one less than the count", "divided by the count, not by one less"
        yield *kind, ast.Call(called, node.args, [*node.keywords, biased])
    if name in REDUCE or name == "flip":
        yield from _of_axes(node)
    if name == "transpose" and len(node.args) > 2:
        for order in itertools.permutations(node.args):
            yield "axes", ast.Call(called, list(order), node.keywords)
    elif len(node.args) == 2 and name not in {"range", "zip", "enumerate"}:
        yield "arguments are exchanged", ast.Call(called, node.args[::-1], node.keywords)


def _of_axes(node: ast.Call) -> Variants:
    """Yield a sum, a mean and the like over other axes."""
    at = next((k for k, keyword in enumerate(node.keywords) if keyword.arg == "axis"), None)
    kept = ast.keyword("keepdims", ast.Constant(True))
    last = node.args[-1] if node.args else None
    for axes in AXES:
        constant = ast.Constant(axes)  # type: ignore[arg-type]
        axis = ast.keyword("axis", constant)
        if at is not None:
            keywords = [*node.keywords[:at], axis, *node.keywords[at + 1 :]]
            yield "axes", ast.Call(node.func, node.args, keywords)
            if len(keywords) == 1:
                yield "axes", ast.Call(node.func, node.args, [*keywords, kept])
        elif last is not None and (is_number(last) or isinstance(last, ast.Tuple)):
            yield "axes", ast.Call(node.func, [*node.args[:-1], constant], node.keywords)
        elif axes is not None:
            yield "axes", ast.Call(node.func, node.args, [*node.keywords, axis])
            yield "axes", ast.Call(node.func, node.args, [*node.keywords, axis, kept])


def _of_index(node: ast.Subscript) -> Variants:
    whole = isinstance(node.slice, ast.Tuple)
    places = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    for k, place in enumerate(places):
        if isinstance(place, ast.Slice):
            continue
        number = is_number(place)
        near = "another index" if number else "off by one"
        for kind, other, new in (
            *(
                (near, near, ast.Constant(ast.literal_eval(place) + one) if number else _operation(place, op, ONE))
                for one, op in ((1, ast.Add()), (-1, ast.Sub()))
            ),
            ("always the first", "the first was meant", ast.Constant(0)),
            ("always the last", "the last was meant", ast.Constant(-1)),
            ("all of them, and not one", "all of them were meant, not one", ast.Slice()),
        ):
            index: ast.expr = ast.Tuple([*places[:k], new, *places[k + 1 :]], ast.Load()) if whole else new
            yield kind, other, ast.Subscript(node.value, index, node.ctx)


def _of_tuple(node: ast.Tuple | ast.List) -> Variants:
    for a, b in itertools.combinations(range(len(node.elts)), 2):
        order = list(node.elts)
        order[a], order[b] = order[b], order[a]
        yield "order: two are exchanged", type(node)(order, ast.Load())
    if len(node.elts) in (3, 4) and all(map(is_number, node.elts)):
        for numbers in itertools.permutations(node.elts):
            yield "order", type(node)(list(numbers), ast.Load())


# --- statements ---


def _statements(function: ast.FunctionDef) -> Iterator[Change]:
    """Yield changes of whole statements: left out, exchanged, in or out of a loop, early returns."""
    for owner in ast.walk(function):
        for field in "body", "orelse":
            body = getattr(owner, field, None)
            if not isinstance(body, list):
                continue
            for fault, mend, before, after, new in _bodies(body, isinstance(owner, ast.For | ast.While)):
                kind = Kind(fault, mend, 1 if fault or mend in LIKELY else 3)
                alike = (kind, before) if kind.mend == BREAK else None
                yield _whole(owner, field, new or [ast.Pass()], kind, before, after)._replace(alike=alike)
    yield from _late_returns(function)
    for node in ast.walk(function):
        if isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Store):
            for kind, other in _of_tuple(node):
                do, undo = put(node, "elts", None, other.elts)
                before, after = ast.unparse(node), ast.unparse(other)
                # Two names that are exchanged only here are exchanged everywhere else, too.
                yield Change(Kind(kind, kind, 2, 3), do, undo, functools.partial(list, [(before, after)]))


def _whole(owner: Any, field: str, new: list[ast.stmt], kind: Kind, before: str, after: str = "") -> Change:
    """Return a change of a list of statements."""
    return Change(kind, *put(owner, field, None, new), lambda: [(before, after)])


EARLY = "early return: it stands inside the loop, which ends at its first step; it belongs behind it"
BREAK = "break ends the loop: continue goes on to its next step"
ADDED = "it is assigned, and should be added"
LIKELY = ADDED, EARLY, BREAK
Bodies = Iterator[tuple[str, str, str, str, list[ast.stmt]]]


def _bodies(body: list[ast.stmt], in_loop: bool) -> Bodies:
    """Yield (what is wrong if right, what was wrong if wrong, text, new text or nothing, the statements)."""
    for k, node in enumerate(body):
        before, after, text = body[:k], body[k + 1 :], ast.unparse(node).split("\n")[0]
        if not isinstance(node, ast.Return):
            yield "this is left out", "this does not belong there", text, "", before + after
            if after and not isinstance(after[0], ast.Return):
                both = f"{text}; {ast.unparse(after[0])}".replace("\n", " ")
                order = "order: these two are exchanged"
                yield order, order, both, "", [*before, after[0], node, *after[1:]]
        for fault, mend, new in _of_assignment(node):
            yield fault, mend, text, ast.unparse(ast.fix_missing_locations(new)), [*before, new, *after]
        if isinstance(node, ast.If):
            yield "the condition is left out", "a condition too many", text, "", [*before, *node.body, *after]
            turned = ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
            yield "reversed", "reversed", text, "", [*before, turned, *after]
            if in_loop and isinstance(node.body[-1], ast.Return):
                kind = "only the first step of the loop is made: it returns in any case"
                yield kind, "", text, "", [*before, node, *after, ast.Return(ast.Constant(-1))]
        if isinstance(node, ast.Break):
            yield "", BREAK, "break", "continue", [*before, ast.Continue()]
        if isinstance(node, ast.For):
            yield from _of_loop(before, node, after, text)


def _of_assignment(node: ast.stmt) -> Iterator[tuple[str, str, ast.stmt]]:
    added = "it is added, and should be assigned"
    if isinstance(node, ast.AugAssign):
        yield "it is assigned, not added", added, ast.Assign([node.target], node.value)
        for op in (ast.Add, ast.Sub, ast.Mult, ast.Div):
            if not isinstance(node.op, op):
                yield "another operation", "another operation", ast.AugAssign(node.target, op(), node.value)
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name | ast.Subscript):
        yield "", ADDED, ast.AugAssign(node.targets[0], ast.Add(), node.value)


def _of_loop(before: list[ast.stmt], node: ast.For, after: list[ast.stmt], text: str) -> Bodies:
    """Yield a loop that ends early, and statements moved out of it and into it."""

    def loop(body: list[ast.stmt]) -> list[ast.stmt]:
        return [ast.For(node.target, node.iter, body, node.orelse)] if body else []

    yield "the loop ends after its first step", "", text, "", [*before, *loop([*node.body, ast.Break()]), *after]
    anew = "this starts anew at every step of the loop"
    once, behind = "this is set once, before the loop, and not at every step", "this is done once, behind the loop"
    first, last = node.body[0], node.body[-1]
    if before and isinstance(before[-1], ast.Assign):
        yield (
            anew,
            once,
            ast.unparse(before[-1]),
            "",
            [*before, *loop([before[-1], *node.body]), *after],
        )
    if isinstance(first, ast.Assign) and node.body[1:]:
        yield once, anew, ast.unparse(first), "", [*before, first, *loop(node.body[1:]), *after]
    if not isinstance(last, ast.Return | ast.If) and node.body[1:]:
        every = "this is done at every step, and belongs behind the loop"
        yield behind, every, ast.unparse(last), "", [*before, *loop(node.body[:-1]), last, *after]
    if after and isinstance(after[0], ast.Return):
        for early in _returning(node, after[0]):
            yield EARLY, "", ast.unparse(after[0]), "", [*before, early, *after]
    elif after:
        yield "", behind, ast.unparse(after[0]).split("\n")[0], "", [*before, *loop([*node.body, after[0]]), *after[1:]]


def _returning(loop: ast.For, node: ast.Return) -> Iterator[ast.For]:
    """Yield the loop with the return at its end, and at the end of each loop within it."""
    yield ast.For(loop.target, loop.iter, [*loop.body, node], [])
    for k, inner in enumerate(loop.body):
        if isinstance(inner, ast.For):
            for early in _returning(inner, node):
                yield ast.For(loop.target, loop.iter, [*loop.body[:k], early, *loop.body[k + 1 :]], [])


def _late_returns(function: ast.FunctionDef) -> Iterator[Change]:
    """Yield the function with a return moved from a loop to its end, and with one where there is none."""
    for loop in ast.walk(function):
        for owner in ast.walk(loop) if isinstance(loop, ast.For | ast.While) else []:
            for field in "body", "orelse":
                body = getattr(owner, field, None)
                if isinstance(body, list) and body and isinstance(last := body[-1], ast.Return):
                    early = _whole(owner, field, body[:-1] or [ast.Pass()], Kind("", EARLY), ast.unparse(last))
                    late = _whole(function, "body", [*function.body, last], early.kind, "")
                    yield together([early, late])._replace(texts=early.texts)
    if not isinstance(function.body[-1], ast.Return):
        for name in uses(function):
            new = ast.Return(ast.Name(name, ast.Load()))
            kind = Kind("", "nothing is returned: this is missing at the end", 2)
            yield _whole(function, "body", [*function.body, new], kind, f"return {name}")


# --- names ---


def uses(function: ast.FunctionDef) -> dict[str, list[ast.Name]]:
    """Return the function's arguments and local names, and where each is read."""
    uses: dict[str, list[ast.Name]] = {a.arg: [] for a in function.args.args}
    nodes = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
    for node in nodes:
        if isinstance(node.ctx, ast.Store) and node.id != "_":
            uses.setdefault(node.id, [])
    for node in nodes:
        if isinstance(node.ctx, ast.Load) and node.id in uses:
            uses[node.id].append(node)
    return uses


def _lists(function: ast.FunctionDef, case: Mapping[str, Any]) -> set[str]:
    """Return the names of lists: a list in itself, or times a list, grows without an end."""
    made = [node for node in ast.walk(function) if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)]
    names = {target.id for node in made for target in node.targets if isinstance(target, ast.Name)}
    return names | {name for name, value in case.items() if isinstance(value, list | tuple)}


def _names(
    function: ast.FunctionDef,
    case: Mapping[str, Any],
    used: dict[str, list[ast.Name]],
    lists: set[str],
    kinds: Mapping[str, str],
) -> Iterator[Change]:
    """Yield one name in place of another, or of a number: at one place, or everywhere from the first use on."""

    def fit(a: str, b: str) -> bool:
        return (a in lists) == (b in lists) and kinds.get(a, kinds.get(b)) == kinds.get(b, kinds.get(a))

    partners = _partners(function, case)
    for place in places(function):
        owner, _, _, node = place
        # In a comparison of numbers, and in a range, a wrong name is likelier than a wrong border.
        counts = isinstance(node, ast.Name) and kinds.get(node.id) == "int"
        in_range = isinstance(owner, ast.Call) and getattr(owner.func, "id", "") == "range"
        level, rank = (1, -1) if counts and (in_range or isinstance(owner, ast.Compare)) else (2, 2 if counts else 3)
        if isinstance(node, ast.Name) and node.id in used:
            for name in used:
                if name != node.id and fit(name, node.id) and not isinstance(owner, ast.Attribute):
                    likely = (1, -1) if (name, node.id) in partners else (level, rank)
                    yield change_of(place, ast.Name(name, ast.Load()), Kind("another name", "another name", *likely))
            for number in (0, 1, -1):
                zero = Kind(f"`{node.id}` is left out, as if it were {number}", f"`{node.id}` does not belong there", 2)
                yield change_of(place, ast.Constant(number), zero)
        elif is_number(node) and not small_in_sum(place):
            for name in [name for name in used if name not in lists]:
                kind = Kind("a name where a number belongs", "a number where a name belongs", 2, 1)
                if kinds.get(name, "int") in ("int", "float"):
                    yield change_of(place, ast.Name(name, ast.Load()), kind)
    statements = [node for node in ast.walk(function) if isinstance(node, ast.Assign | ast.AugAssign | ast.Return)]
    for a, b in itertools.permutations(used, 2):
        if len(used[a]) > 1 and not {a, b} & lists and fit(a, b):
            kind = Kind(f"`{b}` stands where `{a}` belongs", f"`{a}` stands where `{b}` belongs", 2, 3)
            yield _renamed(used[a], b, kind)
            for statement in statements:  # such as a line for rows that was copied for columns
                here = [part for part in ast.walk(statement) if isinstance(part, ast.Name) and part in used[a]]
                if 1 < len(here) < len(used[a]):
                    yield _renamed(here, b, kind._replace(fault=""), ast.unparse(statement))


def _partners(function: ast.FunctionDef, case: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Return names that stand for the like, as height and width do: a line for the one is copied for the other.

    They have a word in common, as area and other_area, are neighbours among the arguments, of one kind, or in a tuple
    that is assigned to, or differ in two statements of one form that follow each other.
    """
    alike = {
        name: (type(value), np.ndim(value) if isinstance(value, np.ndarray) else 0) for name, value in case.items()
    }
    pairs = {(a, b) for a, b in itertools.pairwise(case) if alike[a] == alike[b]}
    pairs |= {(a, b) for a, b in itertools.combinations(uses(function), 2) if {*a.split("_")} & {*b.split("_")}}
    for node in ast.walk(function):
        if isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Store):
            pairs |= set(itertools.pairwise(item.id for item in node.elts if isinstance(item, ast.Name)))
        body = getattr(node, "body", None)
        for one, other in itertools.pairwise(body) if isinstance(body, list) else ():
            names = [[part.id for part in ast.walk(each) if isinstance(part, ast.Name)] for each in (one, other)]
            if _form(one) == _form(other):
                pairs |= set(zip(*names, strict=True))
    return pairs | {(b, a) for a, b in pairs}


def _form(node: ast.AST) -> str:
    """Return a statement as text without its names and numbers."""
    return re.sub(r"\b(id|value)='?[\w.]+'?", "", ast.dump(node))


def small_in_sum(place: Place) -> bool:
    """Return whether a number is the 1 or the 2 of a formula, such as 2 * padding or + 1, and no size."""
    owner, _, _, node = place
    return isinstance(owner, ast.BinOp) and isinstance(node, ast.Constant) and node.value in (1, 2)


def _renamed(places: list[ast.Name], new: str, kind: Kind, text: str = "") -> Change:
    old = places[0].id

    def name(value: str) -> None:
        for place in places:
            place.id = value

    return Change(kind, lambda: name(new), lambda: name(old), lambda: [(text or old, "")])
