"""Whatever a reader's program does, the other functions are graded, the exit status is right, and soon.

python -m tests.grading.test_hostile       the same files with the real limits, as a table
"""

import contextlib
import io
import json
import re
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from mbnp import cli, grading
from mbnp.grading import program, source

SIGNATURE = "def output_size(size, kernel, stride, padding):\n"
RIGHT = SIGNATURE + "    return (size + 2 * padding - kernel) // stride + 1\n"
REST = """
import numpy as np


def conv_pixel(x, w, i, j, d, stride, padding):
    padded = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    p, q = i * stride, j * stride
    return np.sum(padded[p : p + w.shape[0], q : q + w.shape[1]] * w[..., d])


def convolve(x, w, b, stride, padding):
    KH, KW, C, D = w.shape
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (KH, KW), axis=(1, 2))[:, ::stride, ::stride]
    N, OH, OW = windows.shape[:3]
    columns = windows.transpose(0, 1, 2, 4, 5, 3).reshape(N * OH * OW, KH * KW * C)
    return (columns @ w.reshape(KH * KW * C, D) + b).reshape(N, OH, OW, D)
"""


@dataclass
class Kind:
    """A hostile file. problem: a pattern of what is said of `output_size`; empty if that is solved.

    body: what `output_size` does, or else text or data: the whole file; loops: how often the time limit is waited for
    """

    problem: str
    body: str = ""
    text: str = ""
    data: bytes = b""
    loops: float = 0
    name: str = "answers.py"
    helper: str = ""

    def write(self, folder: Path) -> Path:
        file = folder / self.name
        body = textwrap.indent(textwrap.dedent(self.body).strip(), "    ")
        text = self.text or f"{SIGNATURE}{body}\n{REST}"
        file.write_bytes(self.data or text.encode())
        if self.helper:
            (folder / "my_helper.py").write_text(self.helper)
        return file


def notebook(*cells):
    return json.dumps({"nbformat": 4, "cells": [{"cell_type": "code", "source": cell} for cell in cells]})


KINDS = {
    "returns nothing": Kind("it returned None", "size + 1"),
    "prints its result": Kind("it returned None", "print((size + 2 * padding - kernel) // stride + 1)"),
    "returns text": Kind("'three'", "return 'three'"),
    "returns a dict": Kind(r"\{'rows': 3\}", "return {'rows': 3}"),
    "returns a generator": Kind("generator", "yield 3"),
    "returns a list that contains itself": Kind("list", "a = []\na.append(a)\nreturn a"),
    "returns a number of 5,000 digits": Kind("the result is", "return 10**5000"),
    "returns an object that raises when looked at": Kind(
        "Bad",
        """
        class Bad:
            def __getattribute__(self, name):
                raise RuntimeError
            __repr__ = __eq__ = __array__ = None
        return Bad()
        """,
    ),
    "replaces built-in functions": Kind(
        "",
        """
        import builtins
        builtins.len = builtins.isinstance = builtins.print = builtins.type = builtins.max = lambda *a, **k: 0
        return (size + 2 * padding - kernel) // stride + 1
        """,
    ),
    "replaces built-in functions as it is loaded": Kind(
        "",
        text=f"import builtins\nbuiltins.vars = builtins.setattr = builtins.open = None\n{RIGHT}{REST}",
    ),
    "replaces NumPy's functions": Kind(
        "",
        """
        import numpy as np
        np.pad = np.sum = np.asarray = np.array_equal = np.abs = None
        return (size + 2 * padding - kernel) // stride + 1
        """,
    ),
    "an endless list": Kind("too much memory|GB of memory", "a = []\nwhile True:\n    a.append(b'x' * 1_000_000)"),
    "an array of 800 GB": Kind("too much memory|Unable to allocate", "import numpy as np\nreturn np.ones(10**11)"),
    "forks, and both return": Kind("the result is 3", "import os\nos.fork()\nreturn 3"),
    "forks without an end": Kind("it started more than .* processes", "import os\nwhile True:\n    os.fork()"),
    "os._exit(0)": Kind(r"it ended the program \(status 0\)", "import os; os._exit(0)"),
    "os._exit(0) as it is loaded": Kind("", text=f"{RIGHT}{REST}\nimport os\nos._exit(0)\n"),
    "sys.exit(0)": Kind(r"it ended the program \(sys.exit\)", "import sys; sys.exit(0)"),
    "sys.exit(0) as it is loaded": Kind("", text=f"import sys\nsys.exit(0)\n{RIGHT}{REST}"),
    "kills itself": Kind("signal SIGKILL", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"),
    "kills all of its group": Kind("signal SIGTERM", "import os, signal\nos.killpg(0, signal.SIGTERM)"),
    "stops itself": Kind("did not return within", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", loops=1),
    "aborts": Kind("SIGABRT", "import os; os.abort()"),
    "reads memory that is not its own": Kind("SIGSEGV", "import ctypes; ctypes.string_at(0)"),
    "a loop without an end": Kind(r"did not return within .* \(line [23]\)", "while True:\n    pass", loops=1),
    "a loop that catches everything": Kind(
        r"did not return within .* \(line [2-6]\)",
        """
        while True:
            try:
                size += 1
            except:
                pass
        """,
        loops=1,
    ),
    "a loop as it is loaded": Kind("", text=f"{RIGHT}{REST}\nwhile True:\n    pass\n", loops=1),
    "sleeps": Kind("did not return within", "import time; time.sleep(1000)", loops=1),
    "a power that takes for ever": Kind("did not return within", "return 7 ** 7 ** 12 % 3", loops=1),
    "recursion": Kind("calls itself without an end", "return output_size(size, kernel, stride, padding)"),
    "recursion without its limit": Kind(
        "without an end",
        "import sys\nsys.setrecursionlimit(10**9)\nreturn 1 + output_size(size, kernel, stride, padding)",
    ),
    "leaves threads": Kind(
        "",
        """
        import threading, time
        threading.Thread(target=time.sleep, args=(1000,)).start()
        return (size + 2 * padding - kernel) // stride + 1
        """,
    ),
    "leaves a process": Kind(
        "",
        """
        import subprocess
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        return (size + 2 * padding - kernel) // stride + 1
        """,
    ),
    "prints three million characters": Kind("", f"print('x' * 3_000_000)\n{RIGHT.splitlines()[1].strip()}"),
    "prints three million lines": Kind("", f"print('x\\n' * 3_000_000)\n{RIGHT.splitlines()[1].strip()}"),
    "prints without an end": Kind(
        "printed .* characters|did not return", "while True:\n    print('x' * 1000)", loops=1
    ),
    "closes standard output": Kind("the result is 3", "import sys\nsys.stdout.close()\nreturn 3"),
    "closes every file": Kind("closed|ended the program", "import os\nos.closerange(0, 1000)\nreturn 3"),
    "has no standard output": Kind("the result is 3", "import sys\nsys.stdout = sys.stderr = None\nreturn 3"),
    "asks for input": Kind("EOFError", "return int(input())"),
    "renamed arguments": Kind(
        r"its arguments are \(n, k, s, p\), and it is called with \(size, kernel, stride, padding\)",
        text=f"def output_size(n, k, s, p):\n    return (n + 2 * p - k) // s + 1\n{REST}",
    ),
    "raises KeyboardInterrupt": Kind("raised KeyboardInterrupt", "raise KeyboardInterrupt"),
    "raises an error that cannot be shown": Kind(
        "raised Bad",
        """
        class Bad(Exception):
            def __str__(self):
                raise self
        raise Bad
        """,
    ),
    "goes to another folder": Kind("the result is 3", "import os\nos.chdir('/')\nreturn 3"),
    "a function that is none": Kind("has no function output_size", text=f"output_size = 3\n{REST}"),
    "a syntax error in one function": Kind(
        "invalid syntax|never closed", text=f"{SIGNATURE}    return (size + +\n{REST}"
    ),
    "an error below the functions": Kind("", text=f"{RIGHT}{REST}\nassert output_size(5, 3, 1, 0) == 4\n"),
    "a module that is not there": Kind("", text=f"import no_such_thing\n{RIGHT}{REST}"),
    "UTF-16": Kind("", data=f"# é\n{RIGHT}{REST}".encode("utf-16")),
    "UTF-16 without a mark": Kind("", data=f"# é\n{RIGHT}{REST}".encode("utf-16-be")),
    "UTF-8 with a mark, and Windows' line ends": Kind(
        "", data=f"{RIGHT}{REST}".replace("\n", "\r\n").encode("utf-8-sig")
    ),
    "GBK": Kind("", data=f"# 卷积的输出\n{RIGHT}{REST}".encode("gbk")),
    "a notebook with magics": Kind(
        "",
        text=notebook(
            "%matplotlib inline\n!pip install numpy\nimport numpy as np\nnp?",
            ["%%time\n", *RIGHT.splitlines(keepends=True)],
            "%%bash\nls",
            "while True:  # training\n    pass",
            "x = %timeit -o output_size(5, 3, 1, 0)",
            "this is no Python",
            REST,
        ),
        name="my.ipynb",
    ),
    "a helper beside it": Kind("", text=f"from my_helper import output_size\n{REST}", helper=RIGHT),
}


@pytest.fixture
def limits(monkeypatch):
    """Limits that a test can wait for, and no process that is left."""
    monkeypatch.setattr(program, "SECONDS", 1.5)
    monkeypatch.setattr(program, "MEMORY", 400 << 20)
    yield
    assert not psutil.Process().children()
    assert ["sleep", "1000"] not in [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]


@pytest.fixture
def reports(monkeypatch):
    """What `grading.grade_file` returned, as the command line calls it."""
    whole, found = grading.grade_file, []
    monkeypatch.setattr(grading, "grade_file", lambda *given: found.append(whole(*given)) or found[-1])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_file(tmp_path, capsys, monkeypatch, limits, reports, kind):
    if re.search("memory|processes", KINDS[kind].problem):
        monkeypatch.setattr(program, "SECONDS", 20)  # it takes some to fill it, or to start a hundred of them
    start = time.monotonic()
    status = cli.main(["grade", str(KINDS[kind].write(tmp_path))])
    seconds = time.monotonic() - start
    shown = capsys.readouterr()
    check(KINDS[kind], status, shown.out, shown.err)
    assert seconds < reports[0].seconds + 3
    assert reports[0].seconds < max(KINDS[kind].loops, 1) * program.SECONDS + 1
    assert "Traceback" not in shown.out + shown.err


def check(kind, status, out, errors):
    lines = re.sub(r"\n {6}", " ", out).splitlines()
    assert errors == ""
    assert f"lesson 1: {2 + (not kind.problem)} of 3 solved" in lines, out
    assert {"conv_pixel   solved", "convolve     solved"} <= set(lines), out
    if kind.problem:
        assert status == 1
        assert re.search(f"^output_size  wrong: .*({kind.problem})", out.replace("\n      ", " ")), out
    else:
        assert status == 0
        assert lines[0] == "output_size  solved", out
    assert max(map(len, out.splitlines())) <= 400


def test_what_is_printed_is_cut_and_escaped(tmp_path, capsys, limits):
    kind = Kind("", f"print('\\033[2J\\a')\nprint('x' * 3_000_000)\n{RIGHT.splitlines()[1].strip()}")
    assert cli.main(["grade", str(kind.write(tmp_path))]) == 0
    out = capsys.readouterr().out
    assert "\n    \\x1b[2J\\x07\n" in out
    # Three times to see whether it remembers, and once to see whether it calls mbnp's own.
    calls = len(grading.exercises(1)[0].make_cases()) + 4
    assert f"{calls * 3_000_007:,} characters in all" in " ".join(out.split())
    assert len(out) < 2_000


def test_printed_before_the_end_is_shown(tmp_path, capsys, limits):
    kind = Kind("", "print('size', size)\nimport os\nos._exit(0)")
    assert cli.main(["grade", str(kind.write(tmp_path))]) == 1
    assert "  printed: size 5\n" in capsys.readouterr().out


def test_a_note_for_what_does_not_run(tmp_path, capsys, limits):
    file = KINDS["an error below the functions"].write(tmp_path)
    assert cli.main(["grade", str(file)]) == 0
    lines = re.sub(r"\n {6}", " ", capsys.readouterr().out).splitlines()
    number = file.read_text().splitlines().index("assert output_size(5, 3, 1, 0) == 4") + 1
    assert lines[3] == f"{file}, line {number}: AssertionError: it does not run to its end; the rest was run without it"


def test_lines_of_a_notebook_are_those_of_its_cells(tmp_path, capsys, limits):
    file = tmp_path / "my.ipynb"
    file.write_text(notebook("import numpy as np\n", f"# mine\n{SIGNATURE}    return size / 0\n", REST))
    assert cli.main(["grade", str(file)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "it raised ZeroDivisionError: division by zero (code cell 2, line 3: return size / 0)" in out


NO_NOTEBOOKS = ["{", "[]", '{"cells": 3}', '{"cells": [3]}', '{"cells": [{"cell_type": "code", "source": [3]}]}']


@pytest.mark.parametrize("content", NO_NOTEBOOKS)
def test_no_notebook(tmp_path, capsys, content):
    file = tmp_path / "my.ipynb"
    file.write_text(content)
    assert cli.main(["grade", str(file)]) == 2
    assert capsys.readouterr().err == (
        f"mbnp: error: {file} is not a notebook: save it again, or export it as a Python file\n"
    )


def test_watched_where_the_system_cannot_limit_memory(tmp_path, capsys, limits, monkeypatch):
    monkeypatch.setattr(program, "START", program.START.replace("child.main()", NO_LIMIT))
    monkeypatch.setattr(program, "SLACK", 50 << 20)
    monkeypatch.setattr(program, "SECONDS", 20)
    status = cli.main(["grade", str(KINDS["an endless list"].write(tmp_path))])
    out = capsys.readouterr().out
    check(KINDS["an endless list"], status, out, "")
    assert "it needs more than 0.39 GB of memory" in out


NO_LIMIT = "child.limit_memory = lambda more: None; child.main()"


def test_compiling_is_not_the_readers_time(tmp_path, capsys, limits, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    text = f"""
import numba, time

@numba.njit
def compiled(a):
    {"; ".join(f"a = a * {k} + a // {k + 1}" for k in range(1, 400))}
    return a

def output_size(size, kernel, stride, padding):
    begin = time.perf_counter()
    compiled(3)
    print("compiled in", time.perf_counter() - begin)
    return (size + 2 * padding - kernel) // stride + 1
{REST}"""
    monkeypatch.setattr(program, "SECONDS", 0.4)
    file = tmp_path / "answers.py"
    file.write_text(text)
    status = cli.main(["grade", str(file)])
    out = capsys.readouterr().out
    seconds = float(re.search(r"compiled in ([\d.]+)", out)[1])
    assert seconds > program.SECONDS, "the test compiles too little to show anything"
    assert status == 0, out


def test_a_lesson_and_its_number(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "tutorials" / "exercises"
    folder.mkdir(parents=True)
    (folder / "01.py").write_text(RIGHT + REST)
    lesson = tmp_path / "tutorials" / "01_convolution_by_hand.py"
    lesson.write_text("print('a lesson')\n")
    page = tmp_path / "tutorials" / "rendered" / "01_convolution_by_hand.md"
    page.parent.mkdir()
    page.write_text("# a lesson\n")
    monkeypatch.chdir(tmp_path)
    for argument in ("1", "01", "tutorials/01_convolution_by_hand.py", "tutorials/rendered/01_convolution_by_hand.md"):
        assert cli.main(["grade", argument]) == 0
        assert capsys.readouterr().out.splitlines()[0].endswith("exercises/01.py")
    lesson.write_text(RIGHT.replace("+ 1", "") + REST)  # solved in the lesson itself
    assert cli.main(["grade", str(lesson)]) == 1
    assert cli.main(["grade", "99"]) == 2
    assert capsys.readouterr().err == "mbnp: error: there is no lesson 99: they are 1 to 14\n"


def test_the_functions_process_is_ended(limits):
    with program.Program() as running:
        running.load(source.Source(Path("answers.py"), RIGHT))
        assert psutil.Process().children()
        assert running.function("output_size")(size=5, kernel=3, stride=1, padding=0) == 3
        assert running.inside("output_size", callable) is True  # a check, in the functions' own process
    assert not psutil.Process().children()


def main() -> None:
    """Print the table: what is said with the real limits."""
    print("| kind | exit status | seconds | of those its own | others graded? | output_size |")
    print("| --- | ---: | ---: | ---: | --- | --- |")
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            file, out = kind.write(Path(folder)), io.StringIO()
            start = time.monotonic()
            with contextlib.redirect_stdout(out):
                status = cli.main(["grade", str(file)])
            seconds = time.monotonic() - start
            own = grading_seconds[-1]
        text = " ".join(out.getvalue().split())
        others = "yes" if "conv_pixel solved" in text and "convolve solved" in text else "NO"
        said = re.search(r"output_size (.*?)(?: likely:| called with:| printed:| conv_pixel)", text)[1]
        print(
            f"| {name} | {status} | {seconds:.1f} | {own:.1f} | {others} | {said[:90].replace('|', '/')} |", flush=True
        )


grading_seconds: list[float] = []

if __name__ == "__main__":
    whole = grading.grade_file

    def noted(path):
        report = whole(path)
        grading_seconds.append(report.seconds)
        return report

    grading.grade_file = noted
    sys.exit(main())
