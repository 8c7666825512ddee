"""Look for the change of a reader's own function that makes it right: the place of the change is that of the mistake.

This runs where the function does. It is called with one thing changed after another (`changes.py`), on copies of the
cases; a change after which all results are right is the reason, in the reader's own words, whatever way they took.
"""

import ast
import contextlib
import difflib
import inspect
import io
import re
import signal
import sys
import textwrap
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from mbnp.grading.additions import additions
from mbnp.grading.changes import ADDED, INSTEAD, LEVELS, SCALED, Change, Kind, changes, cut, message, uses
from mbnp.grading.compare import alike, as_array
from mbnp.grading.faults import changed
from mbnp.grading.rules import Probe, filled_empty, steps

EACH = 0.2  # seconds of computing, at most
LEAST, TIMES = 0.03, 20  # seconds, and so many times what the unchanged function takes: more is an endless loop
FIRST = 0.7  # the part of a search for one change; the rest is for a second one
PLACES = 2  # at which a change alone makes all right, and that are named: either may be the mistake
ELSEWHERE = 0.2  # seconds for the search of another place, or a smaller change, once there is one
MANY = 8  # changes that mend it are enough
FAR = 3  # changes of a higher rank are less likely than any other of their level
NUMBERS = "a number", SCALED
OPPOSITE = {"a factor too many": "a factor is left out", "a term too many": "a term is left out"}
SLOW = 2  # times what is counted, and a search ends by the clock
# Seconds that are counted: for a change, for a change that is tried, for a call, and for a step of Python in it.
MAKING, TRYING, CALLING, STEP = 1e-5, 2e-4, 3e-5, 6e-8
ANY, LIKELY, UNLIKELY = range(-9, 9), range(-9, 2), range(2, 9)
# A level of changes, the ranks of it, and whether arguments are added or other names, from the likeliest on.
STAGES: tuple[tuple[int, range, bool], ...] = (
    (1, ANY, True),
    (2, LIKELY, True),
    (3, ANY, True),
    (2, UNLIKELY, True),
    (3, ANY, False),
)
ALL = "all cases come out right"
OTHER_EXPRESSION = "another expression belongs here"
TWO = "there are two mistakes, and only with both of them mended all cases come out right"
HARMLESS = {"collections", "functools", "itertools", "math", "numpy", "operator"}
NEVER = {"open", "exec", "eval", "input", "os", "sys", "subprocess", "shutil", "Path", "__import__"}


def mended(
    function: Callable,
    probes: Sequence[Probe],
    more: Sequence[Probe],
    rtol: float,
    seconds: float,
    places_only: bool = False,
) -> tuple[str, float]:
    """Return what is wrong with a function, in a line, or nothing if it is not found; and how much was spent.

    probes: cases, and what it should return in each; more: others, for which a change has to be right, too
    seconds: how much it may spend, as `Budget` counts
    places_only: whether the reason is known, and only the place is looked for, where one small change mends it
    """
    budget = Budget(seconds)
    try:
        tree = _tree(function)
    except (OSError, TypeError, SyntaxError, AttributeError):
        tree = None
    if tree is None:
        return "", budget.spent
    with _quiet():
        search = _Search(tree, function, probes, more, rtol, budget)
        if budget.spent > budget.seconds / 2:
            return "", budget.spent  # it is too slow to be called again and again
        return (_place(search) if places_only else _mended(search)), budget.spent


def _place(search: "_Search") -> str:
    """Return where one small change mends the function, if it does so at one line only."""
    found = search.best(search.budget.seconds, stages=STAGES[:1], places=0)
    if not found or not found[0].right.all() or found[0].change.joint != INSTEAD:
        return ""  # or something is missing before a place
    if any(not found[0].lines & mend.lines for mend in found):
        return ""  # it may be at another one
    (before, after), *_ = found[0].texts
    return f"look at `{cut(before, after)}`"


def _mended(search: "_Search") -> str:
    found = search.best(FIRST * search.budget.seconds)
    if not found or found[0].right.all():
        return "; or: ".join(dict.fromkeys(mend.said for mend in found))
    one = found[0]  # it mends some cases: perhaps there are two mistakes
    if not search.gains(one.change):
        return ""
    before = ast.unparse(search.tree).splitlines()
    one.change.do()  # and another one on top of it
    search.before = one.right
    found = search.best(search.budget.seconds, one.change.kind, places=1)
    if not found or not found[0].right.all():
        return ""
    two = found[0]
    kinds = one.change.kind, two.change.kind
    if len({(change.kind.mend, change.joint) for change in (one.change, two.change)}) == 1:
        return message(kinds[0].mend, [*one.texts, *two.texts], ALL, one.change.joint)
    two.change.do()
    parts = _differences(before, ast.unparse(search.tree).splitlines())
    if len(parts) == 1 and len(parts[0][1]) == len(parts[0][2]) == 1:  # of one statement, and not two mistakes
        _, (was,), (now,) = parts[0]
        return message(OTHER_EXPRESSION, [(was.strip(), now.strip())], ALL)
    # With a name more each, all can be made.
    return "" if LEVELS[-1] in [kind.level for kind in kinds] else f"{TWO}: {one.said}; and then: {two.said}"


def _differences(before: Sequence[str], after: Sequence[str]) -> list[tuple[int, Sequence[str], Sequence[str]]]:
    """Return the parts that differ: the first line of each, its lines as they were, and as they are."""
    parts = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return [(a, before[a:b], after[c:d]) for tag, a, b, c, d in parts if tag != "equal"]


def _size_of(before: str, after: str) -> int:
    """Return how many names, numbers and signs differ between two texts."""
    was, now = (re.findall(r"\w+|\*\*|//|[^\w\s]", text) for text in (before, after))
    parts = difflib.SequenceMatcher(None, was, now, autojunk=False).get_opcodes()
    return sum(max(b - a, d - c) for tag, a, b, c, d in parts if tag != "equal")


def _rivals(first: Kind, kind: Kind) -> bool:
    """Return whether a change of a kind may be as likely as the first one that was found."""
    return kind.level <= first.level or OPPOSITE.get(first.mend) == kind.mend


def _smallest(found: Sequence["_Mend"], places: int) -> list["_Mend"]:
    """Return the smallest of these changes, and another one that is as likely: as small, or the opposite elsewhere."""

    def order(mend: _Mend) -> tuple[int, bool, bool, int]:
        kind = mend.change.kind
        return kind.level, kind.rank > FAR, kind.mend in NUMBERS, mend.size

    chosen: list[_Mend] = []
    for mend in sorted(found, key=lambda mend: (*order(mend), mend.at)):
        alike = chosen and order(mend) == order(chosen[0])
        alike = alike or (chosen and OPPOSITE.get(chosen[0].change.kind.mend) == mend.change.kind.mend)
        if not chosen or places == 0 or (alike and not any(mend.lines & other.lines for other in chosen)):
            chosen.append(mend)
    return chosen[:places] if places else chosen


NOTHING = Change(Kind("", ""), lambda: None, lambda: None, list)


class _Mend(NamedTuple):
    """A change, and the results of the cases that come out right with it."""

    change: Change
    right: np.ndarray
    gained: int
    texts: list[tuple[str, str]]
    lines: set[int]  # of the function that it changes
    size: int = 0  # how many names, numbers and signs it takes away, puts in or exchanges
    at: int = 0  # where it begins in the text
    which: str = ""  # of several places with the same text

    @property
    def said(self) -> str:
        return message(self.change.kind.mend, self.texts, ALL, self.change.joint) + self.which


class Budget:
    """How much a search may do: seconds, as a machine of today would take, counted and not measured.

    So it ends at the same place every time, on a busy machine too. Only a slow one ends it by the clock.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.spent = seconds, 0.0
        self.end = time.process_time() + SLOW * seconds

    @property
    def left(self) -> float:
        return max(self.seconds - self.spent, 0.0)

    def spend(self, seconds: float) -> None:
        self.spent += seconds

    def over(self, part: float | None = None) -> bool:
        """Return whether it is spent, or the first `part` of its seconds."""
        return self.spent >= (self.seconds if part is None else part) or time.process_time() > self.end


def cost_of(function: Callable, case: Mapping[str, Any]) -> float:
    """Return what a call counts: by the steps of Python that it takes."""
    with contextlib.suppress(TimeIsUpError), alarm(EACH):
        return CALLING + STEP * steps(function, case)
    return CALLING + EACH / 10


class _Search:
    """The changes of one function, and what comes out of the cases with each."""

    def __init__(
        self,
        tree: ast.Module,
        function: Callable,
        probes: Sequence[Probe],
        more: Sequence[Probe],
        rtol: float,
        budget: Budget,
    ) -> None:
        self.tree, self.name, self.names = tree, function.__name__, function.__globals__
        self.rtol, self.budget = rtol, budget
        self.probes = [_frozen_probe(probe) for probe in probes]
        self.results = len(probes[0].expected) if isinstance(probes[0].expected, tuple) else 1
        self.before = np.zeros((len(probes), self.results), bool)
        self.each, self.cost, begin = EACH, CALLING, time.process_time()
        right = self.right(NOTHING, all_of_them=True)
        self.each = min(EACH, max(LEAST, TIMES * (time.process_time() - begin) / len(probes)))
        # Wrong ones first, and small ones: a change that does not help is left at the first.
        order = sorted(range(len(probes)), key=lambda k: (right[k].all(), _size(probes[k].case)))
        self.probes = [self.probes[k] for k in order]
        self.before = right[order]
        self.seen = _seen(function, [node.name for node in _functions(tree)], self.probes[0].case)
        self.cost = cost_of(function, self.probes[0].case)
        budget.spend(len(probes) * self.cost)
        self.more = list(map(_frozen_probe, more))
        self.others = [self.result(function, probe, divides=False) for probe in self.more]
        self.divides = [other is None for other in self.others]
        for k, divides in enumerate(self.divides):
            if divides:
                self.others[k] = self.result(function, self.more[k])

    def best(
        self,
        end: float,
        like: Kind = NOTHING.kind,
        stages: Sequence[tuple[int, range, bool]] = STAGES,
        places: int = PLACES,
    ) -> list[_Mend]:
        """Return changes at different places that make all cases right each, or else the one that makes most right.

        end: how much is spent when the search ends; like: changes of this kind are tried first
        places: at most so many, or 0 for all changes that were found
        """
        found: list[_Mend] = []
        most: list[_Mend] = []
        for stage in sorted(stages, key=lambda stage: stage[0] != like.level):
            for change in self._changes(*stage, like.mend):
                if self.budget.over(end):
                    return _smallest(found, places) or most
                if found and not _rivals(found[0].change.kind, change.kind):
                    continue
                if not change.kind.mend or not (right := self.right(change)).any():
                    continue
                gained = int(right.sum() - self.before.sum())
                if right.all():
                    if len(found) < MANY and self.holds(change):  # and not by chance
                        found.append(self._mend(change, right, gained))
                        end = min(end, self.budget.spent + ELSEWHERE)
                elif not found and gained > (most[0].gained if most else 0) and right[self.before].all():
                    most = [_Mend(change, right, gained, change.texts(), set())]
        return _smallest(found, places) or most

    def _mend(self, change: Change, right: np.ndarray, gained: int) -> _Mend:
        before = ast.unparse(self.tree).splitlines()
        change.do()
        after = ast.unparse(self.tree).splitlines()
        change.undo()
        parts, texts = _differences(before, after), change.texts()
        lines = {line for first, was, _ in parts for line in range(first, first + max(len(was), 1))}
        pairs = [(" ".join(was).strip(), " ".join(now).strip()) for _, was, now in parts]
        if len(pairs) == len(texts) == 1 and texts[0][1] and "\n".join(before).count(texts[0][0]) > 1:
            texts = pairs  # the whole statement tells which one is meant
        letters = zip("\n".join(before), "\n".join(after), strict=False)
        at = next((k for k, (a, b) in enumerate(letters) if a != b), 0)
        size = sum(_size_of(*pair) for pair in pairs)
        same = [line.strip() for line in before].count(texts[0][0]) if texts is pairs else 1
        number = sum(line.strip() == texts[0][0] for line in before[: min(lines, default=0) + 1])
        which = f"; it is place {number} of {same}" if same > 1 else ""
        return _Mend(change, right, gained, texts, lines, size, at, which)

    def _changes(self, level: int, ranks: range, given: bool, first: str) -> list[Change]:
        """Return the changes of a stage, as STAGES has it, those of the kind `first` before all others."""
        found = []
        for function in _functions(self.tree):
            if function.name not in self.seen:
                continue  # it is not called
            case, kinds = self.seen[function.name]
            missing = [name for name in uses(function) if (name in case) == given]
            found += changes(function, level, case, kinds, missing)
            if level < LEVELS[-1] or not given:
                found += additions(function, level, case, kinds)
        self.budget.spend(MAKING * len(found))
        found = [change for change in found if change.kind.rank in ranks]
        return sorted(found, key=lambda change: (change.kind.mend != first, change.kind.rank))

    def right(self, change: Change, all_of_them: bool = False) -> np.ndarray:
        """Return which results of which cases come out right with a change; none if it does not help in the first."""
        found = np.zeros((len(self.probes), self.results), bool)
        names = changed(self.tree, change, self.names) or {}
        self.budget.spend(TRYING)
        for k, probe in enumerate(self.probes if names else ()):
            found[k] = self._equal(probe.expected, self.result(names[self.name], probe))
            if not all_of_them and not (found[0] & ~self.before[0]).any() and not self.before[0].all():
                return np.zeros_like(found)
        return found

    def holds(self, change: Change) -> bool:
        """Return whether a change is right for other numbers, too."""
        return all(map(all, self.elsewhere(change)))

    def gains(self, change: Change) -> bool:
        """Return whether a change, with which more comes out right, does so for other numbers, too."""
        before, after = (sum(map(sum, self.elsewhere(some))) for some in (NOTHING, change))
        return after > before or not self.more

    def elsewhere(self, change: Change) -> list[list[bool]]:
        """Return which results come out right for other numbers, and in the type that was there or is due.

        A change after which 0 is divided by, where it was not before, is right by chance.
        What is added to np.zeros is float64: the type is another mistake, which is told once the numbers are right.
        """
        names, found = changed(self.tree, change, self.names) or {}, []
        for probe, before, divides in zip(self.more, self.others, self.divides, strict=True):
            result = self.result(names[self.name], probe, divides)
            due = change.kind.mend == ADDED or before is None
            due = due or self._dtypes(result) in map(self._dtypes, (before, probe.expected))
            found.append([due and right for right in self._equal(probe.expected, result)])
        return found

    def _dtypes(self, result: Any) -> list[Any]:
        parts = [result] if self.results == 1 else result
        return [array.dtype for part in parts if (array := as_array(part)) is not None]

    def result(self, function: Callable, probe: Probe, divides: bool = True) -> Any:
        """Return what a function returns in a case, or None if it raises, or takes too long.

        divides: whether it may divide by 0
        """
        self.budget.spend(self.cost)
        case = {name: list(value) if isinstance(value, list) else value for name, value in probe.case.items()}
        try:
            stop: Literal["ignore", "raise"] = "ignore" if divides else "raise"
            with contextlib.suppress(Exception), alarm(self.each), np.errstate(divide=stop, invalid=stop):
                return function(**case)
        except TimeIsUpError:
            self.budget.spend(LEAST)
        return None

    def _equal(self, expected: Any, result: Any) -> list[bool]:
        if self.results == 1:
            return [alike(expected, result, self.rtol)]
        if not isinstance(result, tuple | list) or len(result) != self.results:
            return [False] * self.results
        return [alike(mine, yours, self.rtol) for mine, yours in zip(expected, result, strict=True)]


def _frozen_probe(probe: Probe) -> Probe:
    return Probe({name: _frozen(value) for name, value in probe.case.items()}, probe.expected)


Seen = dict[str, tuple[dict[str, Any], dict[str, str]]]


def _seen(function: Callable, names: Sequence[str], case: Mapping[str, Any]) -> Seen:
    """Return of a function and its helpers, by name, the arguments of a first call, and the kinds of local names.

    The kinds are "int", "float", "array", or another type.
    """
    arguments: dict[str, dict[str, Any]] = {function.__name__: dict(case)}
    found: Seen = {}
    codes = {function.__code__, *(getattr(function.__globals__.get(name), "__code__", None) for name in names)}

    def watch(frame: types.FrameType, event: str, argument: object) -> None:
        name = frame.f_code.co_name
        if frame.f_code in codes and event == "call":
            arguments.setdefault(name, dict(frame.f_locals))
        if frame.f_code in codes and event == "return":
            found[name] = arguments[name], {local: _kind(value) for local, value in frame.f_locals.items()}

    before = sys.getprofile()
    with contextlib.suppress(Exception, TimeIsUpError), alarm(EACH):
        sys.setprofile(watch)
        try:
            function(**case)
        finally:
            sys.setprofile(before)
    return {function.__name__: (dict(case), {})} | found


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.ndim:
        return "array"
    if isinstance(value, bool | np.bool_):
        return "bool"
    return (
        "int"
        if isinstance(value, int | np.integer)
        else "float"
        if isinstance(value, float | np.generic)
        else type(value).__name__
    )


def _size(case: Mapping[str, Any]) -> float:
    """Return how much there is in a case: numbers, and how large single ones are."""
    return sum(
        abs(value)
        if isinstance(value, int | float)
        else np.size(value)
        if isinstance(value, np.ndarray)
        else len(value)
        for value in case.values()
    )


def _frozen(value: Any) -> Any:
    """Return an argument as one that nothing writes into, so that it can be used again."""
    if isinstance(value, np.ndarray):
        value = value.copy()
        value.flags.writeable = False
    return type(value)(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _tree(function: Callable) -> ast.Module | None:
    """Return the text of a function, and of those of its file that it calls; None if it is not to be run again."""
    tree = ast.Module([], [])
    waiting: list[Any] = [function]
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, types.FunctionType) or one.__closure__ or one.__code__.co_name == "<lambda>":
            return None
        node = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
        if not isinstance(node, ast.FunctionDef) or node.decorator_list:
            return None
        tree.body.append(node)
        known = {other.name for other in _functions(tree)} | {other.__name__ for other in waiting}
        for part in ast.walk(node):
            imported = [part.module] if isinstance(part, ast.ImportFrom) else []
            imported += [name.name for name in part.names] if isinstance(part, ast.Import) else []
            if not HARMLESS.issuperset(imported) or (isinstance(part, ast.Name) and part.id in NEVER):
                return None
            helper: Any = one.__globals__.get(part.id) if isinstance(part, ast.Name) else None
            own = getattr(getattr(helper, "__code__", None), "co_filename", "") == one.__code__.co_filename
            if own and helper.__name__ not in known:
                known.add(helper.__name__)
                waiting.append(helper)
    return tree


def _functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in tree.body if isinstance(node, ast.FunctionDef)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let nothing be printed or warned of, and let np.empty hold no older result by chance."""
    out = contextlib.redirect_stdout(io.StringIO())
    with warnings.catch_warnings(), np.errstate(all="ignore"), out, filled_empty():
        warnings.simplefilter("ignore")
        yield


class TimeIsUpError(BaseException):
    """A function took too long: a change may have made a loop of it that does not end."""


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise TimeIsUpError in the block after so many seconds of computing, where the system can do that."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise TimeIsUpError

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
