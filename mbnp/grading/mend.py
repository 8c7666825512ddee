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
from typing import Any

import numpy as np

from mbnp.grading.changes import LEVELS, Change, changes
from mbnp.grading.compare import equal, same
from mbnp.grading.faults import changed

EACH = 0.2  # seconds by the clock
NEVER = {"open", "exec", "eval", "input", "os", "sys", "subprocess", "shutil", "Path", "__import__"}


def mended(
    function: Callable, cases: Sequence[Mapping[str, Any]], expected: Sequence[Any], rtol: float, seconds: float
) -> str:
    """Return what is wrong with a function, in a line, or nothing if it is not found in so many seconds.

    expected: what it should return in each of the cases; put those first in which it does not
    """
    try:
        tree = _tree(function)
    except (OSError, TypeError, SyntaxError, AttributeError):
        return ""
    if tree is None:
        return ""
    frozen = [{name: _frozen(value) for name, value in case.items()} for case in cases]
    function_of = tree.body[0]
    assert isinstance(function_of, ast.FunctionDef)
    with _quiet():
        end = time.process_time() + seconds
        for level in LEVELS:
            for change in changes(function_of, level, cases[0]):
                if time.process_time() > end:
                    return ""
                if change.kind.mend and _is_right(tree, change, function, frozen, expected, rtol):
                    return change.said("all cases come out right", fault=False)
    return ""


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


def _is_right(
    tree: ast.Module,
    change: Change,
    function: Callable,
    cases: Sequence[Mapping[str, Any]],
    expected: Sequence[Any],
    rtol: float,
) -> bool:
    names = changed(tree, change, function.__globals__)
    if names is None:
        return False
    call = names[function.__name__]
    with contextlib.suppress(Exception, TimeIsUpError), alarm(EACH):
        for case, right in zip(cases, expected, strict=True):
            result = call(**{name: list(value) if isinstance(value, list) else value for name, value in case.items()})
            if not equal(right, result, rtol) and not (type(right) is type(result) and same(right, result)):
                return False
        return True
    return False


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
