"""Sentences in Chinese: format strings by their English, in Markdown tables beside what prints them.

A row `| It took {s} s | 用了 {s} 秒 |` translates every sentence of that form. Its values are translated in turn,
unless they stand in backticks: those are code.
"""

import bisect
import functools
import locale
import os
import re
from collections.abc import Iterable, Iterator
from importlib import resources

CODE = re.compile(r"`[^`]*`")
BETWEEN = re.compile(r"(?<=[A-Za-z0-9])(?=[\u4e00-\u9fff])|(?<=[\u4e00-\u9fff])(?=[A-Za-z0-9])")


def chosen() -> str:
    """Return the language that MBNP_LANG names, or else the locale's: "zh", or "en" for all others."""
    names = (os.environ.get(name) for name in ("MBNP_LANG", "LC_ALL", "LC_MESSAGES", "LANG"))
    name = next(filter(None, names), None) or locale.getlocale()[0] or ""
    return "zh" if name.lower().startswith(("zh", "chinese")) else "en"


class Catalogue:
    """Translations by the form of the English; white space is all the same."""

    def __init__(self) -> None:
        self._known: list[tuple[re.Pattern[str], str, set[str]]] = []

    def add(self, english: str, chinese: str, value: str = ".+?") -> None:
        """Add a format string, whose values match the pattern `value`."""
        code = {name for part in CODE.findall(english) for name in re.findall(r"\{(\w+)\}", part)}

        def group(name: re.Match[str]) -> str:
            return f"(?P<{name[1]}>{'[^`]+?' if name[1] in code else value})"

        text = re.escape(" ".join(english.split())).replace(r"\ ", r"\s+")
        entry = re.compile(re.sub(r"\\\{(\w+)\\\}", group, text), re.DOTALL), chinese, code
        bisect.insort(self._known, entry, key=lambda entry: -len(entry[0].pattern))  # the most particular first

    def get(self, text: str) -> str | None:
        """Return the translation of a text; None if there is none."""
        for pattern, chinese, code in self._known:
            if match := pattern.fullmatch(text):
                parts = re.split(r"\{(\w+)\}", chinese)  # every other one is a name
                for k in range(1, len(parts), 2):
                    value = match[parts[k]]
                    parts[k] = value if parts[k] in code else self.get(value) or value
                return functools.reduce(_joined, parts)
        return None


def _joined(text: str, more: str) -> str:
    """Set Latin letters and digits off from Chinese characters, as is usual."""
    return f"{text}{' ' if BETWEEN.search(text[-1:] + more[:1]) else ''}{more}"


def rows(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the English and the Chinese of each row of a Markdown table; other lines are skipped."""
    for line in lines:
        cells = line.strip().removeprefix("| ").removesuffix(" |").split(" | ")
        if line.startswith("| ") and len(cells) == 2 and not set(cells[0]) <= {"-", ":"}:
            yield cells[0], cells[1]


@functools.cache
def _catalogue(room: str) -> Catalogue:
    found = Catalogue()
    file = resources.files(room) / "messages.zh.md"
    for english, chinese in rows(file.read_text(encoding="utf-8").splitlines()):
        found.add(english, chinese)
    return found


def say(text: str, room: str) -> str:
    """Return a sentence in the reader's language, if the `messages.zh.md` of the package `room` has it."""
    bare = text.lstrip(" ")
    return text.removesuffix(bare) + (_catalogue(room).get(bare) or bare) if chosen() == "zh" else text
