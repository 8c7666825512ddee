"""`mbnp check --op FILE.py:NAME`: an operation of the reader's own."""

import sys

import pytest

from mbnp import cli

FILE = '''
import numpy as np
from helper_of_ops import SIX

class HardSwish:
    """x relu6(x + 3) / 6."""

    def example_inputs(self):
        return [np.random.default_rng(0).uniform(-5, 5, (4, 6))]

    def forward(self, x):
        return x * np.clip(x + 3, 0, SIX) / SIX

    def backward(self, dy, x):
        return dy * np.where(x <= -3, 0, np.where(x >= 3, 1, (2 * x + 3) / SIX))

    def torch(self, x):
        from torch.nn import functional as F
        return F.hardswish(x)

class Wrong(HardSwish):
    def backward(self, dy, x):
        return 1.01 * super().backward(dy, x)

class Bias:
    """x + b, without PyTorch, by static methods and with labels that have no gradient."""

    example_inputs = staticmethod(lambda: (np.ones((3, 2)), np.ones(2, np.float32), np.array([1, 2])))
    forward = staticmethod(lambda x, b, labels: x * x + b)
    backward = staticmethod(lambda dy, x, b, labels: (2 * x * dy, dy.sum(axis=0), None))

bias = Bias()

class Divided(HardSwish):
    def backward(self, dy, x):
        return dy / [][0]

class Printed(HardSwish):
    def forward(self, x):
        print("here")

class Made:
    def __init__(self, stride):
        self.stride = stride

class Half:
    forward = staticmethod(lambda x: x)
    example_inputs = staticmethod(lambda: [])

class NoInputs(HardSwish):
    def example_inputs(self):
        pass

class OtherTorch(HardSwish):
    def torch(self, x):
        return x.T
'''


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "helper_of_ops", raising=False)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "helper_of_ops.py").write_text("SIX = 6\n")
    (tmp_path / "inner" / "ops.py").write_text(FILE)


def check(capsys, name, file="inner/ops.py"):
    status = cli.main(["check", "--op", f"{file}:{name}"])
    output, error = capsys.readouterr()
    assert max(map(len, output.splitlines()), default=0) <= 80
    assert "Traceback" not in output + error
    return status, output, error


def test_an_operation_that_is_right(capsys):
    status, output, _ = check(capsys, "HardSwish")
    assert status == 0
    title, _, head, _, *rows, _, last = output.splitlines()
    assert title == "HardSwish of inner/ops.py, in float64, with x (4, 6)"
    assert head.split() == ["differences", "torch"]
    assert [row.split()[0] for row in rows] == ["output", "dx"]
    assert [len(row.split()) for row in rows] == [2, 3]
    assert last == "all agree"


@pytest.mark.parametrize("name", ["Bias", "bias"])
def test_static_methods_an_object_and_no_torch(capsys, name):
    status, output, _ = check(capsys, name)
    assert status == 0
    assert "with x (3, 2), b (2,), labels (2,)" in output
    assert [row.split()[0] for row in output.splitlines()[4:6]] == ["dx", "db"]
    assert "no torch function" in output


def test_an_operation_that_is_wrong(capsys):
    status, output, _ = check(capsys, "Wrong")
    assert status == 1
    text = " ".join(output.split())
    assert "differences: the gradient of x is wrong at (" in text
    assert "torch: the gradient of x is wrong at (" in text
    assert "backward says" in text
    assert "all agree" not in output


def test_one_of_both_agrees(capsys):
    status, output, _ = check(capsys, "OtherTorch")
    assert status == 1
    assert "\ndx " in output
    assert "the torch function returns (6, 4) instead of (4, 6)" in " ".join(output.split())


def test_without_torch(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    status, output, _ = check(capsys, "HardSwish")
    assert status == 0
    assert "PyTorch is not installed" in output


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Divided", r"inner/ops.py, line 36: IndexError: list index out of range"),
        ("Printed", "differences: forward must return an array of numbers, got None"),
        ("Made", "TypeError"),
        ("Half", "Half of inner/ops.py has no backward: an operation has forward"),
        ("NoInputs", "inputs must be a list of arrays, got None"),
        ("Swish", "inner/ops.py has nothing named 'Swish': its operations are HardSwish, Wrong, Bias, bias"),
        ("", "--op takes FILE.py:NAME, such as ops.py:HardSwish, got 'inner/ops.py:'"),
    ],
)
def test_what_does_not_run_is_one_line(capsys, name, message):
    status, output, error = check(capsys, name)
    assert (status, message in error) == (2, True) or (status, message in " ".join(output.split())) == (1, True)
    assert error.count("\n") <= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1 +", r"bad.py: SyntaxError: invalid syntax (bad.py, line 1)"),
        ("\nraise SystemExit(0)", "bad.py, line 2: SystemExit: 0"),
        ("import none_of_these", "bad.py, line 1: ModuleNotFoundError: No module named 'none_of_these'"),
        ("x = 1", "bad.py has nothing named 'op': an operation has forward"),
        (None, "there is no file bad.py"),
    ],
)
def test_a_file_that_does_not_run(capsys, tmp_path, text, message):
    if text is not None:
        (tmp_path / "bad.py").write_text(text)
    status, output, error = check(capsys, "op", "bad.py")
    assert status == 2
    assert message in error
    assert output == ""


def test_a_file_without_a_name(capsys):
    assert cli.main(["check", "--op", "inner/ops.py"]) == 2
    assert "--op takes FILE.py:NAME, such as ops.py:HardSwish, got 'inner/ops.py'" in capsys.readouterr().err
