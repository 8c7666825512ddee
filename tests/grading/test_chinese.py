"""What the grader says in Chinese: every message of lessons 1 to 6 and 13, the same values, lines of 80 columns."""

import re
from importlib import resources

import pytest
from rich.cells import cell_len

from mbnp import cli, grading, tables, translation
from mbnp.grading import hints, observe

SAY = "mbnp.grading"
ROWS = [
    row
    for row in translation.rows((resources.files(SAY) / "messages.zh.md").read_text(encoding="utf-8").splitlines())
    if row != ("English", "中文")
]
TRANSLATED = (*range(1, 7), 13)
MESSAGES = [
    (lesson, mistake.message)
    for lesson in TRANSLATED
    for exercise in grading.exercises(lesson)
    for mistake in exercise.mistakes
]


@pytest.fixture
def chinese(monkeypatch):
    monkeypatch.setenv("MBNP_LANG", "zh")
    return lambda text: translation.say(text, SAY)


@pytest.mark.parametrize("lesson", TRANSLATED)
def test_every_mistake_of_a_lesson_has_its_chinese(lesson, chinese):
    messages = [message for number, message in MESSAGES if number == lesson]
    assert messages
    assert [message for message in messages if chinese(message) == message] == []


def test_advice_about_errors_has_its_chinese(chinese):
    assert [said for _, said in observe.ADVICE if chinese(said) == said] == []


def test_rows_are_whole():
    english = [row[0] for row in ROWS]
    assert len(english) == len(set(english)) > 250
    for english, text in ROWS:
        assert re.search(r"[\u4e00-\u9fff：]|MACs", text), english
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", text)), english
        assert set(re.findall(r"`[^`]+`", english)) == set(re.findall(r"`[^`]+`", text)), english


@pytest.mark.parametrize(
    ("english", "text"),
    [
        ("the result is -3.4, expected -0.84", "结果是 -3.4，应为 -0.84"),
        (
            "y[0, 2] is 0.5, expected 1.25 (3 of 24 numbers are off)",
            "y[0, 2] 是 0.5，应为 1.25（24 个数中有 3 个不对）",
        ),
        ("parameters is 5, expected 6", "parameters 是 5，应为 6"),
        ("it returned a list of 3, expected a tuple of 2: dx, dw", "它返回了含 3 项的列表，应为含 2 项的元组：dx, dw"),
        ("it raised ValueError: no (line 3: f(x))", "它引发了 ValueError: no（第 3 行：f(x)）"),
        ("the sign is wrong; or: axes 1 and 2 are swapped", "符号错了；或者：轴 1 与轴 2 调换了"),
        ("a.py, line 3: invalid syntax: def f(:", "a.py，第 3 行：语法错误：def f(:"),
        ("a.py, line 4: '(' was never closed: f(x: y", "a.py，第 4 行：括号 ( 没有闭合：f(x: y"),
        (
            "a.py, line 2: expected an indented block after 'for' statement on line 1: x = 1",
            "a.py，第 2 行：第 1 行的 for 语句之后应有缩进的语句：x = 1",
        ),
        ("line 4: '[' was never closed: x[", "line 4: '[' was never closed: x["),
        (
            "a number where a size belongs: all cases come out right with `C` in place of `3`",
            "该用大小的地方写了数：把 `3` 改成 `C`，所有情形就都对了",
        ),
        (
            "another name: all cases come out right with `a` in place of `b`, and `c` in place of `d`",
            "用了另一个变量：把 `b` 改成 `a`，并且把 `d` 改成 `c`，所有情形就都对了",
        ),
        (
            "sign: the numbers come out so with `x + 1` where `x - 1` belongs",
            "符号：把 `x - 1` 写成 `x + 1`，正好得到这些数",
        ),
        (
            "`x` is not padded: all cases come out right with `x = 1` before `y = 2`",
            "`x` 没有填充：在 `y = 2` 之前加上 `x = 1`，所有情形就都对了",
        ),
        ("no such message", "no such message"),
    ],
)
def test_values_are_kept(english, text, chinese):
    assert chinese(english) == text


@pytest.mark.parametrize("lesson", range(1, 7))
def test_hints(lesson, monkeypatch):
    ours, theirs = hints.chinese(lesson), hints.folded(lesson)
    assert ours.keys() == theirs.keys() == {exercise.name for exercise in grading.exercises(lesson)}
    for name, hint in ours.items():
        english = theirs[name].partition("Solution")[0]
        assert set(re.findall(r"`[^`]+`", " ".join(english.split()))) == set(re.findall(r"`[^`]+`", hint))
        monkeypatch.setenv("MBNP_LANG", "en")
        *_, solution = hints.steps(lesson, name)
        monkeypatch.setenv("MBNP_LANG", "zh")
        *first, last = hints.steps(lesson, name)
        assert last == solution.replace("the solution", "答案", 1)
        assert all(re.search(r"[\u4e00-\u9fff].*[。？]$", step) and "$" not in step for step in first)


WRONG = """
def output_size(size, kernel, stride, padding):
    print("solved")
    return (size + 2 * padding - kernel) // stride

def conv_pixel(x, w, i, j, d, stride, padding):
    raise NotImplementedError

def convolve(x, w, b, stride, padding):
    return x[:, ::-1]
"""


@pytest.mark.parametrize("language", ["zh", "en"])
def test_a_report(language, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MBNP_LANG", language)
    file = tmp_path / "answers.py"
    file.write_text(WRONG, encoding="utf-8")
    assert cli.main(["grade", str(file)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, lines)) <= tables.WIDTH
    text = "\n".join(lines)
    for chinese, english in (
        ("output_size  错误: 结果是 2，应为 3", "output_size  wrong: the result is 2, expected 3"),
        ("  可能的原因: 漏了 1：第一个窗口之后还有", "  likely: the 1 is missing: after the first window come"),
        ("  调用的参数: size 5, kernel 3", "  called with: size 5, kernel 3"),
        ("    solved", "    solved"),  # what is printed is the reader's own
        ("conv_pixel   未完成", "conv_pixel   not yet"),
        ("第 1 课：3 题中已解决 0 题", "lesson 1: 0 of 3 solved"),
    ):
        assert (chinese if language == "zh" else english) in text
