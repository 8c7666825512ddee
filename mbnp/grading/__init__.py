"""Exercises of the lessons and their grader: `mbnp grade tutorials/exercises/01.py`.

In the order to read them: `lessons/` has the exercises as data. `exercise.py` calls a reader's function on their cases,
`compare.py` describes the first difference, and `diagnose.py` looks for its likely reason: a change (`changes.py`,
`additions.py`) that makes the function right (`mend.py`), what its text shows (`noticed.py`), a change that makes a
right solution as wrong (`faults.py`), or else what the wrong results have in common (`observe.py`). `rules.py` says
what a right answer must not do. The reader's file (`source.py`) runs in a process of its own (`program.py`, and at its
other end `child.py`). `progress.py`, `hints.py`, `watch.py` and `use.py` are what `mbnp grade` has besides.
"""

import difflib
import importlib
import os
import pkgutil
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mbnp.errors import MbnpError
from mbnp.grading import lessons as lesson_files
from mbnp.grading.compare import golden_key
from mbnp.grading.exercise import Exercise, Mistake, Outcome, grade
from mbnp.grading.mend import Budget
from mbnp.grading.source import brief, find, read

SECONDS = 1.4  # for the search for likely reasons in a file, as `Budget` counts

if TYPE_CHECKING:
    from mbnp.grading.program import Program

__all__ = [
    "Exercise",
    "Mistake",
    "Outcome",
    "Report",
    "exercises",
    "golden",
    "golden_key",
    "grade",
    "grade_file",
    "lessons",
    "names",
]


@dataclass(frozen=True)
class Report:
    """The result for a file: the lesson it belongs to, and one outcome for each of its exercises.

    notes: what does not run in the file, each in a line
    seconds: what the reader's own program took
    """

    lesson: int
    outcomes: Sequence[Outcome]
    file: Path = Path()
    notes: Sequence[str] = ()
    seconds: float = 0.0

    @property
    def solved(self) -> bool:
        return all(outcome.status == "solved" for outcome in self.outcomes)


def lessons() -> list[int]:
    """Return the numbers of the lessons that have exercises."""
    names = [module.name for module in pkgutil.iter_modules(lesson_files.__path__)]
    return sorted(int(name[-2:]) for name in names if name.startswith("lesson_"))


def exercises(lesson: int) -> Sequence[Exercise]:
    """Return the exercises of a lesson, in order."""
    return importlib.import_module(f"mbnp.grading.lessons.lesson_{lesson:02}").EXERCISES


def names(lesson: int) -> list[str]:
    """Return the names of a lesson's exercises, without loading what the exercises need."""
    text = (resources.files(lesson_files) / f"lesson_{lesson:02}.py").read_text(encoding="utf-8")
    return re.findall(r'Exercise\(\s*"(\w+)"', text)


def golden(lesson: int) -> dict[str, np.ndarray]:
    """Return what PyTorch computed, by `golden_key`; empty where it has no such operation."""
    file = resources.files(lesson_files) / "golden" / f"{lesson:02}.npz"
    if not file.is_file():
        return {}
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return dict(arrays)


def grade_file(path: str | Path, dropped: Callable[[], bool] = lambda: False) -> Report:
    """Grade the exercises in a reader's file. Raise MbnpError if nothing in it can be run, or it has none of them.

    path: the file, a notebook, a lesson's number, or the lesson itself for its exercises. The file is executed: it is
    the reader's own program. Its functions tell which lesson it belongs to.
    dropped: as `Program` has it
    """
    from mbnp.grading.program import Program

    with Program(dropped) as program:
        from mbnp import backend  # needs Numba, whose import takes as long as the other process needs to start

        # NumPy's implementations: these cases are small, and nobody waits for a kernel to be compiled.
        with backend.use(os.environ.get("MBNP_BACKEND") or "numpy"):
            return _report(program, path)


def _report(program: "Program", path: str | Path) -> Report:
    known = {lesson: set(names(lesson)) for lesson in lessons()}
    file = find(path, known)
    source = read(file)
    # A lesson or a notebook also trains and draws.
    only = sorted(set().union(*known.values())) if source.cells or re.match(r"\d\d_", file.name) else None
    program.load(source, only)
    lesson = _lesson_of(program, known)
    values = golden(lesson)
    outcomes, spent = [], 0.0
    for exercise in exercises(lesson):
        budget = Budget(max(SECONDS - spent, SECONDS / 10))  # what the others have left, but never nothing
        outcomes.append(_grade(program, exercise, values, budget))
        spent += budget.spent
    told = {outcome.name for outcome in outcomes} - program.names  # why it is missing is said there
    notes = [
        f"{program.where(problem)}; the rest was run without it"
        for problem in program.problems[:1]
        if told.isdisjoint(problem[2])
    ]
    return Report(lesson, outcomes, file, [brief(note, 400) for note in notes], program.seconds)


def _run(path: Path) -> dict[str, Any]:
    """Return the names that a reader's file defines, run in this process: for those who started one for that."""
    names: dict[str, Any] = {"__name__": "exercise", "__file__": str(path)}
    exec(compile(read(path).text, str(path), "exec", dont_inherit=True), names)
    return names


def _grade(program: "Program", exercise: Exercise, golden: dict[str, np.ndarray], budget: Budget) -> Outcome:
    if exercise.name not in program.names:
        return _missing(program, exercise.name)
    try:
        inside = partial(program.inside, exercise.name)
        outcome = grade(exercise, program.function(exercise.name), golden, inside, budget)
    except Exception as error:  # a mistake of ours must not hide what the other functions do
        what = f"{type(error).__name__}: {error}"
        outcome = Outcome(exercise.name, "wrong", f"the grader cannot judge its result; please report this: {what}")
    outcome.printed = program.done() or outcome.printed
    outcome.problem = brief(outcome.problem, 800)
    return outcome


def _missing(program: "Program", name: str) -> Outcome:
    """Say why a file has no such function: what stands there does not run, or has another name, or nothing is there."""
    reasons = [program.where(problem) for problem in program.problems if name in problem[2]]
    if line := re.search(rf"^[ \t]+def {name}\b", program.source.text, re.MULTILINE):
        at = program.source.where(program.source.text.count("\n", 0, line.start()) + 1)
        reasons.append(f"{at}: `def {name}` is indented, so that it belongs to what stands above it")
    if re.search(rf"^{name}\b", program.source.text, re.MULTILINE):
        reasons.append(f"the file has no function {name}: the name stands for something else")
    if alike := difflib.get_close_matches(name, program.names - {n for k in lessons() for n in names(k)}, 1):
        reasons.append(f"the file has no function {name}: was it renamed to {alike[0]}?")
    if reasons:
        return Outcome(name, "wrong", brief(reasons[0], 400))
    return Outcome(name, "not yet", "the file does not define it yet")


def _lesson_of(program: "Program", known: dict[int, set[str]]) -> int:
    path, names = program.source.path, set(program.names).union(*(problem[2] for problem in program.problems))
    # The file's own number decides where two lessons have functions of the same name.
    lesson = max(known, key=lambda number: (len(known[number] & names), f"{number:02}" == path.stem[:2]))
    if known[lesson] & program.names:
        return lesson
    if program.problems:
        raise MbnpError(brief(program.where(program.problems[0]), 400))
    stubs = f"{path.stem[:2]}.py" if path.stem[:2] in {f"{number:02}" for number in known} else "NN.py"
    what = "has none of the exercises' functions yet" if program.source.text.strip() else "is empty"
    raise MbnpError(f"{path} {what}: start from the stubs in tutorials/exercises/{stubs}")
