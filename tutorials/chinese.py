"""The Chinese pages: the English ones with their prose, sentences, table headings and captions translated.

zh/NN_name.md has the translation of a lesson, in the order of its page:

    <!-- cell 1f0c2a9b -->         a Markdown cell, with a hash of its English. A line {code} stands for the cell's next
                                   block of code, a line {formula} for its next formula.
    <!-- say It took {s} s. -->    a sentence that `say` shows, as a format string, {s} being the same in both languages
    <!-- figure A line -->         what a figure shows: its caption, since the figure itself stays English
    <!-- words -->                 a table of English and Chinese: headings, cells of tables, parts of sentences

zh/lesson.md has what lesson.py says. The line <!-- mbnp/grading/lessons/hints/zh/03.md: conv_dx --> stands for that
file's hint, and the solution. All else, code, numbers and figures, is the English page's.
"""

import ast
import difflib
import hashlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mbnp.translation import Catalogue, rows

MARKER = re.compile(r"^<!-- (cell|say|figure|words)\s?(.*?)\s*-->\n", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"^\$\$.*?\$\$$", re.MULTILINE | re.DOTALL)
HINT = re.compile(r"^<!-- mbnp/grading/lessons/hints/zh/(\d\d)\.md: (\w+) -->$", re.MULTILINE)
FOLDED = "<details><summary>{}</summary>\n\n{}\n\n</details>"
SHARED = {"{code}": FENCED, "{formula}": FORMULA}
SUMMARY = "<details><summary>The code of this figure</summary>"


class TranslationError(Exception):
    """What is not translated, one thing a line."""


@dataclass
class Translation:
    """What a file of zh/ says.

    cells: hash of the English, Chinese; in order
    known: sentences, captions and words
    """

    cells: list[tuple[str, str]] = field(default_factory=list)
    known: Catalogue = field(default_factory=Catalogue)


def read(*files: Path) -> Translation:
    """Read files of zh/ into one translation."""
    found = Translation()
    for file in files:
        _, *parts = MARKER.split(file.read_text(encoding="utf-8"))
        for kind, english, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            if kind == "cell":
                found.cells.append((english, text.strip()))
            elif kind == "words":
                for word, chinese in rows(text.splitlines()):
                    found.known.add(word, chinese, r"\S+")
            else:
                found.known.add(english, text.strip())
    return found


def with_hints(cell: str, hints: Callable[[int], dict[str, str]]) -> str:
    """Return a cell's translation with the hints and the places of the solutions."""

    def folded(place: re.Match[str]) -> str:
        hint = hints(int(place[1])).get(place[2], "")
        return f"{FOLDED.format('提示', hint)}\n\n{FOLDED.format('答案', '{code}')}"

    return HINT.sub(folded, cell)


def prose(source: str) -> list[str]:
    """Return the Markdown cells of a lesson's source."""
    cells = re.split(r"^# %%", source, flags=re.MULTILINE)
    texts = [cell.removeprefix(" [markdown]\n") for cell in cells if cell.startswith(" [markdown]\n")]
    return [re.sub(r"^# ?", "", text, flags=re.MULTILINE).strip() for text in texts]


def digest(cell: str) -> str:
    """Return the hash that stands beside a cell's translation."""
    return hashlib.sha256(cell.encode()).hexdigest()[:8]


def page(body: str, cells: Sequence[tuple[str, str]], translation: Translation, folder: str) -> str:
    """Return the Chinese of an English page's body.

    cells: each Markdown cell as it is on the page, and its translation
    folder: the path from the Chinese page to the English one, for the figures
    """
    parts, missing, rest = [], list[str](), f"\n\n{body}\n\n"
    for english, chinese in cells:
        outputs, found, rest = rest.partition(f"\n\n{english}\n\n")
        if not found:
            raise TranslationError(f"the English page has no cell {_short(english)}")
        parts += [_outputs(outputs, translation, missing, folder), _filled(english, chinese, translation)]
        rest = f"\n\n{rest}"
    parts.append(_outputs(rest, translation, missing, folder))
    if missing:
        raise TranslationError("\n".join(f"no translation of {_short(text)}" for text in missing))
    return "\n\n".join(part for part in parts if part)


def outdated(source: str, translation: Translation) -> list[str]:
    """Return what of a lesson is not translated, or was translated from another English, one line for each."""
    cells, english = prose(source), [hash_ for hash_, _ in translation.cells]
    lines = []
    matcher = difflib.SequenceMatcher(None, english, [digest(cell) for cell in cells], autojunk=False)
    for kind, i, j, a, b in matcher.get_opcodes():
        if kind != "equal":
            what = "not translated" if kind == "insert" else "changed since it was translated"
            lines += [f"{what}: cell {k + 1}, {_short(cells[k])}" for k in range(a, b)]
            lines += [f"no such cell any more: {_short(translation.cells[k][1])}" for k in range(i + b - a, j)]
    for cell, (_, chinese) in zip(cells, translation.cells, strict=False) if not lines else ():
        try:
            _filled(cell, chinese, translation)
        except TranslationError as error:
            lines.append(str(error))
    missing = list[str]()
    for text in said(source):
        _outputs(text, translation, missing, "")
    return lines + [f"not translated: {_short(text)}" for text in missing]


def stamp(source: str, file: Path) -> None:
    """Write the hashes of a lesson's cells anew into its translation, which has to have as many."""
    hashes = [digest(cell) for cell in prose(source)]
    text = file.read_text(encoding="utf-8")
    count = len(re.findall(r"^<!-- cell\b", text, re.MULTILINE))
    if count != len(hashes):
        raise TranslationError(f"{file.name} has {count} cells, its lesson {len(hashes)}")
    text = re.sub(r"^<!-- cell\b.*-->$", lambda _: f"<!-- cell {hashes.pop(0)} -->", text, flags=re.MULTILINE)
    file.write_text(text, encoding="utf-8", newline="\n")


def said(source: str) -> Iterator[str]:
    """Yield what a lesson's `say`, `table` and `show` have as literals, with 1 in place of each value."""
    for node in ast.walk(ast.parse(source)):
        name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        if name == "say":
            yield inspect.cleandoc(_literal(node.args[0]))
        elif name == "table" and isinstance(node.args[1], ast.List):
            yield "| " + " | ".join(_literal(heading) for heading in node.args[1].elts) + " |"
        elif name == "show" and len(node.args) > 1:
            yield f"![{' '.join(_literal(node.args[1]).split())}]()"


def _literal(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "1" for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else ""


def _outputs(text: str, translation: Translation, missing: list[str], folder: str) -> str:
    """Return the code and outputs between two Markdown cells, translated; add what is not known to `missing`."""

    def known(english: str) -> str:
        chinese = translation.known.get(english)
        if chinese is None and re.search(r"[A-Za-z]{2,}", re.sub(r"`.*?`|\$.*?\$", "", english)):
            missing.append(english)
        return _apart(english if chinese is None else chinese)

    blocks = []
    for block in FENCED.split(text):
        for part in [block] if block.startswith("```") else block.strip().split("\n\n"):
            image = re.fullmatch(r"!\[(.*)\]\((.*)\)", part)
            if part.startswith("```") or part in ("", "</details>"):
                blocks.append(part)
            elif part == SUMMARY:
                blocks.append("<details><summary>这幅图的代码</summary>")
            elif image:
                caption = known(image[1])
                blocks.append(f"![{caption}]({folder}{image[2]})\n\n*{caption}。*")
            elif part.startswith("|"):
                cells = [[known(cell.strip()) for cell in row.split("|")[1:-1]] for row in part.splitlines()]
                blocks.append("\n".join(f"| {' | '.join(row)} |" for row in cells))
            else:
                blocks.append(known(part))
    return "\n\n".join(block for block in blocks if block)


def _filled(english: str, chinese: str, translation: Translation) -> str:
    """Return the translation of a cell with the English cell's code and formulas in their places."""

    def in_words(word: re.Match[str]) -> str:
        return f"\\text{{{translation.known.get(word[1]) or word[1]}}}"

    text = _apart(chinese)
    for mark, shared in SHARED.items():
        blocks = [re.sub(r"\\text\{(\w+)\}", in_words, block) for block in shared.findall(english)]
        places = len(re.findall(rf"^{mark}$", text, re.MULTILINE))
        if places != len(blocks):
            raise TranslationError(f"{len(blocks)} times {mark} in {_short(english)}, {places} in the translation")
        text = re.sub(rf"^{mark}$", lambda _, blocks=blocks: blocks.pop(0), text, flags=re.MULTILINE)
    return text


def _apart(text: str) -> str:
    """Put a space between a formula and Chinese beside it, without which GitHub does not see the formula."""
    parts = re.split(r"(\$[^$\n]+\$)", text)
    for k in range(1, len(parts), 2):
        before, after = parts[k - 1][-1:], parts[k + 1][:1]
        parts[k] = f"{' ' if before > '~' else ''}{parts[k]}{' ' if after > '~' else ''}"
    return "".join(parts)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else text[:57] + "...")
