"""The grader from the command line: one clear line for every mistake, and status 0 only when all is right."""

import re

import numpy as np
import pytest

from mbnp import cli, grading
from mbnp.grading.exercise import Exercise, Mistake

SIZE = "def output_size(size, kernel, stride, padding):\n    return (size + 2 * padding - kernel) // stride + 1\n"
REST = """
import numpy as np

def conv_pixel(x, w, i, j, d, stride, padding):
    return convolve(x[None], w, 0, stride, padding)[0, i, j, d]

def convolve(x, w, b, stride, padding):
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, w.shape[:2], axis=(1, 2))
    return np.einsum("nijcuv,uvcd->nijd", windows[:, ::stride, ::stride], w) + b
"""


def grade(tmp_path, capsys, text, name="answers.py"):
    """Return the exit status and the lines on stdout and stderr of `mbnp grade` for a file with this text."""
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    status = cli.main(["grade", str(file)])
    shown = capsys.readouterr()
    return status, re.sub(r"\n {6}", " ", shown.out).splitlines(), shown.err.splitlines()


def test_all_solved(tmp_path, capsys):
    status, lines, errors = grade(tmp_path, capsys, SIZE + REST)
    assert (status, errors) == (0, [])
    assert lines[:5] == [
        "output_size  solved",
        "conv_pixel   solved",
        "convolve     solved",
        "lesson 1: 3 of 3 solved",
        "next: lesson 2, depthwise",
    ]


# What follows `def output_size(...)`, what the grader says of it, and the likely reason.
BODIES = {
    "not yet": ("raise NotImplementedError", "not yet", ""),
    "none": ("size + 1", "it returned None: does it end with `return`?", ""),
    "raises": (
        "return size / 0",
        "it raised ZeroDivisionError: division by zero (line 2: return size / 0)",
        "",
    ),
    "recursion": (
        "return output_size(size, kernel, stride, padding)",
        "it calls itself without an end (RecursionError)",
        "",
    ),
    "exit": ("import sys; sys.exit(0)", "it ended the program (sys.exit): return the result instead", ""),
    "text": (
        "return 'three'",
        "the result is 'three', expected 3",
        "that is text: return the value itself, without quotes, str() or an f-string",
    ),
    "float": (
        "return (size + 2 * padding - kernel) / stride + 1",
        "the result is 16.5, expected 16",  # and not that 3.0 is a float, which it is in the case before
        "integer division: / gives a float, and rounds nothing. Only whole windows count: use //; look at "
        "`(size + 2 * padding - kernel) / stride + 1`",
    ),
    "one off": (
        "return (size + 2 * padding - kernel) // stride",
        "the result is 2, expected 3",
        "the 1 is missing: after the first window come (size + 2·padding - kernel) // stride more",
    ),
}


@pytest.mark.parametrize("case", BODIES)
def test_wrong_function(tmp_path, capsys, case):
    body, problem, likely = BODIES[case]
    status, lines, errors = grade(
        tmp_path, capsys, f"def output_size(size, kernel, stride, padding):\n    {body}\n" + REST
    )
    assert (status, errors) == (1, [])
    assert lines[-1] == "lesson 1: 2 of 3 solved"
    if case == "not yet":
        assert lines[0] == "output_size  not yet"
        assert len(lines) == 4
    else:
        assert lines[0] == f"output_size  wrong: {problem}"
        assert ([line for line in lines if "likely" in line] == [f"  likely: {likely}"]) == bool(likely)
        called = (
            "size 32, kernel 3, stride 2, padding 1" if case == "float" else "size 5, kernel 3, stride 1, padding 0"
        )
        assert f"  called with: {called}" in lines


LOOP = """
def output(function, rows, columns):
    return [[function(i, j) for j in range(columns)] for i in range(rows)]
"""
PIXELS = """
from my_helper import output

def convolve(x, w, b, stride, padding):
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    KH, KW = w.shape[:2]
    def at(i, j):
        window = padded[:, i * stride : i * stride + KH, j * stride : j * stride + KW]
        return np.einsum("nuvc,uvcd->nd", window, w) + b
    OH, OW = (padded.shape[1] - KH) // stride + 1, (padded.shape[2] - KW) // stride + 1
    return np.array(output(at, OH, OW)).transpose(2, 0, 1, 3)
"""
OWN = """
def convolve(x, w, b, stride, padding):
    from mbnp.ops import conv
    return conv.forward(x, w, b, stride, padding)
"""


@pytest.mark.parametrize(
    ("text", "broken"), [(PIXELS, "it loops over pixels"), (OWN, "it calls mbnp's own conv.forward")]
)
def test_rules_hold_in_the_other_process(tmp_path, capsys, text, broken):
    (tmp_path / "my_helper.py").write_text(LOOP)
    status, lines, _ = grade(tmp_path, capsys, SIZE + REST + text)
    assert status == 1
    assert "output_size  solved" in lines
    assert f"convolve     wrong: the numbers are right, but {broken}" in "\n".join(lines)


FILES = {
    "def output_size(size):\nn = size\n\nreturn n\n": "answers.py, line 2: the body must be indented: expected an "
    "indented block after function definition on line 1: n = size",
    "def output_size(:\n": "answers.py, line 1: invalid syntax: def output_size(:",
    "x = 1\nimport no_such_thing\n": "answers.py, line 2: ModuleNotFoundError: No module named 'no_such_thing'",
    "raise SystemExit\n": "answers.py, line 1: SystemExit: it does not run to its end",
    "def another():\n    pass\n": "answers.py has none of the exercises' functions yet: start from the stubs in "
    "tutorials/exercises/NN.py",
    "x = 1\nint('a')\n": "answers.py, line 2: ValueError: invalid literal for int() with base 10: 'a'",
    "\n": "answers.py is empty: start from the stubs in tutorials/exercises/NN.py",
    "import math\n\ndef output_size(size):\n    return (size": "answers.py, line 4: '(' was never closed: return (size",
    "x = '\0'\n": "answers.py has null bytes, so that it is no text: save it as a Python file in UTF-8",
}


@pytest.mark.parametrize("text", FILES)
def test_file_that_cannot_be_graded(tmp_path, capsys, text):
    status, lines, errors = grade(tmp_path, capsys, text)
    assert (status, lines) == (2, [])
    assert errors == [f"mbnp: error: {tmp_path}/{FILES[text]}"]


def test_no_file(tmp_path, capsys):
    assert cli.main(["grade", str(tmp_path / "no.py")]) == 2
    assert capsys.readouterr().err == (
        f"mbnp: error: {tmp_path}/no.py does not exist: name a file such as tutorials/exercises/01.py\n"
    )
    assert cli.main(["grade", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_function_that_was_renamed(tmp_path, capsys):
    status, lines, _ = grade(tmp_path, capsys, SIZE + REST.replace("conv_pixel", "pixel"))
    assert status == 1
    assert lines[1] == "conv_pixel   wrong: the file has no function conv_pixel: was it renamed to pixel?"


HALF = "def conv_pixel(x, w, i, j, d, stride, padding):\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not yet: the file does not define it yet"),
        ("# " + HALF, "not yet: the file does not define it yet"),
        (HALF, "expected an indented block after function definition on line 3"),
        (HALF + "return x\n", "line 4: the body must be indented: expected an indented block after function"),
        (HALF + "    'Text.'\nreturn x\n", "indent it, with the rest of the body of `def conv_pixel`"),
        (HALF + "    'Text.'\nH, W, C = x.shape\n", "NameError: name 'x' is not defined: indent it, with the rest"),
        (HALF + "    return x[i\n", "line 4: '[' was never closed: return x[i"),
        ("if True:\n    x = 1\n\n    " + HALF + "        pass\n", ""),
        (
            "def helper():\n    " + HALF + "        pass\n",
            "line 4: `def conv_pixel` is indented, so that it belongs to",
        ),
    ],
)
def test_half_a_file_says_what_is_there(tmp_path, capsys, text, said):
    _, lines, _ = grade(tmp_path, capsys, SIZE + text)
    shown = " ".join(" ".join(lines).split())
    assert lines[0] == "output_size  solved"
    assert "renamed" not in shown
    assert said in shown
    assert shown.count("line 4") <= 1  # told once


def test_a_line_of_ones_own_below_a_whole_function_is_not_said_to_be_its_body(tmp_path, capsys):
    _, lines, _ = grade(tmp_path, capsys, SIZE + HALF + "    return 0\nprint(conv_pixel(x, 1, 0, 0, 0, 1, 0))\n")
    shown = " ".join(" ".join(lines).split())
    assert "NameError: name 'x' is not defined" in shown
    assert "indent" not in shown


def test_what_a_function_prints_is_shown_below_it(tmp_path, capsys):
    text = SIZE.replace("    return", "    print('size', size)\n    return").replace("def", "print('loaded')\n\ndef", 1)
    status, lines, _ = grade(tmp_path, capsys, text + REST)
    assert status == 0
    assert lines[:3] == ["output_size  solved", "  printed:", "    size 5"]
    assert "loaded" not in "".join(lines)


# --- one exercise with arrays ---

X = np.arange(6, dtype=np.float32).reshape(2, 3) - 2


def double(x):
    return 2 * x


def outcome(function, reference=double, golden=None, outputs=(), mistakes=()):
    task = Exercise("double", [{"x": X}, {"x": X + 5}], reference, mistakes, outputs=outputs)
    return grading.grade(task, function, golden)


def writes(x):
    x *= 2
    return x


# The function, the problem, and the beginning of the likely reason.
ARRAYS = {
    "value": (lambda x: 2 * x + (x == 3), "result[1, 2] is 7, expected 6 (1 of 6 numbers are off)", ""),
    "shape": (lambda x: 2 * x[:1], "the result has the shape (1, 3), expected (2, 3)", "the last along axis 0"),
    "transposed": (
        lambda x: 2 * x.T,
        "the result has the shape (3, 2), expected (2, 3)",
        "axes 0 and 1 of the result are exchanged",
    ),
    "flipped": (
        lambda x: 2 * x[:, ::-1],
        "result[0, 0] is 0, expected -4 (4 of 6",
        "axis 1 of the result runs backwards",
    ),
    "factor": (
        lambda x: x,
        "result[1, 2] is 3, expected 6 (5 of 6",
        "every result is half of it",
    ),
    "sign": (lambda x: -2 * x, "result[1, 2] is -6, expected 6 (5 of 6", "the sign is wrong"),
    "NaN": (
        lambda x: np.sqrt(x) ** 2 * 2,
        "result[0, 0] is nan, expected -4 (2 of 6",
        "NaN: a division by zero, the",
    ),
    "zeros": (
        lambda x: np.zeros_like(x),
        "result[1, 2] is 0, expected 6 (5 of 6",
        "everything is 0: is the result ever written to?",
    ),
    "float64": (
        lambda x: np.full(1, 2.0) * x,
        "the result is float64, expected float32; its numbers",
        "float64 prom",
    ),
    "writes": (writes, "it wrote into its argument x, which belongs to the caller: work on a copy", "an operation in"),
    "scalar": (lambda x: 3.0, "the result has the shape (), expected (2, 3)", "axes 0 and 1 of the result are"),
    "no array": (lambda x: "no", "the result is of the type str, expected an array of shape (2, 3)", "that is text"),
    "raises": (lambda x: x[5], "it raised IndexError: index 5 is out of bounds for axis 0 with size 2", ""),
}


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("case", ARRAYS)
def test_wrong_array(case):
    function, problem, likely = ARRAYS[case]
    seen = outcome(function)
    assert seen.status == "wrong"
    assert seen.problem.startswith(problem)
    assert seen.likely.startswith(likely)
    assert bool(seen.likely) == bool(likely)
    assert seen.case == "x [[-2., -1., 0.], [ 1., 2., 3.]]"


def test_right_array_in_any_form():
    assert outcome(double).status == "solved"
    assert outcome(lambda x: (2 * x.astype(np.float64)).astype(np.float32)).status == "solved"


def test_several_outputs_are_named():
    def both(x):
        return x, 2 * x

    assert outcome(both, both, outputs=("dx", "dw")).status == "solved"
    assert outcome(lambda x: [x, x], both, outputs=("dx", "dw")).problem.startswith("dw[1, 2] is 3, expected 6")
    problem = "it returned an array of shape (2, 3), expected a tuple of 2: dx, dw"
    assert outcome(double, both, outputs=("dx", "dw")).problem == problem


def test_golden_value_is_compared_too():
    golden = {"double.1": 2 * (X + 5)}
    assert outcome(double, golden=golden).status == "solved"
    seen = outcome(double, golden={"double.1": 2 * (X + 5) + 1})
    assert seen.status == "wrong"
    assert "PyTorch's value" in seen.problem


def test_the_mistake_that_explains_every_case_comes_first():
    both = Mistake("both", lambda x: x + 1)
    first_only = Mistake("first", lambda x: x + (x[0, 0] < 0))
    assert outcome(lambda x: x + 1, mistakes=[first_only, both]).likely == "both"
    assert outcome(lambda x: x + (x[0, 0] < 0), mistakes=[both, first_only]).likely == "first"
    assert outcome(lambda x: x + 1 + (x > 5), mistakes=[first_only]).likely == "", "one of two failures is not enough"
    promotes = Mistake("promotes", lambda x: np.full(1, 2.0) * x)
    unlike = Mistake("right here and there", lambda x: 2 * x)
    assert outcome(promotes.wrong, mistakes=[unlike, promotes]).likely == "promotes"
    raises = Mistake("raises", lambda x: x[5] + 1)
    assert outcome(lambda x: x[5], mistakes=[both, raises]).likely == "raises"


@pytest.mark.parametrize("value", [(4, 5), 7, True])
def test_exact_results(value):
    task = Exercise("count", [{}], lambda: value)
    numpys = tuple(map(np.int64, value)) if isinstance(value, tuple) else np.asarray(value)[()]
    assert grading.grade(task, lambda: value).status == "solved"
    assert grading.grade(task, lambda: numpys).status == "solved"
    assert grading.grade(task, lambda: None).problem == "it returned None: does it end with `return`?"
