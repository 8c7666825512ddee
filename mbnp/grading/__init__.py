"""Exercises of the lessons and their grader: `mbnp grade tutorials/exercises/01.py`.

`lessons/` has the exercises as data, `exercise.py` compares what a reader's function returns with the reference.
"""

import importlib
import pkgutil
import sys
import traceback
import types
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from mbnp.errors import MbnpError
from mbnp.grading import lessons as lesson_files
from mbnp.grading.compare import golden_key
from mbnp.grading.exercise import Exercise, Mistake, Outcome, captured, grade, time_limit
from mbnp.grading.rules import broken

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
]


@dataclass(frozen=True)
class Report:
    """The result for a file: the lesson it belongs to, and one outcome for each of its exercises."""

    lesson: int
    outcomes: Sequence[Outcome]

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


def golden(lesson: int) -> dict[str, np.ndarray]:
    """Return what PyTorch computed, by `golden_key`; empty where it has no such operation."""
    file = resources.files(lesson_files) / "golden" / f"{lesson:02}.npz"
    if not file.is_file():
        return {}
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return dict(arrays)


def grade_file(path: str | Path) -> Report:
    """Grade the exercises in a reader's file. Raise MbnpError if it cannot be run or has none of them.

    The file is executed: it is the reader's own program. Its functions tell which lesson it belongs to.
    """
    path = Path(path)
    found = _run(path)
    names = {name for name, value in found.items() if callable(value)}
    lesson = _lesson_of(path, names)
    values = golden(lesson)
    outcomes = []
    for exercise in exercises(lesson):
        if exercise.name in names:
            outcomes.append(grade(exercise, found[exercise.name], values, partial(broken, found[exercise.name])))
        else:
            problem = f"the file has no function {exercise.name}: was it renamed?"
            outcomes.append(Outcome(exercise.name, "wrong", problem))
    return Report(lesson, outcomes)


def _lesson_of(path: Path, names: set[str]) -> int:
    known = {lesson: {exercise.name for exercise in exercises(lesson)} for lesson in lessons()}
    # The file's own number decides where two lessons have functions of the same name.
    lesson = max(known, key=lambda number: (len(known[number] & names), f"{number:02}" == path.stem[:2]))
    if known[lesson] & names:
        return lesson
    stubs = f"{path.stem[:2]}.py" if path.stem[:2] in {f"{number:02}" for number in known} else "NN.py"
    raise MbnpError(f"{path} has none of the exercises' functions: start from the stubs in tutorials/exercises/{stubs}")


def _run(path: Path) -> dict[str, Any]:
    """Return the names that a reader's file defines. Raise MbnpError, one line, if it does not run to its end."""
    if path.is_dir():
        raise MbnpError(f"{path} is a folder: name a file in it, such as {path / '01.py'}")
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise MbnpError(f"{path} does not exist: name a file such as tutorials/exercises/01.py") from None
    try:
        code = compile(text, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        where = f"{path}, line {error.lineno}" if error.lineno else str(path)
        raise MbnpError(f"{where}: {error.msg}" + (f": {error.text.strip()}" if error.text else "")) from None
    except ValueError as error:
        raise MbnpError(f"{path}: {error}") from None
    module = types.ModuleType("exercise")
    module.__file__ = str(path)
    sys.modules["exercise"] = module  # where dataclasses and the like look
    try:
        with captured(), time_limit():
            exec(code, module.__dict__)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a reader's exit must not end the grader
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        what = str(error).splitlines()[0] if str(error) else "it does not run to its end"
        raise MbnpError(f"{where}: {type(error).__name__}: {what}") from None
    finally:
        del sys.modules["exercise"]
    return vars(module)
