"""Mistakes in functions of any form are found in the function itself, or else by how the results differ."""

import linecache
import time

import numpy as np
import pytest

from mbnp import grading
from mbnp.grading import mend
from tests.grading.test_diagnose import EXERCISES, graded

CONVOLVE = """
def convolve(x, w, b, stride, padding):
    n, h, wide, c = x.shape
    kh, kw, _, out = w.shape
    xp = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    oh, ow = (h + 2 * padding - kh) // stride + 1, (wide + 2 * padding - kw) // stride + 1
    y = np.zeros((n, oh, ow, out), dtype=x.dtype)
    for u in range(kh):
        for v in range(kw):
            part = xp[:, u : u + (oh - 1) * stride + 1 : stride, v : v + (ow - 1) * stride + 1 : stride]
            y += part @ w[u, v]
    return y + b
"""
FIELD = """
def receptive_field(layers):
    r, j = 1, 1
    for k, s in layers:
        r += (k - 1) * j
        j *= s
    return r
"""
FRONT = """
def pareto_front(macs, accuracy):
    res = []
    for m, a in zip(macs, accuracy):
        d = (macs <= m) & (accuracy >= a) & ((macs < m) | (accuracy > a))
        res.append(not d.any())
    return np.array(res)
"""
FORWARD = """
def batchnorm_forward(x, gamma, beta, eps):
    m, v = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return gamma * (x - m) / np.sqrt(v + eps) + beta
"""
SIZE = """
def output_size(size, kernel, stride, padding):
    n, start = 0, 0
    while start + kernel <= size + 2 * padding:
        n += 1
        start += stride
    return n
"""
RIGHT = {
    "convolve": CONVOLVE,
    "receptive_field": FIELD,
    "pareto_front": FRONT,
    "batchnorm_forward": FORWARD,
    "output_size": SIZE,
}


def function_of(name, *changes):
    code = RIGHT[name]
    for right, wrong in changes:
        assert right in code
        code = code.replace(right, wrong)
    file = f"{name}.py"
    linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
    names = {"np": np}
    exec(compile(code, file, "exec"), names)
    return names[name]


def likely(name, *changes):
    number, exercise = EXERCISES[name]
    outcome = graded(exercise, function_of(name, *changes), grading.golden(number))
    assert outcome.status == "wrong"
    return outcome.likely


MENDED = [
    ("convolve", "y += part", "y = part", "it is assigned, and should be added"),
    ("convolve", "(padding, padding), (0, 0)))", "(padding, padding), (0, 0)), mode='edge')", "the edge of the image"),
    (
        "convolve",
        "(padding, padding), (0, 0)))",
        "(padding, padding), (0, 0)), constant_values=1)",
        "an option too many",
    ),
    ("convolve", "+ b", "+ b.sum()", "a step too many"),
    ("convolve", "return y + b", "return np.maximum(y + b, 0)", "what is below 0 becomes 0"),
    ("output_size", "<=", "<", "the border of a comparison: all cases come out right with `start + kernel <= size"),
    ("output_size", "n, start = 0, 0", "n, start = 1, 0", "a number"),
    ("pareto_front", "not d.any()", "d.any()", "reversed"),
    ("pareto_front", "    return", "        return", "early return"),
    ("batchnorm_forward", "x.mean(", "np.median(x, ", "another function: all cases come out right with `np.mean"),
    ("batchnorm_forward", "np.sqrt(v + eps)", "np.sqrt(v)", "eps is left out"),
    ("receptive_field", "j *= s", "j += s", "the product of all strides so far, not their sum"),
]


@pytest.mark.parametrize(("name", "right", "wrong", "words"), MENDED)
def test_the_place_is_found_whatever_the_names_and_the_way(name, right, wrong, words):
    assert words in likely(name, (right, wrong))


OBSERVED = [
    (
        "convolve",
        [("(oh - 1) * stride + 1 : stride", "oh"), ("(ow - 1) * stride + 1 : stride", "ow")],
        "`stride` is 1",
    ),
    (
        "batchnorm_forward",
        [("np.sqrt(v + eps)", "(x.max((0, 1, 2)) - x.min((0, 1, 2)))")],
        "along axis 3 has a factor of",
    ),
    (
        "batchnorm_forward",
        [("x.mean((0, 1, 2))", "x[0, 0, 0]")],
        "along axis 3 has something of its own",
    ),
    ("convolve", [("return y + b", "return (y + b).reshape(n, -1, out)")], "axes merged: a reshape is missing"),
    ("convolve", [("return y + b", "return (y + b)[0]")], "axis 0 of the result is gone"),
]


@pytest.mark.parametrize(("name", "changes", "words"), OBSERVED)
def test_what_wrong_results_have_in_common(name, changes, words, monkeypatch):
    monkeypatch.setattr("mbnp.grading.diagnose.SECONDS", 0.01)  # nothing else is to be found
    assert words in likely(name, *changes)


def found(name, *changes, seconds=5):
    _, exercise = EXERCISES[name]
    cases = exercise.make_cases()
    expected = [exercise.reference(**case) for case in cases]
    return mend.mended(function_of(name, *changes), cases, expected, exercise.rtol, seconds)


def test_two_mistakes():
    text = found("receptive_field", ("(k - 1)", "(k + 1)"), ("j *= s", "j += s"))
    assert text.startswith("there are two mistakes")
    assert "`j *= s` in place of `j += s`" in text


def test_the_function_stays_as_it_is_and_its_arguments_too():
    _, exercise = EXERCISES["convolve"]
    function, before = function_of("convolve", ("+ b", "- b")), exercise.make_cases()
    cases = exercise.make_cases()
    assert "sign" in mend.mended(function, cases, [exercise.reference(**case) for case in cases], 1e-5, 5)
    assert all(np.array_equal(a[name], b[name]) for a, b in zip(before, cases, strict=True) for name in a)
    assert (function(**cases[0]) != exercise.reference(**cases[0])).any()


def test_nothing_is_run_again_that_may_do_harm(tmp_path):
    """A function that opens files is not called with changes of its text."""
    harm = f"    open({str(tmp_path / 'count')!r}, 'a').write('x')\n    return r"
    assert found("receptive_field", ("    return r", harm), ("j *= s", "j += s")) == ""
    assert found("receptive_field", ("    return r", "    import os\n    return r"), ("j *= s", "j += s")) == ""
    assert not (tmp_path / "count").exists()


def test_a_change_that_makes_an_endless_loop_is_left():
    begin = time.perf_counter()
    found("output_size", ("start += stride", "start += stride + padding"), seconds=0.5)
    assert time.perf_counter() - begin < 10  # on a busy machine, too
