"""The text of a reader's program: which file is meant, in whatever encoding, and notebooks without their magics."""

import ast
import codecs
import contextlib
import io
import json
import os
import re
import tokenize
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbnp.errors import MbnpError

LARGEST = 20_000_000  # bytes; with its figures a notebook has a few millions
# The longer mark first: the one of UTF-32 begins like that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
TIMERS = ("time", "timeit", "capture", "prun")  # cell magics below which there is Python
# `%name`, `!command`, `x = %name`, `x = !command`, `?name`, `name?`
MAGIC = re.compile(r"\s*(?:[\w, ]+=\s*)?(?:%{1,2}[A-Za-z]|!|\?)|\s*[\w.]+\?+\s*$")


@dataclass(frozen=True)
class Source:
    """A reader's program. `cells` has the first line of each code cell, if it is a notebook."""

    path: Path
    text: str
    cells: tuple[int, ...] = ()

    def where(self, line: int) -> str:
        """Say where a line of `text` is, for the reader: "line 3" or "code cell 2, line 1"."""
        cell = bisect_right(self.cells, line)
        return f"code cell {cell}, line {line - self.cells[cell - 1] + 1}" if cell else f"line {line}"


def find(name: str | Path, exercises: dict[int, set[str]]) -> Path:
    """Return the file that is meant by a path, a lesson's number, or the path of the lesson itself.

    exercises: the names of each lesson's functions. A lesson is taken for its exercises unless it has one of them.
    """
    path = Path(name)
    if re.fullmatch(r"\d{1,2}", str(name)) and not path.exists():
        return _of_lesson(int(str(name)), exercises)
    if path.is_dir():
        raise MbnpError(f"{path} is a folder: name a file in it, such as {path / '01.py'}")
    if not path.exists():
        raise MbnpError(f"{path} does not exist: name a file such as tutorials/exercises/01.py")
    return _of_page(path, exercises) or path


def _of_page(path: Path, exercises: dict[int, set[str]]) -> Path | None:
    """Return the exercises that belong to a lesson's program, page or notebook, unless it has their functions."""
    if not re.match(r"\d\d_", path.name):
        return None
    # Beside a program; a page is in a folder of its own.
    files = [Path(os.path.normpath(path.parent / up / "exercises" / f"{path.name[:2]}.py")) for up in ("", "..")]
    stubs = [file for file in files if file.is_file()]
    own = exercises.get(int(path.name[:2]), set()) & set(re.findall(r"\bdef (\w+)", _text(path)))
    return stubs[0] if stubs and (path.suffix == ".md" or not own) else None


def _of_lesson(number: int, exercises: dict[int, set[str]]) -> Path:
    if number not in exercises:
        raise MbnpError(f"there is no lesson {number}: they are {min(exercises)} to {max(exercises)}")
    repository = Path(__file__).resolve().parents[2]
    folders = [*map(Path, ("tutorials/exercises", "exercises", ".")), repository / "tutorials/exercises"]
    for folder in folders:
        for suffix in (".py", ".ipynb"):
            file = folder / f"{number:02}{suffix}"
            if file.is_file():
                return file
    raise MbnpError(
        f"the exercises of lesson {number} are not here: name your file, begun from tutorials/exercises/{number:02}.py"
    )


def read(path: Path) -> Source:
    """Read a program or a notebook. Raise MbnpError if the file is neither."""
    text = _text(path)
    return _notebook(path, text) if path.suffix == ".ipynb" else Source(path, text)


def _text(path: Path) -> str:
    if not path.is_file():
        raise MbnpError(f"{path} is not a file: name one such as tutorials/exercises/01.py")
    if path.stat().st_size > LARGEST:
        raise MbnpError(f"{path} has {path.stat().st_size:,} bytes, too many for a program: is it another file?")
    text = _decoded(path.read_bytes())
    if "\0" in text:
        raise MbnpError(f"{path} has null bytes, so that it is no text: save it as a Python file in UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decoded(data: bytes) -> str:
    """Decode by the mark at the beginning, the encoding that the first lines name, or what the bytes look like."""
    guesses = [encoding for mark, encoding in MARKS.items() if data.startswith(mark)][:1]
    if data[1::2].count(0) > len(data) // 4:
        guesses.append("utf-16-le")
    if data[::2].count(0) > len(data) // 4:
        guesses.append("utf-16-be")
    with contextlib.suppress(SyntaxError):  # not what it says, or not what it should be if it says nothing
        guesses.append(tokenize.detect_encoding(io.BytesIO(data).readline)[0])
    # A comment in another encoding harms nothing. In that of Chinese files a character may end like a backslash.
    for encoding in [*guesses, "utf-8", "gb18030"]:
        try:
            return data.decode(encoding)
        except (UnicodeError, LookupError):
            continue
    return data.decode("latin-1")


# --- notebooks ---


def _notebook(path: Path, text: str) -> Source:
    try:
        book = json.loads(text)
        cells = book["cells"] if "cells" in book else [cell for sheet in book["worksheets"] for cell in sheet["cells"]]
        codes = [_code(cell) for cell in cells if cell.get("cell_type") == "code"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise MbnpError(f"{path} is not a notebook: save it again, or export it as a Python file") from None
    starts: list[int] = []
    lines: list[str] = []
    for code in codes:
        starts.append(len(lines) + 1)
        lines += [*_without_magics(code).split("\n"), ""]
    return Source(path, "\n".join(lines), tuple(starts))


def _code(cell: Any) -> str:
    code = cell.get("source", cell.get("input", ""))
    code = code if isinstance(code, str) else "".join(code)
    return code.replace("\r\n", "\n")


def _without_magics(code: str) -> str:
    """Replace what is IPython's and not Python's by `pass`; lines keep their numbers."""
    lines = code.split("\n")
    first = next((k for k, line in enumerate(lines) if line.strip()), 0)
    if magic := re.match(r"%%(\w+)", lines[first].lstrip()):
        if magic[1] not in TIMERS:
            return "\n" * (len(lines) - 1)
        lines[first] = ""
    try:
        ast.parse("\n".join(lines))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        lines = [line[: len(line) - len(line.lstrip())] + "pass" if MAGIC.match(line) else line for line in lines]
    return "\n".join(lines)


def brief(text: str, most: int = 200) -> str:
    """Return text for a terminal: what would move its cursor or change its colours is escaped, long lines are cut."""
    lines = []
    for line in text.replace("\r\n", "\n").replace("\t", "    ").split("\n"):
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line[:most])
        lines.append(shown + (f"... ({len(line):,} characters)" if len(line) > most else ""))
    return "\n".join(lines)
