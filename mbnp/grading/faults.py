"""A right solution with one fault in it, for every place and every kind of fault that people make.

The lessons' own mistakes have a message each. What they do not foresee is looked for here: `of_source` changes one
thing in the text of a right solution (a term left out, a comparison at its border, two names exchanged, a loop that
returns early), `of_arguments` calls it with another argument, `of_result` changes what it returns. The fault that
gives exactly the reader's numbers in every case is the likely reason.
"""

# mypy: disable-error-code="misc"
# (it cannot infer the types of lambdas with defaults)

import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np


class Fault(NamedTuple):
    """What is wrong, in words, and a function that has it."""

    message: str
    wrong: Callable


# --- the text of the solution ---


def of_source(solution: Callable, case: Mapping[str, Any] | None = None) -> Iterator[Fault]:
    """Yield the solution with one thing in its text changed.

    case: with these arguments, yield the solution with one name in place of another instead
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(solution)))
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    if case:
        changes = sorted(_names(function, case), key=lambda change: change.rank)
    else:
        changes = [*_expressions(function), *_statements(function)]
        changes += _mirrored(changes)
    for change in changes:
        change.do()
        try:
            wrong = _compiled(tree, solution)
        finally:
            change.undo()
        if wrong is not None:
            yield Fault(change.message, wrong)


def _compiled(tree: ast.Module, solution: Callable) -> Callable | None:
    names = dict(solution.__globals__)
    try:
        exec(compile(ast.fix_missing_locations(tree), "<a fault>", "exec"), names)
    except (SyntaxError, TypeError, ValueError):
        return None
    return names[solution.__name__]


class _Change(NamedTuple):
    rank: int
    message: str
    do: Callable[[], None]
    undo: Callable[[], None]


# A name of the rows, and the same for the columns.
MIRROR = {"i": "j", "u": "v", "p": "q", "H": "W", "KH": "KW", "OH": "OW"}
MIRROR |= {column: row for row, column in MIRROR.items()}


def _mirrored(changes: list[_Change]) -> Iterator[_Change]:
    """Yield two changes as one where they are the same for the rows and for the columns."""
    known = {change.message: change for change in changes}
    for message, change in known.items():
        other = known.get(re.sub(r"\b[A-Za-z]+\b", lambda name: MIRROR.get(name[0], name[0]), message), change)
        if message < other.message:
            yield _both(change, other)


def _both(first: _Change, second: _Change) -> _Change:
    def do() -> None:
        first.do()
        second.do()

    def undo() -> None:
        second.undo()
        first.undo()

    return _Change(1, f"{first.message}, for rows and for columns alike", do, undo)


def _replace(owner: Any, field: str, at: int | None, new: Any, message: str, rank: int = 1) -> _Change:
    """Return the change of a field of a node, or of one item of it where it is a list."""
    if at is None:
        old = getattr(owner, field)
        return _Change(rank, message, lambda: setattr(owner, field, new), lambda: setattr(owner, field, old))
    items = getattr(owner, field)
    old = items[at]
    return _Change(rank, message, lambda: items.__setitem__(at, new), lambda: items.__setitem__(at, old))


def _said(kind: str, wrong: str, right: str) -> str:
    return f"{kind}: the numbers come out so with `{_cut(wrong)}` in place of `{_cut(right)}`"


def _cut(text: str, most: int = 70) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 4] + " ..."


def _expressions(function: ast.FunctionDef) -> Iterator[_Change]:
    """Yield changes of one expression."""
    for owner, field, at, node in _places(function):
        shown = owner if isinstance(owner, ast.expr) and not isinstance(owner, ast.Call | ast.Tuple) else node
        for kind, new in _variants(node):
            yield _replace(owner, field, at, new, _shown(owner, field, at, shown, node, new, kind))


def _places(function: ast.FunctionDef) -> Iterator[tuple[Any, str, int | None, ast.expr]]:
    """Yield each expression that is read in the function, after its owner, the owner's field, and where in a list."""
    for owner in ast.walk(function):
        for field, value in ast.iter_fields(owner):
            if owner is function and field != "body":
                continue
            for at, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(node, ast.expr) and isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
                    yield owner, field, at, node


def _shown(owner: Any, field: str, at: int | None, shown: ast.AST, node: ast.expr, new: ast.expr, kind: str) -> str:
    """Return the message: the expression, with what is around it if that is an expression, before and after."""
    if shown is node:
        return _said(kind, ast.unparse(new), ast.unparse(node))
    right = ast.unparse(shown)
    change = _replace(owner, field, at, new, "")
    change.do()
    try:
        wrong = ast.unparse(shown)
    finally:
        change.undo()
    return _said(kind, wrong, right)


def _variants(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Yield (kind of fault, the expression that stands in place of the right one)."""
    if isinstance(node, ast.BinOp):
        yield from _of_operation(node)
    elif isinstance(node, ast.Compare):
        yield from _of_comparison(node)
    elif isinstance(node, ast.BoolOp):
        for k in range(len(node.values)):
            rest = node.values[:k] + node.values[k + 1 :]
            yield "a condition is left out", rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and, or", ast.BoolOp(other, node.values)
    elif isinstance(node, ast.UnaryOp) and not _is_number(node):
        yield ("sign" if isinstance(node.op, ast.USub) else "reversed"), node.operand
    elif _is_number(node):
        yield from _of_number(node)
    elif isinstance(node, ast.Call):
        yield from _of_call(node)
    elif isinstance(node, ast.Subscript):
        yield from _of_index(node)
    elif isinstance(node, ast.Slice):
        yield from _of_slice(node)
    elif isinstance(node, ast.Tuple):
        yield from _of_tuple(node)
    elif isinstance(node, ast.IfExp):
        yield "no difference is made", node.body
        yield "no difference is made", node.orelse
        yield "reversed", ast.IfExp(node.test, node.orelse, node.body)


def _operation(left: ast.expr, op: ast.operator, right: ast.expr) -> ast.BinOp:
    return ast.BinOp(left, op, right)


def _of_operation(node: ast.BinOp) -> Iterator[tuple[str, ast.expr]]:
    left, op, right = node.left, node.op, node.right
    if isinstance(op, ast.Add | ast.Sub):
        yield "a term is left out", left
        yield "a term is left out", right if isinstance(op, ast.Add) else ast.UnaryOp(ast.USub(), right)
        yield "sign", _operation(left, ast.Sub() if isinstance(op, ast.Add) else ast.Add(), right)
        if isinstance(op, ast.Sub):
            yield "the difference is the other way round", _operation(right, ast.Sub(), left)
            yield "absolute values", ast.Call(ast.Name("abs", ast.Load()), [node], [])
        yield "a product for a sum", _operation(left, ast.Mult(), right)
    elif isinstance(op, ast.Mult):
        yield "a factor is left out", left
        yield "a factor is left out", right
        yield "it divides instead of multiplying", _operation(left, ast.Div(), right)
        yield "a sum for a product", _operation(left, ast.Add(), right)
        yield "a factor counts twice", _operation(node, ast.Mult(), right)
        yield "a factor counts twice", _operation(left, ast.Mult(), node)
    elif isinstance(op, ast.Div | ast.FloorDiv):
        yield "a division is left out", left
        yield "upside down", _operation(right, op, left)
        yield "it multiplies instead of dividing", _operation(left, ast.Mult(), right)
        if isinstance(op, ast.Div):
            yield "integer division", _operation(left, ast.FloorDiv(), right)
            yield "it divides twice", _operation(node, ast.Div(), right)
        else:
            yield "integer division", _operation(left, ast.Div(), right)
            up = ast.UnaryOp(ast.USub(), _operation(ast.UnaryOp(ast.USub(), left), ast.FloorDiv(), right))
            yield "it is rounded up", up
            yield "it is rounded", ast.Call(ast.Name("round", ast.Load()), [_operation(left, ast.Div(), right)], [])
            yield "the remainder is taken", _operation(left, ast.Mod(), right)
    elif isinstance(op, ast.Pow):
        yield "a power is left out", left
    elif isinstance(op, ast.BitAnd | ast.BitOr):
        yield "a condition is left out", left
        yield "a condition is left out", right
        yield "and, or", _operation(left, ast.BitOr() if isinstance(op, ast.BitAnd) else ast.BitAnd(), right)
        yield "exclusive or", _operation(left, ast.BitXor(), right)
    elif isinstance(op, ast.MatMult):
        yield "the product is the other way round", _operation(right, op, left)
        yield "transposed", _operation(left, op, ast.Attribute(right, "T", ast.Load()))
    yield from _regrouped(node)


TIMES = ast.Mult | ast.Div | ast.FloorDiv
PLUS = ast.Add | ast.Sub


def _regrouped(node: ast.BinOp) -> Iterator[tuple[str, ast.expr]]:
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


BORDER = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
TURNED = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}


def _of_comparison(node: ast.Compare) -> Iterator[tuple[str, ast.expr]]:
    for k, op in enumerate(node.ops):
        for kind, table in (("the border of a comparison", BORDER), ("a comparison is turned round", TURNED)):
            if type(op) in table:
                yield (
                    kind,
                    ast.Compare(node.left, [*node.ops[:k], table[type(op)](), *node.ops[k + 1 :]], node.comparators),
                )
    *others, last = node.comparators
    for shift in ast.Sub(), ast.Add():
        one_off = [*others, _operation(last, shift, ast.Constant(1))]
        yield "the border of a comparison", ast.Compare(node.left, node.ops, one_off)
    if len(node.ops) > 1:
        yield "a condition is left out", ast.Compare(node.left, node.ops[:-1], others)
        yield "a condition is left out", ast.Compare(node.comparators[0], node.ops[1:], node.comparators[1:])
    yield "a condition is left out", ast.Constant(True)
    yield "a condition that never holds", ast.Constant(False)


def _is_number(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _of_number(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    value = ast.literal_eval(node)
    others = [value + 1, value - 1, 0, 1, -1, -value, 2 * value, value / 2, float("nan")]
    others += [10, 100, 10 * value, value / 10] if abs(value) > 4 else []  # not where arrays would become huge
    for other in dict.fromkeys(int(v) if v == v and v == int(v) else v for v in others):
        if other != value:
            number: ast.expr = ast.Constant(abs(other))
            if other != other:
                number = ast.Attribute(ast.Name("np", ast.Load()), "nan", ast.Load())
            yield "a number", number if not other < 0 else ast.UnaryOp(ast.USub(), number)


METHODS = {
    "mean": ("sum", "max"),
    "sum": ("mean", "max"),
    "max": ("min", "mean", "sum"),
    "min": ("max", "mean", "sum"),
    "std": ("var",),
    "var": ("std",),
    "any": ("all",),
    "all": ("any",),
    "maximum": ("minimum", "add"),
    "minimum": ("maximum", "add"),
    "cos": ("sin",),
    "sqrt": ("square", "abs"),
    "exp": ("exp2", "expm1"),
    "range": (),
}
DROPPED = {"abs", "sqrt", "exp", "log", "maximum", "minimum", "max", "min", "int", "where", "pad", "round", "transpose"}
AXES = (None, 0, 1, 2, 3, -1, (0, 1), (1, 2), (0, 2), (0, 3), (0, 1, 2), (0, 2, 3), (1, 2, 3))


def _of_call(node: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    called = node.func
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    is_module = isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "np"
    if isinstance(called, ast.Attribute):
        for other in METHODS.get(name, ()):
            yield "another function", ast.Call(ast.Attribute(called.value, other, ast.Load()), node.args, node.keywords)
        if not is_module and name not in {"copy", "astype"}:
            yield "a step is left out", called.value
            if isinstance(called.value, ast.Call):
                yield from _exchanged(node, called.value)
    if (is_module or isinstance(called, ast.Name)) and name in DROPPED:
        for argument in node.args:
            yield "a step is left out", argument
    if len(node.args) == 1 and isinstance(node.args[0], ast.BinOp) and (is_module or isinstance(called, ast.Name)):
        a, op, b = node.args[0].left, node.args[0].op, node.args[0].right
        yield "brackets", _operation(ast.Call(called, [a], node.keywords), op, b)
        yield "brackets", _operation(a, op, ast.Call(called, [b], node.keywords))
    for k in range(len(node.keywords)):
        yield "an option is left out", ast.Call(called, node.args, node.keywords[:k] + node.keywords[k + 1 :])
    if name in {"var", "std"} and not any(keyword.arg == "ddof" for keyword in node.keywords):
        biased = ast.keyword("ddof", ast.Constant(1))
        yield "divided by one less than the count", ast.Call(called, node.args, [*node.keywords, biased])
    for k, keyword in enumerate(node.keywords):
        if keyword.arg == "axis":
            for axis in AXES:
                new = ast.keyword("axis", ast.Constant(axis))  # type: ignore[arg-type]
                yield "axes", ast.Call(called, node.args, [*node.keywords[:k], new, *node.keywords[k + 1 :]])
    if name == "range":
        yield from _of_range(node)
    if name == "transpose" and not is_module:
        for order in itertools.permutations(node.args):
            if list(order) != node.args:
                yield "axes", ast.Call(called, list(order), node.keywords)
    elif len(node.args) == 2 and name not in {"range", "zip", "enumerate"}:
        yield "arguments are exchanged", ast.Call(called, node.args[::-1], node.keywords)


def _exchanged(node: ast.Call, inner: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    """Yield np.f(a).g() as np.f(a.g())."""
    if isinstance(inner.func, ast.Attribute) and len(inner.args) == 1:
        assert isinstance(node.func, ast.Attribute)
        first = ast.Call(ast.Attribute(inner.args[0], node.func.attr, ast.Load()), node.args, node.keywords)
        yield "order", ast.Call(inner.func, [first], inner.keywords)
        yield "a step is left out", first


def _of_range(node: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    kind = "a loop's first or last step"
    end = node.args[min(1, len(node.args) - 1)]
    one = ast.Constant(1)
    for op in ast.Sub(), ast.Add():
        changed: ast.expr = _operation(end, op, one)
        args = [*node.args[:1], changed, *node.args[2:]] if len(node.args) > 1 else [changed]
        yield kind, ast.Call(node.func, args, [])
    if len(node.args) == 1:
        yield kind, ast.Call(node.func, [one, end], [])
        yield kind, ast.Call(node.func, [one, _operation(end, ast.Add(), one)], [])
        yield kind, ast.Call(node.func, [one, _operation(end, ast.Sub(), one)], [])
        yield "only the first", ast.Call(node.func, [one], [])
    yield "the loop runs backwards", ast.Call(ast.Name("reversed", ast.Load()), [node], [])


def _of_index(node: ast.Subscript) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node.slice, ast.Tuple):
        places = node.slice.elts
        for a, b in itertools.combinations(range(len(places)), 2):
            order = list(places)
            order[a], order[b] = order[b], order[a]
            if ast.dump(places[a]) != ast.dump(places[b]):
                yield "indices are exchanged", ast.Subscript(node.value, ast.Tuple(order, ast.Load()), node.ctx)
    for k, place in enumerate(node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]):
        if isinstance(place, ast.Slice):
            continue
        for kind, new in (
            ("off by one", _operation(place, ast.Add(), ast.Constant(1))),
            ("off by one", _operation(place, ast.Sub(), ast.Constant(1))),
            ("always the first", ast.Constant(0)),
            ("always the last", ast.Constant(-1)),
        ):
            whole: ast.expr = new
            if isinstance(node.slice, ast.Tuple):
                whole = ast.Tuple([*node.slice.elts[:k], new, *node.slice.elts[k + 1 :]], ast.Load())
            yield kind, ast.Subscript(node.value, whole, node.ctx)


def _of_slice(node: ast.Slice) -> Iterator[tuple[str, ast.expr]]:
    one = ast.Constant(1)
    for bound in "lower", "upper":
        old = getattr(node, bound)
        parts: dict[str, ast.expr | None] = {"lower": node.lower, "upper": node.upper, "step": node.step}
        new: list[ast.expr | None] = [None] if old is not None else []
        if old is not None:
            new += [_operation(old, ast.Add(), one), _operation(old, ast.Sub(), one)]
        elif bound == "lower":
            new += [one, *([node.step, _operation(node.step, ast.Sub(), one)] if node.step else [])]
        else:
            new += [ast.Constant(-1)]
        for value in new:
            yield "where a slice begins or ends", ast.Slice(**(parts | {bound: value}))  # type: ignore[arg-type]
    if node.step:
        yield "the step of a slice is left out", ast.Slice(node.lower, node.upper, None)


def _of_tuple(node: ast.Tuple) -> Iterator[tuple[str, ast.expr]]:
    for a, b in itertools.combinations(range(len(node.elts)), 2):
        order = list(node.elts)
        order[a], order[b] = order[b], order[a]
        yield "order: two are exchanged", ast.Tuple(order, ast.Load())


# --- statements ---


def _statements(function: ast.FunctionDef) -> Iterator[_Change]:
    """Yield changes of whole statements: left out, exchanged, in or out of a loop, early returns."""
    for owner in ast.walk(function):
        for field in "body", "orelse":
            body = getattr(owner, field, None)
            if not isinstance(body, list):
                continue
            for kind, wrong, right, new in _bodies(body, isinstance(owner, ast.For)):
                if new:
                    yield _replace(
                        owner, field, None, new, _said(kind, wrong, right) if wrong else f"{kind}: `{_cut(right)}`"
                    )


def _bodies(body: list[ast.stmt], in_loop: bool) -> Iterator[tuple[str, str, str, list[ast.stmt]]]:
    """Yield (kind, wrong text or nothing, right text, the statements)."""
    for k, node in enumerate(body):
        before, after, text = body[:k], body[k + 1 :], ast.unparse(node).split("\n")[0]
        if isinstance(node, ast.Return):
            if in_loop:
                continue
            if before and isinstance(before[-1], ast.For):
                kind = "early return: it stands inside the loop, which ends at its first step; it belongs behind it"
                for early in _returning(before[-1], node):
                    yield kind, "", text, [*before[:-1], early, node]
        else:
            yield "this is left out", "", text, before + after
        if isinstance(node, ast.AugAssign):
            new = ast.Assign([node.target], node.value)
            yield "it is assigned, not added", ast.unparse(ast.fix_missing_locations(new)), text, [*before, new, *after]
            other = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult}.get(type(node.op))
            if other:
                changed = ast.AugAssign(node.target, other(), node.value)
                yield "another operation", ast.unparse(changed), text, [*before, changed, *after]
        if isinstance(node, ast.If):
            yield "the condition is left out", "", text, [*before, *node.body, *after]
            yield (
                "reversed",
                "",
                text,
                [*before, ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse), *after],
            )
            if in_loop and isinstance(node.body[-1], ast.Return):
                kind = "only the first step of the loop is made: it returns in any case"
                yield kind, "", text, [*before, node, *after, *_last_return(body)]
        if isinstance(node, ast.For):
            once = ast.For(node.target, node.iter, [*node.body, ast.Break()], node.orelse)
            yield "the loop ends after its first step", "", text, [*before, once, *after]
            if before and isinstance(before[-1], ast.Assign):
                within = ast.For(node.target, node.iter, [before[-1], *node.body], node.orelse)
                kind = "this starts anew at every step of the loop"
                yield kind, "", ast.unparse(before[-1]), [*before, within, *after]
            if isinstance(node.body[0], ast.Assign):
                outside = ast.For(node.target, node.iter, node.body[1:], node.orelse)
                if outside.body:
                    kind = "this is set once, before the loop, and not at every step"
                    yield kind, "", ast.unparse(node.body[0]), [*before, node.body[0], outside, *after]
            last = node.body[-1]
            if not isinstance(last, ast.Return | ast.If) and len(node.body) > 1:
                moved = ast.For(node.target, node.iter, node.body[:-1], node.orelse)
                yield "this is done once, behind the loop", "", ast.unparse(last), [*before, moved, last, *after]
        if after and not isinstance(after[0], ast.Return) and not isinstance(node, ast.Return):
            text = f"{text}; {ast.unparse(after[0])}".replace("\n", " ")
            yield "order: these two are exchanged", "", text, [*before, after[0], node, *after[1:]]


def _returning(loop: ast.For, node: ast.Return) -> Iterator[ast.For]:
    """Yield the loop with the return at its end, and at the end of each loop within it."""
    yield ast.For(loop.target, loop.iter, [*loop.body, node], [])
    for k, inner in enumerate(loop.body):
        if isinstance(inner, ast.For):
            for early in _returning(inner, node):
                yield ast.For(loop.target, loop.iter, [*loop.body[:k], early, *loop.body[k + 1 :]], [])


def _last_return(body: list[ast.stmt]) -> list[ast.stmt]:
    return [ast.Return(ast.UnaryOp(ast.USub(), ast.Constant(1)))]


# --- names ---


def _names(function: ast.FunctionDef, case: Mapping[str, Any]) -> Iterator[_Change]:
    """Yield one name in place of another, or of a number: at one place, or everywhere from the first use on."""
    uses: dict[str, list[ast.Name]] = {a.arg: [] for a in function.args.args}
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            uses.setdefault(node.id, [])
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in uses:
            uses[node.id].append(node)
    lists = _lists(function, case)
    for owner, field, at, node in _places(function):
        if isinstance(node, ast.Name) and node.id in uses:
            yield from _other_names(owner, field, at, node, [n for n in uses if (n in lists) == (node.id in lists)])
        if isinstance(node, ast.expr) and _is_number(node):
            for other in [name for name in uses if name not in lists]:
                message = _said("another number", other, ast.unparse(node))
                yield _replace(owner, field, at, ast.Name(other, ast.Load()), message, rank=3)
    for a, b in itertools.permutations(uses, 2):
        if len(uses[a]) > 1 and not {a, b} & lists:
            yield _renamed(uses[a], b, f"`{b}` stands where `{a}` belongs", rank=3)


def _lists(function: ast.FunctionDef, case: Mapping[str, Any]) -> set[str]:
    """Return the names of lists: a list in itself, or times a list, grows without an end."""
    made = [node for node in ast.walk(function) if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)]
    names = {target.id for node in made for target in node.targets if isinstance(target, ast.Name)}
    return names | {name for name, value in case.items() if isinstance(value, list | tuple)}


def _other_names(owner: Any, field: str, at: int | None, node: ast.Name, names: list[str]) -> Iterator[_Change]:
    """Yield other names in place of one, and 0 and 1."""
    shown = owner if isinstance(owner, ast.expr | ast.Return | ast.Assign) else node
    for other in names:
        if other != node.id and not isinstance(owner, ast.Attribute):  # a method is the object's own
            new = ast.Name(other, ast.Load())
            yield _replace(owner, field, at, new, _shown(owner, field, at, shown, node, new, "another name"), rank=3)
    for number in (0, 1):
        constant, kind = ast.Constant(number), f"`{node.id}` is left out, as if it were {number}"
        yield _replace(owner, field, at, constant, _shown(owner, field, at, shown, node, constant, kind), rank=2)


def _renamed(places: list[ast.Name], new: str, message: str, rank: int) -> _Change:
    old = places[0].id

    def name(value: str) -> None:
        for place in places:
            place.id = value

    return _Change(rank, message, lambda: name(new), lambda: name(old))


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
        for factor in (10, 4, 8):
            yield f"the numbers are those of {factor} * {{name}}: another unit?", lambda v, f=factor: f * v
            yield f"the numbers are those of {{name}} / {factor}: another unit?", lambda v, f=factor: v / f
        if isinstance(value, float):
            yield "the numbers are those of 1000 * {name}: another unit?", lambda v: 1000 * v
            yield "the numbers are those of {name} / 1000: another unit?", lambda v: v / 1000
            yield "the numbers are those of the root of {name}", lambda v: v**0.5
            yield "`{name}` is rounded to a whole number", lambda v: float(round(v))
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
    if value.dtype.kind == "b":
        yield "`{name}` is reversed", np.logical_not
        yield "`{name}` is not used: the numbers are those for true everywhere", np.ones_like
        yield "`{name}` is not used: the numbers are those for false everywhere", np.zeros_like
        return
    yield "`{name}` is not used: the numbers are those for zeros", np.zeros_like
    yield "`{name}` is not used: the numbers are those for ones", np.ones_like
    yield "sign: the numbers are those of -{name}", np.negative
    yield "the numbers are those of the absolute values of `{name}`", np.abs
    yield "`{name}` is cut at 0: its negative numbers count as 0", lambda v: np.maximum(v, 0)
    yield "`{name}` is sorted first, and should not be", lambda v: np.sort(v, axis=0)
    if value.dtype.kind == "f":
        yield "the numbers are those of 2 * {name}: does it count twice?", lambda v: 2 * v
        yield "the numbers are those of the square of `{name}`", np.square
        yield "the numbers are those of the root of `{name}`", np.sqrt
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


def _axis_changes(array: np.ndarray) -> Iterator[Named]:
    for a, b in itertools.combinations(range(array.ndim), 2):
        yield f"axes {a} and {b} of the result are exchanged", lambda v, a=a, b=b: np.swapaxes(v, a, b)
        yield (
            f"the shape is that of axes {a} and {b} exchanged, by a reshape: it moves no number. transpose does",
            lambda v, a=a, b=b: v.reshape(np.swapaxes(v, a, b).shape),
        )
    for axis in range(array.ndim):
        yield f"axis {axis} of the result runs backwards", lambda v, axis=axis: np.flip(v, axis)
        yield f"axis {axis} is summed over, and should stay", lambda v, axis=axis: v.sum(axis)
        yield f"axis {axis} is averaged over, and should stay", lambda v, axis=axis: v.mean(axis)
        yield (
            f"the result is the same all along axis {axis}: its sum",
            lambda v, axis=axis: np.broadcast_to(v.sum(axis, keepdims=True), v.shape),
        )
        yield (
            f"the result is the same all along axis {axis}: its mean",
            lambda v, axis=axis: np.broadcast_to(v.mean(axis, keepdims=True), v.shape),
        )
        yield f"only the first along axis {axis} is returned", lambda v, axis=axis: v.take(0, axis)
        yield (
            f"the result of the first is repeated along axis {axis}",
            lambda v, axis=axis: np.broadcast_to(v.take([0], axis), v.shape),
        )
        yield (
            f"the result of the last is repeated along axis {axis}",
            lambda v, axis=axis: np.broadcast_to(v.take([-1], axis), v.shape),
        )
        yield f"the result is shifted by one along axis {axis}", lambda v, axis=axis: np.roll(v, 1, axis)
        yield f"the result is shifted by one along axis {axis}", lambda v, axis=axis: np.roll(v, -1, axis)
        yield f"the first along axis {axis} is missing", lambda v, axis=axis: np.delete(v, 0, axis)
        yield f"the last along axis {axis} is missing", lambda v, axis=axis: np.delete(v, -1, axis)
    yield "the numbers are right, in one long row: give the result its shape", np.ravel
    yield "the numbers are sorted, and should not be", lambda v: np.sort(v, axis=0)
