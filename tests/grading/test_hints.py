"""Each exercise has hints that can be asked for one by one, and a solution after them."""

import ast
import re

import pytest

from mbnp import cli, grading
from mbnp.grading import hints
from tests.grading.answers import solved

EXERCISES = [(lesson, exercise.name) for lesson in grading.lessons() for exercise in grading.exercises(lesson)]


@pytest.mark.parametrize(("lesson", "name"), EXERCISES)
def test_steps(lesson, name):
    *sentences, solution = hints.steps(lesson, name)
    assert sentences
    assert all(re.search(r"[.?)]$", sentence) and len(sentence) > 10 for sentence in sentences), sentences
    assert not re.search(r"[$\\{}]", " ".join(sentences)), "a terminal shows no LaTeX"
    shown, code = solution.split("\n\n", 1)
    assert shown == "the solution"
    functions = [
        node.name for node in ast.parse(re.sub("^    ", "", code, flags=re.MULTILINE)).body if hasattr(node, "name")
    ]
    assert name in functions


def test_no_hint_belongs_to_nothing():
    for lesson in grading.lessons():
        assert list(hints.folded(lesson)) == [exercise.name for exercise in grading.exercises(lesson)]


def test_latex_in_words():
    assert hints.steps(3, "taps")[1] == "The number of output rows is ⌊(H + 2P - K)/S⌋ + 1."
    assert hints.steps(6, "one_cycle")[0].startswith("Half a cosine from `a` to `b` is b + (a - b)/2 (1 + cos π s), ")


def ask(capsys, file):
    """Return the hints below the grades of `mbnp grade FILE --hint`."""
    cli.main(["grade", str(file), "--hint"])
    out = re.sub(r"\n {6}", " ", capsys.readouterr().out)
    return [line for line in out.splitlines() if line.startswith("hint ")]


def test_one_more_each_time(tmp_path, capsys):
    file = tmp_path / "answers.py"
    file.write_text(solved(1, "conv_pixel"), encoding="utf-8")
    first = "hint 1 of 4 for output_size: How many rows does the padded input have?"
    assert ask(capsys, file) == [first]
    second = "hint 2 of 4 for output_size: How many are left below the first window?"
    assert ask(capsys, file) == [first, second]
    assert len(ask(capsys, file)) == 3
    for _ in range(2):  # there is no fifth
        assert ask(capsys, file)[3:] == ["hint 4 of 4 for output_size: the solution"]


def test_they_are_for_what_is_worked_on(tmp_path, capsys):
    file = tmp_path / "answers.py"
    wrong = "def convolve(x, w, b, stride, padding):\n    return x\n"
    file.write_text(solved(1, "conv_pixel") + wrong, encoding="utf-8")
    assert ask(capsys, file)[0].startswith("hint 1 of 3 for convolve: `with_windows` above does nearly all of it")
    file.write_text(solved(1), encoding="utf-8")
    cli.main(["grade", str(file), "--hint"])
    assert capsys.readouterr().out.endswith("all is solved: there is nothing to hint at\n")
