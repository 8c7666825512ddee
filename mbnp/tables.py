"""Plain text for a terminal of 80 columns: tables, and long lines with a hanging indent."""

import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from mbnp.errors import printable

WIDTH = 80
WIDE = "\u2e80-\ua4cf\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60"  # Chinese characters and punctuation: two columns each


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: int = 1,
    left_last: bool = False,
    total: Sequence[str] = (),
    drop: Sequence[str] = (),
) -> str:
    """Align columns under a head and a rule: the first `left` (and the last, if so) flush left, others right.

    total: a last row, below another rule. drop: heads of the columns to leave out, one after another, as long as the
    table is wider than WIDTH.
    """
    everything = [head, *rows, *([total] if total else [])]
    widths = [max(map(_columns, column)) for column in zip(*everything, strict=True)]
    width = sum(widths) + 2 * len(widths) - 2
    if width > WIDTH and drop:
        at = list(head).index(drop[0])
        head, *rows = ([*row[:at], *row[at + 1 :]] for row in everything)
        total = rows.pop() if total else ()
        return table(head, rows, left - (at < left), left_last, total, drop[1:])
    flush_left = {*range(left), *([len(head) - 1] if left_last else [])}

    def text(row: Sequence[str]) -> str:
        spaces = [" " * (w - _columns(c)) for c, w in zip(row, widths)]  # noqa: B905
        cells = (c + s if i in flush_left else s + c for i, (c, s) in enumerate(zip(row, spaces)))  # noqa: B905
        return "  ".join(cells).rstrip()

    rule = "-" * min(width, WIDTH)
    return "\n".join([text(head), rule, *map(text, rows), *([rule, text(total)] if total else [])])


def quantity(value: float) -> str:
    """Write a number in few characters: 1.5M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def setting(value: Any) -> str:
    """Write the value of a setting: yes, no, "-" for none, a pair as "low to high"."""
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    return " to ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return len(text) + len(re.findall(f"[{WIDE}]", text))


def hang(text: str, indent: int = 2) -> str:
    """Break each line of `text` at WIDTH columns; what goes on is indented."""
    wrap = _Wrapper(WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
    text = re.sub(f"([{WIDE}])", "\\1\0", text)  # as many characters as columns
    return "\n".join(wrap.fill(line) for line in text.split("\n")).replace("\0", "")


def note(text: str) -> None:
    """Say on stderr what one may want to know of what is being done."""
    print(hang(f"mbnp: {printable(text)}"), file=sys.stderr)


class _Wrapper(textwrap.TextWrapper):
    """Break lines at spaces, and between Chinese characters, but not before a comma or after an opening bracket."""

    def _split(self, text: str) -> list[str]:
        opening, closing = "[（《]\0", "[，。；：！？、）》]\0"
        return re.findall(rf"\s+|(?:{opening})*(?:[{WIDE}]\0|[^\s{WIDE}]+)(?:{closing})*|{opening}", text)
