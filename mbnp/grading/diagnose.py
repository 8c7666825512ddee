"""Find the likely reason for wrong results: the mistake that gives exactly the same ones.

First the exercise's own mistakes, then the faults that `faults.py` makes of a right solution. A reason has to explain
every case, those that came out right too; where several do, all are named, since the numbers do not tell them apart.
"""

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mbnp.grading import faults
from mbnp.grading.changes import LEVELS
from mbnp.grading.child import limit_memory
from mbnp.grading.compare import EVERYTHING_ZERO, StoppedError, Trial, as_array, equal, same
from mbnp.grading.mend import EACH, TimeIsUpError, alarm, mended
from mbnp.grading.observe import observed

SECONDS = 1.4  # of computing, for the search of a fault
MENDING = 0.6  # the part of it for the reader's own function
MEMORY = 512 << 20  # bytes for it: another may fill a list as long as it can
NAMED = 3  # more reasons than that tell nothing


def likely(
    exercise: Any,
    trials: Sequence[Trial],
    first: Trial,
    inside: Callable[..., str] | None = None,
    seconds: float | None = None,
) -> str:
    """Return the likely reason for the results of all trials, of which `first` is the first wrong one; or nothing.

    inside: as `grade` has it; seconds: of computing that the search may take, or else SECONDS
    """
    seconds = SECONDS if seconds is None else seconds
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return (
            _known(exercise, trials)
            or _zeros(trials)
            or (inside and _mended(exercise, trials, first, inside, MENDING * seconds))
            or _found(exercise, trials, first, (1 - MENDING) * seconds if inside else seconds)
            or _known(exercise, trials, first.output)
            or _in_part(exercise, trials, first)
            or _common(trials, first)
            or observed(exercise, trials, first)
        )


def _mended(exercise: Any, trials: Sequence[Trial], first: Trial, inside: Callable[..., str], seconds: float) -> str:
    """Name the change of the reader's function that makes it right."""
    runs = all(trial.error is None or trial.problem.startswith("it raised") for trial in trials)
    if first.only_type or not runs:
        return ""  # the problem says more, or it is not to be run again: it needs all memory, or calls itself
    cases = [trial.case for trial in trials]
    expected = [exercise.reference(**copy.deepcopy(case)) for case in cases]
    try:
        return inside(mended, cases, expected, exercise.rtol, seconds, limit=4 * seconds + 2)
    except (Exception, StoppedError):  # changed, it ended its process
        return ""


def _known(exercise: Any, trials: Sequence[Trial], output: int | None = None) -> str:
    """Name the exercise's mistakes that explain every trial, or one of several results in every trial."""
    rtol = exercise.rtol
    return _either(m.message for m in exercise.mistakes if all(_explains(m.wrong, t, rtol, output) for t in trials))


def _common(trials: Sequence[Trial], first: Trial) -> str:
    """Return what the first wrong result looks like, if all wrong ones do."""
    alike = all(trial.likely == first.likely for trial in trials if trial.problem)
    return first.likely if alike or first.only_type else ""


def _zeros(trials: Sequence[Trial]) -> str:
    """Say that every result is 0, which a fault could explain, too, and would explain less plainly."""
    results = [as_array(trial.result) for trial in trials]
    if all(result is not None and result.dtype.kind in "iuf" and not result.any() for result in results):
        return EVERYTHING_ZERO
    return ""


def _found(exercise: Any, trials: Sequence[Trial], first: Trial, seconds: float) -> str:
    """Name the faults of a right solution that explain every trial, or else the wrong one of several results."""
    trials = [trial for trial in trials if not (trial.only_type or trial.error or "wrote into" in trial.problem)]
    numbers = isinstance(first.result, tuple | list) or as_array(first.result) is not None
    if not numbers or not any(trial is first for trial in trials):
        return ""  # such a problem says more than a fault in the numbers would
    trials = sorted(trials, key=lambda trial: not trial.problem)  # wrong ones first: they exclude more
    whole: list[str] = []
    in_part: list[str] = []
    lift = limit_memory(MEMORY, for_good=False)
    end = time.process_time() + seconds
    try:
        for fault in _candidates(exercise, first):
            if all(_explains(fault.wrong, trial, exercise.rtol) for trial in trials):
                whole.append(fault.message)
            elif first.output is not None and all(
                _explains(fault.wrong, trial, exercise.rtol, first.output) for trial in trials
            ):
                in_part.append(fault.message)
            if len(set(whole)) == NAMED or time.process_time() > end:
                break
    finally:
        lift()
    return _either(whole or in_part)


def _candidates(exercise: Any, first: Trial) -> Iterator[faults.Fault]:
    right = exercise.solutions[0] if exercise.solutions else exercise.reference
    yield from faults.of_result(right, exercise.reference(**copy.deepcopy(first.case)))
    yield from faults.of_arguments(right, first.case)
    for level in LEVELS[:2]:  # there are many more of the latter, and they are less likely
        for solution in exercise.solutions:
            yield from faults.of_source(solution, first.case, level)


def _in_part(exercise: Any, trials: Sequence[Trial], first: Trial) -> str:
    """Name a mistake that explains the first wrong trial, most others and all right ones: there may be a second one."""
    wrong = [trial for trial in trials if trial.problem]
    for mistake in exercise.mistakes:
        explained = [_explains(mistake.wrong, trial, exercise.rtol) for trial in trials]
        right = all(known for known, trial in zip(explained, trials, strict=True) if not trial.problem)
        most = 2 * sum(known for known, trial in zip(explained, trials, strict=True) if trial.problem) > len(wrong)
        if right and most and _explains(mistake.wrong, first, exercise.rtol):
            return mistake.message
    return ""


def _either(messages: Iterator[str] | Sequence[str]) -> str:
    return "; or: ".join(list(dict.fromkeys(messages))[:NAMED])


def _explains(wrong: Callable, trial: Trial, rtol: float, output: int | None = None) -> bool:
    """Return whether `wrong` does what the reader's function did in this trial; output: with that result."""
    arguments = copy.deepcopy(trial.case)
    try:
        with alarm(EACH):
            result = wrong(**arguments)
    except TimeIsUpError:
        return False
    except Exception as error:
        return type(error) is type(trial.error) and str(error) == str(trial.error)
    touched = any(not same(trial.case[name], arguments[name]) for name in trial.case)
    if trial.error is not None or touched != ("wrote into" in trial.problem):
        return False
    got = trial.result
    if output is not None:
        try:
            result, got = result[output], got[output]
        except (TypeError, IndexError, KeyError):
            return False
    return equal(result, got, rtol) and (not trial.only_type or _types(result) == _types(got))


def _types(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_types(item) for item in value]
    return value.dtype if isinstance(value, np.ndarray | np.generic) else type(value)
