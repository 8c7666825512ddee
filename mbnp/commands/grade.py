"""`mbnp grade`: say whether the exercises of a lesson are solved, and if not, what is wrong."""

from argparse import Namespace

from rich.console import Console
from rich.text import Text

from mbnp import grading, tables, translation

COLOURS = {"solved": "green", "not yet": "yellow", "wrong": "red"}
PRINTED_LINES = 10


def run(options: Namespace) -> int:
    report = grading.grade_file(options.exercise)
    console = Console(highlight=False, soft_wrap=True)
    width = max(len(outcome.name) for outcome in report.outcomes)
    for outcome in report.outcomes:
        _print(console, outcome, width)
    solved = sum(outcome.status == "solved" for outcome in report.outcomes)
    console.print(Text(_say(f"lesson {report.lesson}: {solved} of {len(report.outcomes)} solved")))
    return 0 if report.solved else 1


def _say(text: str) -> str:
    """Return a message in the reader's language."""
    return translation.say(text, "mbnp.grading")


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
