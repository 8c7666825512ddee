"""Rich's console, for commands that draw: text from files arrives printable, only its own sequences as they are."""

import sys
from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment

from mbnp.errors import printable


class Console(rich.console.Console):
    """The console on standard output or standard error. Errors of writing are raised, whatever their kind."""

    def __init__(self, stderr: bool = False, **options: Any) -> None:
        stream = sys.stderr if stderr else sys.stdout
        super().__init__(file=getattr(stream, "plain", stream), **options)  # past the one that cli.py put there

    def render(self, *arguments: Any) -> Iterable[Segment]:
        for segment in super().render(*arguments):
            yield segment if segment.control else segment._replace(text=printable(segment.text, "\n"))

    def on_broken_pipe(self) -> None:
        raise
