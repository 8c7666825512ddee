"""Look for the change of a reader's own function that makes it right: the place of the change is that of the mistake.

This runs where the function does. It is called with one thing changed after another (`changes.py`), on copies of the
cases; a change after which all results are right is the reason, in the reader's own words, whatever way they took.
"""

import ast
import contextlib
import inspect
import io
import signal
import textwrap
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mbnp.grading.changes import LEVELS, Change, Kind, changes
from mbnp.grading.compare import equal, same
from mbnp.grading.faults import changed

EACH = 0.2  # seconds by the clock
FIRST = 0.7  # the part of the time for one change; the rest is for a second one
TWO = "there are two mistakes, and only with both of them mended all cases come out right"
NEVER = {"open", "exec", "eval", "input", "os", "sys", "subprocess", "shutil", "Path", "__import__"}


def mended(
    function: Callable, cases: Sequence[Mapping[str, Any]], expected: Sequence[Any], rtol: float, seconds: float
) -> str:
    """Return what is wrong with a function, in a line, or nothing if it is not found in so many seconds.

    expected: what it should return in each of the cases
    """
    try:
        tree = _tree(function)
    except (OSError, TypeError, SyntaxError, AttributeError):
        return ""
    if tree is None:
        return ""
    begin = time.process_time()
    with _quiet():
        search = _Search(tree, function, cases, expected, rtol)
        if time.process_time() - begin > seconds / 2:
            return ""  # it is too slow to be called again and again
        one = search.best(begin + FIRST * seconds)
        if one is None or one.right.all():
            return one.said if one else ""
        one.change.do()  # and another one on top of it
        search.before = one.right
        two = search.best(begin + seconds)
    if two and two.right.all():
        return f"{TWO}: {one.said}; and then: {two.said}"
    if 3 * one.gained < 2 * (len(cases) - one.right.sum() + one.gained):
        return ""
    return one.said.replace("all cases", "more cases") + "; there is another mistake"


NOTHING = Change(Kind("", ""), lambda: None, lambda: None, list)


class _Mend(NamedTuple):
    """A change, and the cases that come out right with it."""

    change: Change
    right: np.ndarray
    gained: int
    said: str


class _Search:
    """The changes of one function, and what comes out of the cases with each."""

    def __init__(
        self,
        tree: ast.Module,
        function: Callable,
        cases: Sequence[Mapping[str, Any]],
        expected: Sequence[Any],
        rtol: float,
    ) -> None:
        self.tree, self.name, self.names = tree, function.__name__, function.__globals__
        self.cases = [{name: _frozen(value) for name, value in case.items()} for case in cases]
        self.expected, self.rtol = expected, rtol
        right = self.right(NOTHING, all_of_them=True)
        # Wrong ones first, and small ones: a change that does not help is left at the first.
        order = sorted(range(len(cases)), key=lambda k: (right[k], _size(cases[k])))
        self.cases, self.expected = [self.cases[k] for k in order], [expected[k] for k in order]
        self.before = right[order]

    def best(self, end: float) -> _Mend | None:
        """Return the first change that makes all cases right, or else the one that makes most of them right.

        end: the time when the search ends
        """
        function = self.tree.body[0]
        assert isinstance(function, ast.FunctionDef)
        most: _Mend | None = None
        for level in LEVELS:
            for change in changes(function, level, self.cases[0]):
                if time.process_time() > end:
                    return most
                if not change.kind.mend or not (right := self.right(change)).any():
                    continue
                gained = int(right.sum() - self.before.sum())
                if right.all() or (gained > (most.gained if most else 0) and right[self.before].all()):
                    most = _Mend(change, right, gained, change.said("all cases come out right", fault=False))
                    if right.all():
                        return most
        return most

    def right(self, change: Change, all_of_them: bool = False) -> np.ndarray:
        """Return which cases come out right with a change; none of them if the first does not."""
        found = np.zeros(len(self.cases), bool)
        names = changed(self.tree, change, self.names) or {}
        for k, (case, expected) in enumerate(zip(self.cases, self.expected, strict=True) if names else ()):
            with contextlib.suppress(Exception, TimeIsUpError), alarm(EACH):
                case = {name: list(value) if isinstance(value, list) else value for name, value in case.items()}
                result = names[self.name](**case)
                found[k] = equal(expected, result, self.rtol) or (
                    type(expected) is type(result) and same(expected, result)
                )
            if not found[0] and not all_of_them:
                break
        return found


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
    """Return the function's text as a tree, or None if it is not one to run again and again with changes."""
    if not isinstance(function, types.FunctionType) or function.__closure__ or function.__code__.co_name == "<lambda>":
        return None
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    node = tree.body[0]
    if not isinstance(node, ast.FunctionDef) or node.decorator_list:
        return None
    for part in ast.walk(node):
        if isinstance(part, ast.Import | ast.ImportFrom) or (isinstance(part, ast.Name) and part.id in NEVER):
            return None
    return tree


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="ignore"), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


class TimeIsUpError(BaseException):
    """A function took too long: a change may have made a loop of it that does not end."""


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise TimeIsUpError in the block after so many seconds by the clock, where the system can do that."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise TimeIsUpError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
