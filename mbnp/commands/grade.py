"""`mbnp grade`: say whether the exercises of a lesson are solved, and if not, what is wrong; remember, and lead on."""

import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from rich.text import Text

from mbnp import grading, tables, translation
from mbnp.commands.console import Console
from mbnp.errors import MbnpError
from mbnp.grading import hints, progress, source, watch
from mbnp.grading.compare import DroppedError

COLOURS = {"solved": "green", "not yet": "yellow", "wrong": "red"}
PRINTED_LINES = 10


def run(options: Namespace) -> int:
    try:
        return _run(options)
    except MbnpError as error:
        raise MbnpError(_say(str(error))) from None


def _run(options: Namespace) -> int:
    console = Console(highlight=False, soft_wrap=True)
    if options.use and (options.watch or options.hint):
        raise MbnpError("--use trains with what is solved: leave out --watch and --hint")
    if options.use:
        from mbnp.grading import use  # the layers, which nothing else needs here

        return use.run(_file(options.exercise or "3"))
    if options.exercise is None and not (options.watch or options.hint):
        return _overview(console)
    file = _file(options.exercise)
    if options.watch:
        return _watch(console, file, options.hint)
    report = _grade(console, file, options.exercise)
    if options.hint:
        _hint(console, report)
    return 0 if report.solved else 1


def _file(given: str | None) -> Path:
    """Return the file that is meant: a path, the file of a lesson by its number, or that of the next lesson."""
    if given is not None and (not given.isdigit() or Path(given).exists()):
        return Path(given)
    kept = progress.load()
    lesson = progress.next_lesson(kept) if given is None else int(given)
    if lesson is None:
        raise MbnpError("every lesson is solved: name a file to grade it again")
    file = progress.file_of(kept, lesson) if lesson in kept else None
    return Path(progress.shown(file) if file else str(lesson))  # grading says what is wrong with the number


# --- one file ---


def _grade(
    console: Console, file: Path, given: str | None = None, dropped: Callable[[], bool] = lambda: False
) -> grading.Report:
    """Print the outcome of each exercise of a file, keep it, and say what comes next if all are solved.

    given: what the reader named it by; where that is not the file's path, the path is printed
    dropped: as `grading.grade_file` has it
    """
    report = grading.grade_file(file, dropped)
    if given is None or report.file != Path(given):
        console.print(Text(_say(f"graded: {report.file}")))
    width = max(len(outcome.name) for outcome in report.outcomes)
    for outcome in report.outcomes:
        _print(console, outcome, width)
    for note in report.notes:
        console.print(Text(tables.hang(_say(note), indent=6)))
    solved = sum(outcome.status == "solved" for outcome in report.outcomes)
    console.print(Text(_say(f"lesson {report.lesson}: {solved} of {len(report.outcomes)} solved")))
    try:
        kept = progress.record(report)
    except (MbnpError, OSError) as error:  # the grade counts all the same
        console.print(Text(tables.hang(_say(f"this is not remembered: {error}"))))
    else:
        now = {outcome.name for outcome in report.outcomes if outcome.status == "solved"}
        if before := [name for name in kept[report.lesson].solved if name not in now]:
            console.print(Text(tables.hang(_say(f"solved before, and remembered: {', '.join(before)}"))))
        if report.solved:
            _lead(console, kept, report)
    return report


def _lead(console: Console, kept: progress.Progress, after: grading.Report | None = None) -> None:
    """Print what comes next, after a report or at all, and which files to open."""
    if not progress.to_do(kept, 3) and (after is None or after.lesson == 3):
        console.print(Text(_say("your conv_dx in a real training step: mbnp grade --use")))
    lesson = progress.next_lesson(kept, after.lesson if after else 0)
    if lesson is None:
        console.print(Text(_say(f"all {len(kept)} lessons are solved")))
        return
    console.print(Text(_say(f"next: lesson {lesson}, {progress.to_do(kept, lesson)[0]}")))
    file, page = progress.file_of(kept, lesson, after.file if after else None), progress.page_of(lesson)
    if page:
        console.print(Text(_say(f"  read {progress.shown(page)}")))
    stubs = f"tutorials/exercises/{lesson:02}.py of mbnp's repository"
    console.print(Text(_say(f"  open {progress.shown(file) if file else stubs}")))


def _hint(console: Console, report: grading.Report) -> None:
    """Print the hints for the exercise that is worked on: those shown before, and one more."""
    unsolved = [outcome for outcome in report.outcomes if outcome.status != "solved"]
    if not unsolved:
        console.print(Text(_say("all is solved: there is nothing to hint at")))
        return
    name = next((outcome for outcome in unsolved if outcome.status == "wrong"), unsolved[0]).name
    steps = hints.steps(report.lesson, name)
    count = progress.one_more_hint(report.lesson, name, len(steps))
    for number, step in enumerate(steps[:count], start=1):
        text = _say(f"hint {number} of {len(steps)} for {name}: {step}")
        console.print(Text(text if "\n" in text else tables.hang(text, indent=6)))  # code stays as it is


# --- all lessons ---


def _overview(console: Console) -> int:
    """Print what is solved of every lesson, what comes next, and where."""
    kept = progress.load()
    rows, total, done = [], 0, 0
    for lesson in kept:
        to_do, count = progress.to_do(kept, lesson), len(grading.exercises(lesson))
        rows.append((str(lesson), f"{count - len(to_do)}/{count}", ", ".join(to_do)))
        total, done = total + count, done + count - len(to_do)
    heads, last = [_say(head) for head in ("lesson", "solved", "to do")], (_say("all"), f"{done}/{total}", "")
    table = tables.table(heads, rows, left_last=True, total=last)
    console.print(Text(tables.hang(table, indent=len("lesson  solved  "))))
    if done:
        console.print(Text(_say("what was solved once is remembered, whatever the file has now")))
    console.print()
    _lead(console, kept)
    if done < total:
        console.print(Text(_say("  then mbnp grade --watch")))
    return 0


# --- on every save ---


def _watch(console: Console, file: Path, hint: bool) -> int:
    """Grade the file now and after each save, and go on to the next lesson's when all is solved, until q is typed."""
    lines = watch.typed()
    known = {lesson: set(grading.names(lesson)) for lesson in grading.lessons()}
    while True:
        file = source.find(file, known)
        console.print(Text(_say(f"watching {progress.shown(file.absolute())}: Enter shows a hint, q and Enter ends")))
        report = _watch_one(console, file, lines, hint)
        if report is None:
            return 1
        kept = progress.load()
        following = progress.next_lesson(kept, report.lesson)
        if following is None:
            return 0
        beside = progress.file_of(kept, following, report.file)
        file, hint = Path(progress.shown(beside) if beside else str(following)), False


def _watch_one(console: Console, file: Path, lines: watch.Lines, hint: bool) -> grading.Report | None:
    """Return the report of a file once all is solved, or None if the reader has enough."""
    report = None
    for event in watch.events(file, lines):
        if event == "q":
            return None
        try:
            if event == "saved":
                console.print(Text(f"--- {time.strftime('%H:%M:%S')}"))
                report = _grade(console, file, str(file), watch.saved_again(file))
                if report.solved:
                    return report
            if report and (event != "saved" or hint):
                _hint(console, report)
                hint = False
        except DroppedError:
            report = None
        except (MbnpError, OSError) as error:
            report = None
            console.print(Text(tables.hang(_say(str(error))), style=COLOURS["wrong"]))
    return None


# --- one exercise ---


def _print(console: Console, outcome: grading.Outcome, width: int) -> None:
    status, problem = _say(outcome.status), f": {_say(outcome.problem)}" if outcome.problem else ""
    line = Text(tables.hang(f"{outcome.name:{width}}  {status}{problem}", indent=6))
    line.stylize(COLOURS[outcome.status], width + 2, width + 2 + len(status))
    console.print(line)
    details = {"likely": _say(outcome.likely), "called with": outcome.case, "printed": _head(outcome.printed)}
    for name, text in details.items():
        if text:
            text = f"  {_say(name)}:{text}" if text.startswith("\n") else f"  {_say(name)}: {text}"
            console.print(Text(tables.hang(text, indent=6)))


def _head(printed: str) -> str:
    lines = printed.rstrip().splitlines()
    if len(lines) <= 1:
        return printed.strip()
    shown = [f"\n    {line}" for line in lines[:PRINTED_LINES]]
    more = len(lines) - len(shown)
    return "".join(shown) + (f"\n    {_say(f'... and {more} lines more')}" if more else "")


def _say(text: str) -> str:
    """Return a message in the reader's language."""
    return translation.say(text, "mbnp.grading")
