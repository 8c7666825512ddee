"""Sentences in another language: format strings by their English, in Markdown tables beside what prints them.

A row `| It took {s} s | 用了 {s} 秒 |` translates every sentence of that form; its values are translated in turn.
"""

import functools
import locale
import os
import re
from collections.abc import Iterable, Iterator
from importlib import resources


def chosen() -> str:
    """Return the language that MBNP_LANG names, or else the locale's: "zh", or "en" for all others."""
    names = (os.environ.get(name) for name in ("MBNP_LANG", "LC_ALL", "LC_MESSAGES", "LANG"))
    name = next(filter(None, names), None) or locale.getlocale()[0] or ""
    return "zh" if name.lower().startswith(("zh", "chinese")) else "en"


class Catalogue:
    """Translations by the form of the English; white space is all the same."""

    def __init__(self) -> None:
        self._known: list[tuple[re.Pattern[str], str]] = []

    def add(self, english: str, translation: str, value: str = ".+?") -> None:
        """Add a format string, whose values match the pattern `value`."""
        text = re.escape(" ".join(english.split())).replace(r"\ ", r"\s+")
        text = re.sub(r"\\\{(\w+)\\\}", lambda name: f"(?P<{name[1]}>{value})", text)
        self._known.append((re.compile(text, re.DOTALL), translation))
        self._known.sort(key=lambda entry: -len(entry[0].pattern))  # the most particular first

    def get(self, text: str) -> str | None:
        """Return the translation of a text; None if there is none."""
        for pattern, translation in self._known:
            if match := pattern.fullmatch(text):
                values = {name: self.get(value) or value for name, value in match.groupdict().items()}
                return re.sub(r"\{(\w+)\}", lambda name: values.get(name[1], name[0]), translation)  # noqa: B023
        return None


def rows(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the English and the translation of each row of a Markdown table; other lines are skipped."""
    for line in lines:
        cells = line.strip().removeprefix("| ").removesuffix(" |").split(" | ")
        if line.startswith("| ") and len(cells) == 2 and not set(cells[0]) <= {"-", ":"}:
            yield cells[0], cells[1]


@functools.cache
def _catalogue(room: str, language: str) -> Catalogue:
    found = Catalogue()
    file = resources.files(room) / f"messages.{language}.md"
    for english, translation in rows(file.read_text(encoding="utf-8").splitlines()):
        found.add(english, translation)
    return found


def say(text: str, room: str) -> str:
    """Return a sentence in the reader's language, if the `messages.zh.md` of the package `room` has it."""
    language = chosen()
    return text if language == "en" else _catalogue(room, language).get(text) or text
