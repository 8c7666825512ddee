"""What a right answer must not do: call mbnp's own function for it, or loop over pixels where that is ruled out."""

import contextlib
import copy
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

OWN = str(Path(__file__).parents[1])


def broken(function: Callable, cases: Sequence[Mapping[str, Any]], pixel_loops: bool) -> str:
    """Return which rule the function breaks, in a line, or nothing. It has given right results for the cases."""
    with contextlib.suppress(Exception):  # a function that was right once and fails now has no business here
        name = _own_function(function, cases[0])
        if name:
            return f"the numbers are right, but it calls mbnp's own {name}; the exercise is to write it yourself"
        if not pixel_loops and _loops_over_pixels(function, cases):
            return (
                "the numbers are right, but it loops over pixels: its Python loop makes more steps the larger the "
                "image is. Loop over the kernel's taps, or over none: sliding_window_view has all windows at once"
            )
    return ""


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


def _loops_over_pixels(function: Callable, cases: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether an image of nine times as many pixels takes more than four times as many steps in Python."""
    case = next(case for case in cases if case["stride"] == 1 and case["padding"] == 1)
    larger = {**case, "x": np.tile(case["x"], (1, 3, 3, 1))}
    return _steps(function, larger) > 4 * _steps(function, case)


def _steps(function: Callable, case: Mapping[str, Any]) -> int:
    """Count the instructions that Python executes: in a helper of the reader's too, or in np.vectorize."""
    steps = 0

    def trace(frame: types.FrameType, event: str, argument: object) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(**copy.deepcopy(case))
    finally:
        sys.settrace(before)
    return steps
