"""Plain text for a terminal of 80 columns: tables, and long lines with a hanging indent."""

import textwrap
from collections.abc import Sequence

WIDTH = 80


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, left_last: bool = False) -> str:
    """Align columns under a head and a rule: the first `left` (and the last, if so) flush left, others right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    flush_left = {*range(left), *([len(head) - 1] if left_last else [])}

    def text(row: Sequence[str]) -> str:
        cells = (c.ljust(w) if i in flush_left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths)))  # noqa: B905
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    return "\n".join([text(head), rule, *map(text, rows)])


def hang(text: str, indent: int = 2) -> str:
    """Break each line of `text` at WIDTH columns; what goes on is indented."""
    wrap = textwrap.TextWrapper(
        WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(wrap.fill(line) for line in text.split("\n"))
