"""What a right answer must not do: call mbnp's own function for it, remember, or loop otherwise than it is to.

Nor may a wrong one remember: what it returns then depends on the calls before, and nothing else explains it.
"""

import contextlib
import copy
import io
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mbnp.grading.child import Other, plain
from mbnp.grading.compare import alike, same

OWN = str(Path(__file__).parents[1])
REMEMBERS = (
    "your function remembers what an earlier call left. A list or an array that is a default argument, or stands "
    "outside of the function, is made only once: make it anew in each call. And np.empty has to be filled"
)
UNFILLED = (
    "np.empty has what was in memory before, which is another thing each time: write to all of it, or take np.zeros"
)
LATER = "the numbers are right at first, and wrong when it is called again"
KEPT = (
    "the numbers are right, and the next call writes over them: your function remembers its result, and returns the "
    "same array each time. Make the result anew in each call"
)
PIXELS = (
    "the numbers are right, but it loops over pixels: its Python loop makes more steps the larger the image is. Loop "
    "over the kernel's taps, or over none: sliding_window_view has all windows at once"
)
TILES = (
    "the numbers are right, but there is no loop over tiles: it makes as many steps for a large result as for a small "
    "one, so that NumPy makes the whole product (@, dot, einsum). Loop over the tiles yourself"
)


class Probe(NamedTuple):
    """A case to call the function with once more, and what it should return."""

    case: Mapping[str, Any]
    expected: Any


def broken(function: Callable, probes: Sequence[Probe], rtol: float, loops: str) -> str:
    """Return which rule the function breaks, in a line, or nothing. It has given right results for the cases.

    probes: one case, another of the same shapes, and the first one again. loops: as the exercise has it
    """
    with contextlib.suppress(Exception):  # a function that was right once and fails now has no business here
        if text := _remembers(function, probes, rtol):
            return text
        case = probes[0].case
        if name := _own_function(function, case):
            return f"the numbers are right, but it calls mbnp's own {name}; the exercise is to write it yourself"
        if loops == "no pixels" and _growth(function, case, {"x": (1, 3, 3, 1)}) > 4:
            return PIXELS
        if loops == "tiles" and _growth(function, case, {"a": (4, 1), "b": (1, 4)}) < 1.5:
            return TILES
    return ""


# --- calls after one another ---


def another(case: Mapping[str, Any]) -> dict[str, Any]:
    """Return a case of the same shapes as this one, with the numbers of its arrays in another order."""
    return {
        name: value.ravel()[::-1].reshape(value.shape).copy() if isinstance(value, np.ndarray) else copy.deepcopy(value)
        for name, value in case.items()
    }


def resized(cases: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """Return one of the cases with other sizes, drawn at random: a change may be right for its own by chance.

    Axes that are as long as one another in every case stay so, and those of one length in all cases keep it. Numbers
    are the case's own; where it has no arrays, each is one of some case, or a few times that. Not all such cases make
    sense.
    """
    rng = np.random.default_rng(seed)
    base = cases[seed % len(cases)]
    if not any(isinstance(value, np.ndarray) for value in base.values()):
        mixed = {name: copy.deepcopy(cases[int(rng.integers(len(cases)))].get(name, base[name])) for name in base}
        return {name: v * int(rng.integers(1, 4)) if type(v) is int else v for name, v in mixed.items()}
    alike = [case for case in cases if all(np.ndim(case.get(name, 0)) == np.ndim(base[name]) for name in base)]
    sizes: dict[tuple[int, ...], int] = {}  # by the lengths of an axis in all cases
    free = iter(rng.permutation(np.arange(2, 10)))
    made = {}
    for name, value in base.items():
        made[name] = copy.deepcopy(value)
        if isinstance(value, np.ndarray) and value.ndim and value.size:
            lengths = list(zip(*(case[name].shape for case in alike), strict=True))
            for axis in dict.fromkeys(axis for axis in lengths if axis not in sizes):
                sizes[axis] = axis[0] if len(set(axis)) == 1 else int(next(free))
            made[name] = rng.choice(value.ravel(), [sizes[axis] for axis in lengths]).astype(value.dtype)
    return made


def unsteady(function: Callable, case: Mapping[str, Any], rtol: float) -> str:
    """Say why a wrong function returns something else for the same arguments, if it does; or nothing."""
    with contextlib.suppress(Exception):
        with filled_empty(0):
            first, again = (_called(function, case)[1] for _ in range(2))
        if not alike(first, again, rtol):
            return REMEMBERS
        with filled_empty():
            return "" if alike(first, _called(function, case)[1], rtol) else UNFILLED
    return ""


@contextlib.contextmanager
def filled_empty(value: float = np.nan) -> Iterator[None]:
    """Let np.empty hold no older result by chance, but one value: NaN (in integers 99) is in no right result."""
    known = {name: getattr(np, name) for name in ("empty", "empty_like")}
    vars(np).update({name: _filled(function, value) for name, function in known.items()})
    try:
        yield
    finally:
        vars(np).update(known)


def _filled(function: Callable, value: float) -> Callable:
    def make(*arguments: Any, **options: Any) -> np.ndarray:
        array = function(*arguments, **options)
        if array.dtype.kind in "biufc":
            array.fill(99 if np.isnan(value) and array.dtype.kind in "biu" else value)
        return array

    return make


def _remembers(function: Callable, probes: Sequence[Probe], rtol: float) -> str:
    """Say that a function that was right is not when it is called again, or that a later call changes its result."""
    results = [_called(function, probe.case) for probe in probes]
    (_, first), (_, between), (_, again) = results
    right, other, _ = (probe.expected for probe in probes)
    stale = alike(first, between, rtol) and not alike(right, other, rtol)
    if stale or not (alike(right, first, rtol) and alike(right, again, rtol)):
        return f"{LATER}: {REMEMBERS}"
    return "" if all(same(result, copied) for result, copied in results) else KEPT


def results(function: Callable, cases: Sequence[Mapping[str, Any]], seconds: float) -> list[Any]:
    """Return what a function returns in the first of these cases, in so many seconds.

    It is None where it raises, or writes into its arguments.
    """
    found: list[Any] = []
    end = time.perf_counter() + seconds
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for case in cases:
            if time.perf_counter() < end:
                arguments, result = copy.deepcopy(dict(case)), None
                with contextlib.suppress(Exception):
                    result = plain(function(**arguments))
                found.append(result if all(same(case[name], arguments[name]) for name in case) else None)
    return found


def _called(function: Callable, case: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the result, which a later call may change, and a copy of it; a function that raises has none."""
    arguments = copy.deepcopy(dict(case))
    try:
        result = function(**arguments)
    except Exception:
        return None, None
    result = plain(result)
    if type(result) is Other:  # not to be compared, or the function replaced what that takes
        raise TypeError
    return result, copy.deepcopy(result)


# --- whose functions ---


def _own_function(function: Callable, case: Mapping[str, Any]) -> str:
    """Return the first of mbnp's functions that the reader's function calls, such as "conv.forward"."""
    called: list[str] = []
    if str(getattr(function, "__module__", "")).split(".")[0] == "mbnp":
        return f"{function.__module__.split('.')[-1]}.{getattr(function, '__name__', '')}"

    def watch(frame: types.FrameType, event: str, argument: object) -> None:
        back = frame.f_back.f_code.co_filename if frame.f_back else ""
        inside = frame.f_code.co_filename.startswith(OWN) and frame.f_code.co_name != "<module>"
        if event == "call" and inside and not back.startswith((OWN, "<frozen")):
            called.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        function(**copy.deepcopy(case))
    finally:
        sys.setprofile(before)
    return called[0] if called else ""


# --- loops ---


def _growth(function: Callable, case: Mapping[str, Any], times: Mapping[str, tuple[int, ...]]) -> float:
    """Return how many times as many steps in Python it takes if arrays are repeated along their axes."""
    larger = {**case, **{name: np.tile(case[name], some) for name, some in times.items()}}
    return steps(function, larger) / steps(function, case)


def steps(function: Callable, case: Mapping[str, Any]) -> int:
    """Count the instructions that Python executes, in a helper or np.vectorize too, until it returns or raises."""
    count = 0

    def trace(frame: types.FrameType, event: str, argument: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    arguments, before = copy.deepcopy(dict(case)), sys.gettrace()
    with contextlib.suppress(Exception):
        sys.settrace(trace)
        try:
            function(**arguments)
        finally:
            sys.settrace(before)
    return count
