"""One exercise: its cases, the reference, and the mistakes that people make.

A reader's function is called on copies of each case's arguments. Its result is compared with that of mbnp's own
function and, where there is one, with a golden value that PyTorch computed (`compare.py`). If it is wrong, known
mistakes are run on the same cases: the one that gives exactly the reader's results is likely (`diagnose.py`).
"""

import contextlib
import copy
import io
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mbnp.grading.compare import StoppedError, Trial, alike, compare, describe, same
from mbnp.grading.diagnose import likely
from mbnp.grading.mend import Budget
from mbnp.grading.rules import Probe, another, broken, resized

Case = dict[str, Any]
TRIED, KEPT = 16, 8  # cases of other sizes


class Mistake(NamedTuple):
    """A wrong function that people write, and the message for it: the reason, and what to check."""

    message: str
    wrong: Callable


def exact(case: Case) -> Case:
    """Return the same case in float64, to tell results that have the dtype of the input from those of float32."""
    return {name: np.asarray(v, np.float64) if isinstance(v, np.ndarray) else v for name, v in case.items()}


def variants(right: Callable, mistakes: Mapping[str, Mapping[str, Any]]) -> list[Mistake]:
    """Return mistakes that a right answer makes with other options: by the message for each, its options."""
    return [Mistake(message, partial(right, **options)) for message, options in mistakes.items()]


@dataclass(frozen=True)
class Exercise:
    """A function for the reader to write.

    name: the function's
    cases: the arguments of each trial by their names, or a function that makes them from a seed
    reference: mbnp's own function, called with the same arguments
    mistakes: those that explain all results are reported
    solutions: right answers in plain Python and NumPy; a mistake that is not in the list is looked for by changing them
    rtol: the largest error of a number, relative to the largest of the expected array
    outputs: the names of the results, if there is a tuple of them, such as ("dx", "dw", "db")
    loops: "no pixels" where the answer may not loop over pixels in Python, "tiles" where it has to loop over tiles
    """

    name: str
    cases: Sequence[Case] | Callable[[int], Sequence[Case]]
    reference: Callable
    mistakes: Sequence[Mistake] = ()
    rtol: float = 1e-5
    outputs: Sequence[str] = ()
    solutions: Sequence[Callable] = ()
    loops: str = "any"

    def make_cases(self, seed: int = 0) -> list[Case]:
        """Return the cases, the same ones every time."""
        return list(self.cases(seed) if callable(self.cases) else self.cases)

    def probes(self, cases: Sequence[Case]) -> list[Probe]:
        """Return cases with what the function should return in each."""
        return [Probe(case, self.reference(**copy.deepcopy(case))) for case in cases]

    def of_other_sizes(self) -> list[Probe]:
        """Return cases of other sizes: those in which all right answers that are known agree."""
        found: list[Probe] = []
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            for seed in range(TRIED):
                with contextlib.suppress(Exception):
                    (probe,) = self.probes([resized(self.make_cases(), seed)])
                    results = [solution(**copy.deepcopy(dict(probe.case))) for solution in self.solutions]
                    if results and all(alike(probe.expected, result, self.rtol) for result in results):
                        found.append(probe)
        return found[:KEPT]

    def others(self) -> list[Probe]:
        """Return further cases, of other numbers and of other sizes: a reason has to be right in these, too."""
        cases = self.make_cases()
        return self.probes([*map(another, cases), *self.make_cases(1)]) + self.of_other_sizes()

    def again(self) -> list[Probe]:
        """Return what tells whether a function remembers: a case, one with other numbers, and the first again."""
        first, second, *_ = self.make_cases()
        other = another(first)
        return self.probes([first, second if same(first, other) else other, first])

    def output_name(self, k: int) -> str:
        """Return the name of the k-th of several results."""
        return self.outputs[k] if k < len(self.outputs) else f"result {k}"


@dataclass
class Outcome:
    """The result for one exercise. `status` is "solved", "not yet" or "wrong"; the rest says what is wrong.

    problem: one line, such as "y[0, 2, 1, 3] is 0.5, expected 1.25 (3 of 24 numbers are off)"
    case: the arguments for which it happened, in words
    likely: the likely reason, if there is one
    printed: what the function printed
    """

    name: str
    status: str
    problem: str = ""
    case: str = ""
    likely: str = ""
    printed: str = ""


def grade(
    exercise: Exercise,
    function: Callable,
    golden: Mapping[str, np.ndarray] | None = None,
    inside: Callable[..., Any] | None = None,
    budget: Budget | None = None,
) -> Outcome:
    """Run the reader's function on every case.

    golden: arrays by the keys that `golden_key` gives
    inside(check, *arguments, limit=seconds): returns check(function, *arguments) from where the function runs; without
        it nothing is looked for in the function itself
    budget: for the search for a likely reason, as `likely` has it
    """
    outcome = Outcome(exercise.name, "solved")
    trials: list[Trial] = []
    with captured() as printed:
        for number, case in enumerate(exercise.make_cases()):
            try:
                trials.append(_try(exercise, function, case))
            except StoppedError as error:
                outcome.status, outcome.problem, outcome.case = "wrong", str(error), describe(case)
                break
            if not trials[-1].problem:
                compare(exercise, trials[-1], number, golden or {})
            if isinstance(trials[-1].error, NotImplementedError):
                break
        if inside and outcome.status == "solved" and not any(trial.problem for trial in trials):
            with contextlib.suppress(StoppedError):  # it was right, and slower only because it is watched
                outcome.problem = inside(broken, exercise.again(), exercise.rtol, exercise.loops)
            outcome.status = "wrong" if outcome.problem else "solved"
    outcome.printed = printed.getvalue()
    failed = [trial for trial in trials if trial.problem]
    if failed and outcome.status == "solved":
        first = next((trial for trial in failed if not _only_in_form(trial)), failed[0])
        if isinstance(first.error, NotImplementedError):
            return Outcome(exercise.name, "not yet", printed=outcome.printed)
        outcome.status, outcome.problem = "wrong", first.problem
        outcome.case = describe(first.case)
        outcome.likely = likely(exercise, trials, first, inside, budget)
    return outcome


def _only_in_form(trial: Trial) -> bool:
    """Return whether the numbers of a result are right, and only their type is not: wrong numbers are told before."""
    return trial.only_type and trial.result is not None


# --- one call ---


def _try(exercise: Exercise, function: Callable, case: Case) -> Trial:
    trial = Trial(case)
    arguments = copy.deepcopy(case)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # show NumPy's warnings, such as of an overflow, to the reader
            trial.result = function(**arguments)
    except NotImplementedError as error:
        trial.error, trial.problem = error, "not yet"
    except UnusableError as error:
        trial.error, trial.problem = error, str(error)
    except SystemExit as error:
        trial.error, trial.problem = error, "it ended the program (sys.exit): return the result instead"
    except RecursionError as error:
        trial.error, trial.problem = error, "it calls itself without an end (RecursionError)"
    except Exception as error:
        trial.error = error
        what = f"{type(error).__name__}: {error}".strip(": ").splitlines()[0]
        trial.problem = f"it raised {what}{_line_of(error, function)}"
    else:
        touched = [name for name in case if not same(case[name], arguments[name])]
        if touched:
            trial.problem = f"it wrote into its argument {touched[0]}, which belongs to the caller: work on a copy"
    return trial


def _line_of(error: BaseException, function: Callable) -> str:
    """Return the last line of the reader's file in the error's traceback, or what another process said it was."""
    if isinstance(where := getattr(error, "where", None), str):
        return where
    code = getattr(function, "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if code and frame.filename == code.co_filename]
    return f" (line {own[-1].lineno}: {own[-1].line})" if own else ""


class UnusableError(Exception):
    """The function cannot be called as it is, or used up the memory; the message is the whole problem."""


@contextlib.contextmanager
def captured() -> Iterator[io.StringIO]:
    """Yield the text that the block prints, which does not reach the screen."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        yield text
