"""`mbnp grade --use`: the reader's own functions run in a training step, and a wrong gradient shows in the losses."""

import re
import time

import pytest

from mbnp import cli
from mbnp.grading import program, use
from tests.grading.answers import solved

# conv_dx and conv_dw as loops over every single product, as slow as they can be written.
LOOPS = """
import numpy as np

def taps(p, size, kernel, stride, padding):
    raise NotImplementedError

def products(dy, kernel, size, stride, padding):
    N, OH, OW, D = dy.shape
    for n, i, j, u, v in np.ndindex(N, OH, OW, *kernel):
        p, q = i * stride + u - padding, j * stride + v - padding
        if 0 <= p < size[0] and 0 <= q < size[1]:
            yield n, i, j, u, v, p, q

def conv_dx(dy, w, shape, stride, padding):
    dx = np.zeros(shape, dy.dtype)
    for n, i, j, u, v, p, q in products(dy, w.shape[:2], shape[1:3], stride, padding):
        for c in range(w.shape[2]):
            for d in range(w.shape[3]):
                dx[n, p, q, c] += dy[n, i, j, d] * w[u, v, c, d]
    return dx

def conv_dw(dy, x, kernel, stride, padding):
    dw = np.zeros((*kernel, x.shape[3], dy.shape[3]), x.dtype)
    for n, i, j, u, v, p, q in products(dy, kernel, x.shape[1:3], stride, padding):
        for c in range(x.shape[3]):
            for d in range(dy.shape[3]):
                dw[u, v, c, d] += x[n, p, q, c] * dy[n, i, j, d]
    return dw
"""


NAMES = ("conv_dx", "conv_dw")


def losses(out):
    """Return step, loss with the reader's functions, with mbnp's, and their difference of each row."""
    rows = re.findall(r"^ +(\d+) +([\d.]+) +([\d.]+) +([\d.e+-]+)$", out, re.MULTILINE)
    return [(int(step), *map(float, numbers)) for step, *numbers in rows]


def write(tmp_path, text, name="mine.py"):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return file


def test_right_gradients_train_the_network(tmp_path, capsys):
    calls = tmp_path / "calls"
    counting = (
        solved(3)
        + f"""
right = conv_dx
def conv_dx(dy, w, shape, stride, padding):
    with open({str(calls)!r}, "a") as file:
        file.write(f"{{len(dy)}}\\n")
    return right(dy, w, shape, stride, padding)
"""
    )
    start = time.perf_counter()
    assert cli.main(["grade", "--use", str(write(tmp_path, counting))]) == 0
    assert time.perf_counter() - start < 30
    out = capsys.readouterr().out
    lines = re.sub(r"\n {4}", " ", out).splitlines()
    assert lines[:4] == [
        "one training step called your conv_dx 2 times; first",
        "  conv_dx(dy (8, 4, 4, 8), w (3, 3, 4, 8), shape (8, 8, 8, 4), stride 2, padding 1)",
        "one training step called your conv_dw 2 times; first",
        "  conv_dw(dy (8, 4, 4, 8), x (8, 8, 8, 4), kernel (3, 3), stride 2, padding 1)",
    ]
    assert calls.read_text().count("8\n") == 2 * use.STEPS, "the file's own function ran, twice in each step"
    rows = losses(out)
    assert [row[0] for row in rows] == [*use.SHOWN, use.STEPS]
    assert all(abs(yours - own) < 1e-4 for _, yours, own, _ in rows)
    assert rows[-1][1] < 0.5 * rows[0][1], "it learns"
    assert all(len(line) <= 80 for line in out.splitlines())


def test_the_forward_pass_of_lesson_1_joins_in(tmp_path, capsys):
    cli.main(["grade", str(write(tmp_path, solved(1, "convolve"), "first.py"))])
    cli.main(["grade", str(write(tmp_path, solved(3)))])
    capsys.readouterr()
    assert cli.main(["grade", "--use"]) == 0
    assert "one training step called your convolve 2 times" in capsys.readouterr().out


def test_slow_loops_get_there_too(tmp_path, capsys, monkeypatch):
    start = time.perf_counter()
    assert cli.main(["grade", "--use", str(write(tmp_path, LOOPS))]) == 0
    assert time.perf_counter() - start < 30
    assert len(losses(capsys.readouterr().out)) >= 2


def test_two_steps_at_least(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(use, "SECONDS", 0)
    assert use.train_with({write(tmp_path, solved(3)): NAMES}) == 0
    assert [row[0] for row in losses(capsys.readouterr().out)] == [1, 2]


WRONG = {
    "conv_dw": "def conv_dw(dy, x, kernel, stride, padding):\n"
    "    return np.zeros((*kernel, x.shape[3], dy.shape[3]), 'f')\n",
    "conv_dx": "def conv_dx(dy, w, shape, stride, padding):\n    return np.ones(shape, 'f')\n",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_gradient_shows(tmp_path, capsys, name):
    assert use.train_with({write(tmp_path, solved(3) + WRONG[name]): NAMES}) == 1
    out = capsys.readouterr().out
    first, *_, last = losses(out)
    assert f"the losses part at step {last[0]}: a gradient is wrong" in out
    assert first[3] < 1e-6, "the first loss is that before the first update"
    assert last[3] > use.NEAR
    assert last[0] < 10


def test_what_is_not_solved_is_not_used(tmp_path, capsys):
    file = write(tmp_path, solved(3, "conv_dx"))
    assert cli.main(["grade", "--use", str(file)]) == 2
    assert capsys.readouterr().err == f"mbnp: error: conv_dw of {file} must be solved first: mbnp grade {file}\n"
    assert cli.main(["grade", "--use", "--hint"]) == 2
    assert "leave out --watch and --hint" in capsys.readouterr().err


STOPS = {
    "os._exit(0)": "it ended the program (status 0): return the result instead",
    "sys.exit()": "SystemExit",
    "dy[99]": "IndexError: index 99 is out of bounds for axis 0 with size 8",
    "return None": "conv_dx did not return an array of shape (8, 8, 8, 4)",
    "while True: pass": "it did not return within 4 seconds: is there a loop without an end?",
}


@pytest.mark.parametrize("stops", STOPS)
def test_a_function_that_stops_in_a_step_is_one_line(tmp_path, capsys, monkeypatch, stops):
    if stops.startswith("while"):
        monkeypatch.setattr(program, "SECONDS", 4)
    head = "def conv_dx(dy, w, shape, stride, padding):\n"
    text = "import os, sys\n" + solved(3).replace(head, f"{head}    if len(dy) == 8:\n        {stops}\n")
    assert cli.main(["grade", "--use", str(write(tmp_path, text))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mbnp: error: in a training step, conv_dx")
    assert STOPS[stops] in line
