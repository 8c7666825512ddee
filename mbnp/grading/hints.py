"""The hints and solutions of the exercises: lessons/hints/NN.md, as the pages fold them and as `--hint` shows them.

lessons/hints/zh/NN.md has the hints in Chinese.
"""

import re
import textwrap
from importlib import resources

from mbnp import translation

FOLDED = re.compile(r"<details><summary>(\w+)</summary>\n\n(.*?)\n\n</details>", re.DOTALL)
LATEX = {r"\lfloor ": "⌊", r" \rfloor": "⌋", r"\varepsilon": "ε", r"\pi": "π", r"\cos": "cos", "$": ""}


def folded(lesson: int) -> dict[str, str]:
    """Return for each exercise its hint and its solution in Markdown, as a page folds them; {} if there are none."""
    return _parts(f"{lesson:02}.md")


def chinese(lesson: int) -> dict[str, str]:
    """Return for each exercise its hint in Chinese; {} if there are none."""
    return _parts(f"zh/{lesson:02}.md")


def _parts(name: str) -> dict[str, str]:
    file = resources.files("mbnp.grading.lessons") / "hints" / name
    if not file.is_file():
        return {}
    _, *parts = re.split(r"^## (\w+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}


def steps(lesson: int, name: str) -> list[str]:
    """Return what helps with an exercise, from little to all: the hint, sentence by sentence, then the solution."""
    found = dict(FOLDED.findall(folded(lesson)[name]))
    hint, end = found["Hint"], r"(?<=[.?])\s+(?=[A-Z`$])"
    if translation.chosen() == "zh" and (others := chinese(lesson)):
        hint, end = others[name], r"(?<=[。？])\s*(?=.)"
    sentences = re.split(end, _plain(hint))
    solution = re.sub(r"^```.*\n?", "", found["Solution"], flags=re.MULTILINE)
    title = translation.say("the solution", "mbnp.grading")
    return [*sentences, f"{title}\n\n" + textwrap.indent(solution.strip("\n"), "    ")]


def _plain(text: str) -> str:
    """Return a hint for a terminal: one line, without LaTeX."""
    text = re.sub(r"\\frac\{(.+?)\}\{(.+?)\}", r"(\1)/\2 ", " ".join(text.split()))
    text = re.sub(r"\\text\{(.+?)\}", r"\1", text)
    for latex, plain in LATEX.items():
        text = text.replace(latex, plain)
    return re.sub("(?<=[，。；：、（]) | (?=[，。；：、）])", "", text)
