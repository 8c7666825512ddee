"""Find the likely reason for wrong results: the mistake that gives exactly the same ones.

First the exercise's own mistakes, then the faults that `faults.py` makes of a right solution. A reason has to explain
every case, those that came out right too; where several do, all are named, since the numbers do not tell them apart.
"""

import ast
import contextlib
import copy
import inspect
import itertools
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mbnp.grading import faults
from mbnp.grading.changes import LEVELS
from mbnp.grading.child import limit_memory
from mbnp.grading.compare import EVERYTHING_ZERO, StoppedError, Trial, alike, as_array, equal, same, types_of
from mbnp.grading.mend import EACH, MAKING, TRYING, Budget, TimeIsUpError, alarm, cost_of, mended
from mbnp.grading.noticed import idle, noticed
from mbnp.grading.observe import observed
from mbnp.grading.rules import UNFILLED, Probe, results, unsteady

SECONDS = 1.4  # for the search of a fault, as `Budget` counts
MENDING = 0.7  # the part of it for the reader's own function
PLACING = 0.3  # the part where the reason is known, and only its place is looked for
WATCHED = 0.5  # seconds for further cases, by the clock: of a slow function there are fewer
MEMORY = 512 << 20  # bytes for it: another may fill a list as long as it can
MOST = 0.8  # of further trials: by chance it is less than half of them
NAMED = 3  # more reasons than that tell nothing
FOUND = 2  # of faults, which are only guessed


def likely(
    exercise: Any,
    trials: Sequence[Trial],
    first: Trial,
    inside: Callable[..., Any] | None = None,
    budget: Budget | None = None,
) -> str:
    """Return the likely reason for the results of all trials, of which `first` is the first wrong one; or nothing.

    inside: as `grade` has it; budget: what the search may spend, or else SECONDS
    """
    budget = budget or Budget(SECONDS)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        others = exercise.others()
        further = _further(exercise, others, inside) if inside else []
        elsewhere = [trial for trial in further if trial.problem]
        if text := _known(exercise, trials, elsewhere):
            place = inside and _mended(exercise, trials, first, others, inside, budget, places_only=True)
            return f"{text}; {place}" if place else text
        unsteady = _unsteady(exercise, first, inside) if inside else ""
        return (
            (unsteady if unsteady != UNFILLED else "")
            or (inside and _mended(exercise, trials, first, others, inside, budget))
            or _zeros(trials)
            or unsteady
            or (inside and not first.only_type and _noticed(exercise, trials, first, inside))
            or _found(exercise, trials, elsewhere, first, budget, inside)
            or _known(exercise, trials, elsewhere, first.output)
            or _in_part(exercise, trials, first)
            or _common(trials, first)
            or observed(exercise, trials, first, further)
            or (_asked(inside, idle) if inside and not first.only_type else "")
        )


def _further(exercise: Any, probes: Sequence[Probe], inside: Callable[..., Any]) -> list[Trial]:
    """Return trials of further cases: what is true of a few results by chance is not true of these."""
    try:
        found = inside(results, [probe.case for probe in probes], WATCHED)
    except (Exception, StoppedError):
        return []
    trials = []
    for probe, result in zip(probes, found, strict=False):
        if result is not None:
            right = alike(probe.expected, result, exercise.rtol)
            trials.append(Trial(dict(probe.case), result, problem="" if right else "it is wrong"))
    return trials


def _unsteady(exercise: Any, first: Trial, inside: Callable[..., Any]) -> str:
    """Say that the reader's function returns something else for the same arguments."""
    results = first.result if isinstance(first.result, tuple | list) else [first.result]
    if any(as_array(result) is None for result in results):
        return ""
    return _asked(inside, unsteady, first.case, exercise.rtol)


def _mended(
    exercise: Any,
    trials: Sequence[Trial],
    first: Trial,
    others: Sequence[Probe],
    inside: Callable[..., Any],
    budget: Budget,
    places_only: bool = False,
) -> str:
    """Name the change of the reader's function that makes it right; places_only: as `mended` has it."""
    runs = all(trial.error is None or trial.problem.startswith("it raised") for trial in trials)
    if first.only_type or "wrote into" in first.problem or not runs:
        return ""  # the problem says more, or it is not to be run again: it needs all memory, or calls itself
    seconds = (PLACING if places_only else MENDING) * budget.left
    probes = exercise.probes([trial.case for trial in trials])
    try:
        text, spent = inside(mended, probes, others, exercise.rtol, seconds, places_only, limit=4 * seconds + 2)
    except (Exception, StoppedError):  # changed, it ended its process
        text, spent = "", seconds
    budget.spend(spent)
    return text


def _noticed(exercise: Any, trials: Sequence[Trial], first: Trial, inside: Callable[..., Any]) -> str:
    """Name what the text of the reader's function shows."""
    cases = [trial.case for trial in trials]
    used = [
        set(solution.__code__.co_varnames[: solution.__code__.co_argcount]) & _read(solution)
        for solution in exercise.solutions
    ]
    # Of a function that always raises, or cannot be called, the error says more than what it does not use.
    runs = first.error is None or not all(trial.problem for trial in trials)
    needed = [name for name in cases[0] if all(name in names for names in used)] if runs else []
    return _asked(inside, noticed, cases, [not trial.problem for trial in trials], needed)


def _asked(inside: Callable[..., Any], check: Callable[..., str], *arguments: Any) -> str:
    """Return what a check of the reader's function says; nothing if it cannot be looked at."""
    try:
        return inside(check, *arguments)
    except (Exception, StoppedError):
        return ""


def _read(function: Callable) -> set[str]:
    """Return the names that a function's own code reads."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _known(exercise: Any, trials: Sequence[Trial], elsewhere: Sequence[Trial], output: int | None = None) -> str:
    """Name the exercise's mistakes that explain every trial, or one of several results in every trial."""
    mistakes = (m for m in exercise.mistakes if all(_explains(m.wrong, t, exercise.rtol, output) for t in trials))
    return _either(m.message for m in mistakes if _holds(m.wrong, elsewhere, exercise.rtol, output))


def _holds(wrong: Callable, elsewhere: Sequence[Trial], rtol: float, output: int | None = None) -> bool:
    """Return whether `wrong` explains further trials, too: most of them, since rounding and ties may decide some."""
    return sum(_explains(wrong, trial, rtol, output) for trial in elsewhere) >= MOST * len(elsewhere)


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


def _found(
    exercise: Any,
    trials: Sequence[Trial],
    elsewhere: Sequence[Trial],
    first: Trial,
    budget: Budget,
    inside: Callable[..., Any] | None,
) -> str:
    """Name the faults of a right solution that explain every trial, or else the wrong one of several results."""
    trials = [trial for trial in trials if not (trial.only_type or trial.error or "wrote into" in trial.problem)]
    numbers = isinstance(first.result, tuple | list) or as_array(first.result) is not None
    if not numbers or not any(trial is first for trial in trials):
        return ""  # such a problem says more than a fault in the numbers would
    trials = sorted(trials, key=lambda trial: not trial.problem)  # wrong ones first: they exclude more
    whole: list[faults.Fault] = []
    in_part: list[faults.Fault] = []
    kinds = [(None, whole)] if first.output is None else [(None, whole), (first.output, in_part)]
    lift = limit_memory(MEMORY, for_good=False)
    try:
        for cost, candidates in _candidates(exercise, first):
            for fault in candidates:
                budget.spend(cost)
                for output, found in kinds:
                    if all(_explains(fault.wrong, trial, exercise.rtol, output) for trial in trials):
                        if _holds(fault.wrong, elsewhere, exercise.rtol, output):
                            found += _another_place(fault, found)
                        break
                if len(whole) == FOUND or budget.over():
                    break
            if whole or budget.over():
                break
    finally:
        lift()
    return _in_their_names((whole or in_part)[:FOUND], trials[0].case, inside)


def _another_place(fault: faults.Fault, known: Sequence[faults.Fault]) -> list[faults.Fault]:
    """Return the fault in a list, unless one is known at the same place of the text, which is likelier."""
    for other in known:
        pairs = itertools.product(fault.texts, other.texts)
        if fault.solution is not other.solution or any(a in b or b in a for (a, _), (b, _) in pairs):
            return []
    return [fault]


def _in_their_names(found: Sequence[faults.Fault], case: Mapping[str, Any], inside: Callable[..., Any] | None) -> str:
    """Return the messages of faults, with the reader's names for the variables of a solution."""
    theirs: dict[str, str] = {}
    if inside and any(fault.texts for fault in found):
        with contextlib.suppress(Exception, StoppedError):
            theirs = inside(faults.values, case) or {}
    messages = []
    for fault in found:
        ours = faults.values(fault.solution, case) if fault.solution and theirs else {}
        messages.append(fault.said(faults.names_of(ours, theirs, case)))
    return _either(messages)


def _candidates(exercise: Any, first: Trial) -> Iterator[tuple[float, Iterator[faults.Fault]]]:
    """Yield faults of one sort after the other, the plainest sort first, and what each of them counts."""
    right = exercise.solutions[0] if exercise.solutions else exercise.reference
    cost = cost_of(right, first.case)
    yield cost, faults.of_result(right, exercise.reference(**copy.deepcopy(first.case)))
    yield cost, faults.of_arguments(right, first.case)
    for level in LEVELS[:2]:  # there are many more of the latter, and they are less likely
        for solution in exercise.solutions:
            each = MAKING + TRYING + cost_of(solution, first.case)
            yield each, faults.of_source(solution, first.case, level)


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
    return "; or: ".join(list(dict.fromkeys(filter(None, messages)))[:NAMED])


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
    return equal(result, got, rtol) and (not trial.only_type or types_of(result) == types_of(got))
