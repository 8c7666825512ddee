"""Every exercise can be solved as the lesson says, and every known mistake is distinguished from the others."""

import ast

import pytest

from mbnp import grading
from tests.grading import make_golden
from tests.tutorials.helpers import LESSONS, TUTORIALS, solutions

NUMBERS = [int(lesson.stem[:2]) for lesson in LESSONS]
each_lesson = pytest.mark.parametrize("number", NUMBERS)
MISTAKES = [
    pytest.param(number, exercise, mistake, id=f"{number:02}-{exercise.name}-{k}")
    for number in grading.lessons()
    for exercise in grading.exercises(number)
    for k, mistake in enumerate(exercise.mistakes)
]


def stubs(number):
    return TUTORIALS / "exercises" / f"{number:02}.py"


@each_lesson
def test_solutions_in_the_lesson_are_right(number, tmp_path):
    lesson = LESSONS[NUMBERS.index(number)]
    folded = solutions(lesson)
    assert len(folded) == len(grading.exercises(number))
    # As a reader would: the stubs' imports, then the solutions.
    file = tmp_path / "answers.py"
    file.write_text(_imports(stubs(number)) + "\n\n".join(folded), encoding="utf-8")
    report = grading.grade_file(file)
    assert report.lesson == number
    assert [(o.name, o.status, o.problem) for o in report.outcomes if o.status != "solved"] == []


def _imports(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return "".join(ast.unparse(node) + "\n" for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))


@each_lesson
def test_stubs_are_complete_and_not_yet_solved(number):
    report = grading.grade_file(stubs(number))
    assert report.lesson == number
    assert [(o.name, o.status) for o in report.outcomes] == [(e.name, "not yet") for e in grading.exercises(number)]
    functions = {
        node.name: node
        for node in ast.parse(stubs(number).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    for exercise in grading.exercises(number):
        assert ast.get_docstring(functions[exercise.name]), "the docstring gives shapes"
        arguments = [argument.arg for argument in functions[exercise.name].args.args]
        assert all(list(case) == arguments for case in exercise.make_cases()), "cases call it as the stub is written"


@pytest.mark.parametrize(("number", "exercise", "mistake"), MISTAKES)
def test_mistake_gets_its_own_message(number, exercise, mistake):
    outcome = grading.grade(exercise, mistake.wrong, grading.golden(number))
    assert outcome.status == "wrong"
    assert outcome.likely == mistake.message


@pytest.mark.parametrize("number", grading.lessons())
def test_golden_values_are_pytorchs_and_mbnps(number):
    made, stored = make_golden.make(number), grading.golden(number)
    assert make_golden.equal(made, stored), "run: python tests/grading/make_golden.py"
    for exercise in grading.exercises(number):
        outcome = grading.grade(exercise, exercise.reference, stored)
        assert (outcome.status, outcome.problem) == ("solved", "")


def test_exercise_names_are_unique():
    names = [exercise.name for number in grading.lessons() for exercise in grading.exercises(number)]
    assert len(names) == len(set(names))
