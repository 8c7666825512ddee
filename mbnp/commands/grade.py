"""`mbnp grade`: say whether the exercises of a lesson are solved, and if not, what is wrong."""

from argparse import Namespace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from mbnp import grading, tables

COLOURS = {"solved": "green", "not yet": "yellow", "wrong": "red"}
PRINTED_LINES = 10


def run(options: Namespace) -> int:
    report = grading.grade_file(options.exercise)
    console = Console(highlight=False, soft_wrap=True)
    if report.file != Path(options.exercise):
        console.print(Text(f"graded: {report.file}"))
    width = max(len(outcome.name) for outcome in report.outcomes)
    for outcome in report.outcomes:
        _print(console, outcome, width)
    for note in report.notes:
        console.print(Text(tables.hang(note, indent=6)))
    solved = sum(outcome.status == "solved" for outcome in report.outcomes)
    console.print(Text(f"lesson {report.lesson}: {solved} of {len(report.outcomes)} solved"))
    return 0 if report.solved else 1


def _print(console: Console, outcome: grading.Outcome, width: int) -> None:
    problem = f": {outcome.problem}" if outcome.problem else ""
    line = Text(tables.hang(f"{outcome.name:{width}}  {outcome.status}{problem}", indent=6))
    line.stylize(COLOURS[outcome.status], width + 2, width + 2 + len(outcome.status))
    console.print(line)
    details = {"likely": outcome.likely, "called with": outcome.case, "printed": _head(outcome.printed)}
    for name, text in details.items():
        if text:
            text = f"  {name}:{text}" if text.startswith("\n") else f"  {name}: {text}"
            console.print(Text(tables.hang(text, indent=6)))


def _head(printed: str) -> str:
    lines = printed.rstrip().splitlines()
    if len(lines) <= 1:
        return printed.strip()
    shown = [f"\n    {line}" for line in lines[:PRINTED_LINES]]
    more = len(lines) - len(shown)
    return "".join(shown) + (f"\n    ... and {more} lines more" if more else "")
