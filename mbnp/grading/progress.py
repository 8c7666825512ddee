"""What a reader has solved and where: a small JSON file in the user's data folder, or where MBNP_PROGRESS says.

    {"3": {"file": "/home/me/mbnp/tutorials/exercises/03.py", "solved": ["taps"], "hints": {"conv_dx": 2}}}

An exercise that was solved once stays so: changing a file, or grading an empty copy of it, forgets nothing.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from mbnp import grading
from mbnp.errors import MbnpError


@dataclass
class Lesson:
    """What is kept of a lesson: the file graded last, the exercises solved, how many hints were shown for each."""

    file: str = ""
    solved: list[str] = field(default_factory=list)
    hints: dict[str, int] = field(default_factory=dict)


Progress = dict[int, Lesson]


def path() -> Path:
    """Return the file that the environment variable MBNP_PROGRESS names, or else the one in the user's data folder."""
    named = os.environ.get("MBNP_PROGRESS")
    return Path(named) if named else platformdirs.user_data_path("mbnp", appauthor=False) / "progress.json"


def load() -> Progress:
    """Return what is kept, with an entry for each lesson. MbnpError if the file is damaged."""
    try:
        kept = _checked(json.loads(path().read_bytes()))
    except FileNotFoundError:
        kept = {}
    except (ValueError, RecursionError):
        raise MbnpError(f"{path()} is damaged, so what was solved is not known: delete it to begin anew") from None
    return {number: kept.get(number, Lesson()) for number in grading.lessons()}


def _checked(entries: Any) -> Progress:
    """Return the entries of the file; ValueError unless they are as `save` wrote them."""
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ValueError
    kept = {}
    for number, entry in entries.items():
        file, solved, hints = entry.get("file", ""), entry.get("solved", []), entry.get("hints", {})
        if not (isinstance(file, str) and isinstance(solved, list) and isinstance(hints, dict)):
            raise ValueError
        if not all(isinstance(name, str) for name in solved) or not all(type(n) is int for n in hints.values()):
            raise ValueError
        kept[int(number)] = Lesson(file, solved, hints)
    return kept


def save(progress: Progress) -> None:
    """Write the file, whole or not at all."""
    from mbnp.storage import replacing  # needs psutil, which is slow to import

    path().parent.mkdir(parents=True, exist_ok=True)
    with replacing(path()) as partial:
        partial.write_text(json.dumps({n: asdict(lesson) for n, lesson in progress.items()}, indent=1) + "\n", "utf-8")


def record(report: grading.Report) -> Progress:
    """Keep what a file has solved, and where it is; return everything that is kept."""
    progress = load()
    lesson = progress[report.lesson]
    lesson.file = str(report.file.resolve())
    solved = {outcome.name for outcome in report.outcomes if outcome.status == "solved"} | set(lesson.solved)
    lesson.solved = [exercise.name for exercise in grading.exercises(report.lesson) if exercise.name in solved]
    save(progress)
    return progress


def one_more_hint(lesson: int, name: str, most: int) -> int:
    """Count one hint more for an exercise, up to `most`; return how many are to be shown."""
    progress = load()
    hints = progress[lesson].hints
    hints[name] = min(hints.get(name, 0) + 1, most)
    save(progress)
    return hints[name]


def to_do(progress: Progress, lesson: int) -> list[str]:
    """Return the exercises of a lesson that are not solved, in order."""
    return [exercise.name for exercise in grading.exercises(lesson) if exercise.name not in progress[lesson].solved]


def next_lesson(progress: Progress, after: int = 0) -> int | None:
    """Return the first lesson that is not solved, rather one after `after`; None if all are."""
    unsolved = [number for number in progress if to_do(progress, number)]
    return next(iter([number for number in unsolved if number > after] or unsolved), None)


# --- where the files are ---


def tutorials() -> Path | None:
    """Return the folder of the lessons: here, in a folder above, or where mbnp was installed from; None without."""
    folders = (Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parents[2])
    return _first(folder / "tutorials" for folder in folders if (folder / "tutorials" / "exercises").is_dir())


def file_of(progress: Progress, lesson: int, after: Path | None = None) -> Path | None:
    """Return the file to open for a lesson: its copy, the one graded last, or its stubs; None if there is none.

    after: the file that was solved before; a copy of the next lesson may stand beside it
    """
    folder = tutorials()
    candidates = [after.with_name(f"{lesson:02}{after.suffix}")] if after else []
    candidates += [Path(progress[lesson].file)] if progress[lesson].file else []
    candidates += [folder / "exercises" / f"{lesson:02}.py"] if folder else []
    return _first(file for file in candidates if file.is_file())


def page_of(lesson: int) -> Path | None:
    """Return the page of a lesson, or None if the lessons are not here."""
    folder = tutorials()
    return _first(sorted(folder.glob(f"rendered/{lesson:02}_*.md"))) if folder else None


def shown(file: Path) -> str:
    """Return a path as one would type it here."""
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


def _first(paths: Iterable[Path]) -> Path | None:
    return next(iter(paths), None)
