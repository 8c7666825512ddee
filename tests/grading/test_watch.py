"""`mbnp grade --watch`: every save is graded, every Enter is a hint, and a solved lesson leads to the next."""

import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mbnp.grading import watch
from tests.grading.answers import solved

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(watch, "PAUSE", 0.02)


def test_events(tmp_path, quick):
    file, lines = tmp_path / "a.py", queue.SimpleQueue()
    file.write_text("1")
    events = watch.events(file, lines)
    assert next(events) == "saved"
    lines.put("q")
    assert next(events) == "q"
    file.write_text("22")
    assert next(events) == "saved"
    other = tmp_path / "b.py"
    other.write_text("33")
    other.replace(file)  # as many editors save
    assert next(events) == "saved"
    lines.put("")
    assert next(events) == "", "nothing was saved since"


def test_a_save_in_several_steps_is_one(tmp_path, quick):
    file, lines = tmp_path / "a.py", queue.SimpleQueue()

    def save():
        file.write_text("")
        for _ in range(20):
            time.sleep(0.001)
            with file.open("a") as stream:
                stream.write("x")
        time.sleep(0.2)
        lines.put("end")

    events = watch.events(file, lines)
    threading.Thread(target=save).start()
    assert list(iter(lambda: next(events), "end")) == ["saved"]
    assert file.read_text() == "x" * 20


# A job in the background of a shell inherits that SIGINT is ignored, and Python then leaves it so.
START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from mbnp.cli import main; sys.exit(main())"
)


class Watching:
    """`mbnp grade FILE --watch` in a process of its own."""

    def __init__(self, *arguments):
        command = [sys.executable, "-c", START, "grade", *map(str, arguments), "--watch"]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, text=True, **pipes)
        self.seen = []

    def until(self, end):
        """Return the lines that follow, up to the one that begins with `end`."""
        lines = []
        for line in self.process.stdout:
            lines.append(line.rstrip("\n"))
            self.seen.append(lines[-1])
            if line.startswith(end):
                return lines
        raise AssertionError("\n".join(self.seen))

    def type(self, text):
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()


@pytest.fixture
def watching():
    started = []

    def start(*arguments):
        started.append(Watching(*arguments))
        timer = threading.Timer(60, started[-1].process.kill)  # a test that waits for a line for ever
        timer.daemon = True
        timer.start()
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


def test_watching(tmp_path, watching):
    file = tmp_path / "mine.py"
    file.write_text(solved(1, "convolve"), encoding="utf-8")
    seen = watching(file)
    assert seen.until("lesson 1")[-4:-1] == ["output_size  not yet", "conv_pixel   not yet", "convolve     solved"]
    seen.type("")
    assert seen.until("hint")[-1] == "hint 1 of 4 for output_size: How many rows does the padded input have?"
    seen.type("")
    seen.until("hint 2 of 4 for output_size")
    file.write_text("def output_size(:\n", encoding="utf-8")
    assert "line 1: invalid syntax" in seen.until(str(file))[-1]
    wrong = "def output_size(size, kernel, stride, padding):\n    return size\n"
    file.write_text(solved(1, "convolve") + wrong, encoding="utf-8")
    lines = seen.until("lesson 1")
    assert "output_size  wrong: the result is 5, expected 3" in lines
    assert "  called with: size 5, kernel 3, stride 1, padding 0" in lines
    file.write_text(solved(1), encoding="utf-8")
    seen.until("lesson 1: 3 of 3 solved")
    seen.until("next: lesson 2, depthwise")
    seen.until("watching tutorials/exercises/02.py")
    seen.until("lesson 2: 0 of 3 solved")
    seen.type("q")
    assert seen.process.wait(timeout=20) == 1
    assert seen.process.stdout.read() == ""


def test_it_begins_with_the_next_lesson(watching):
    seen = watching("--hint")
    seen.until("watching tutorials/exercises/01.py: Enter shows a hint, q and Enter ends")
    seen.until("hint 1 of 4 for output_size")


def test_the_copy_beside_the_file_is_next(tmp_path, watching):
    for lesson in (1, 2, 3):
        (tmp_path / f"{lesson:02}.py").write_text(solved(lesson, *(["taps"] if lesson == 3 else [])), encoding="utf-8")
    seen = watching(tmp_path / "01.py")
    assert seen.until("  open")[-1] == f"  open {tmp_path}/02.py"
    assert seen.until("watching")[-1].startswith(f"watching {tmp_path}/02.py: Enter")
    assert seen.until("watching")[-1].startswith(f"watching {tmp_path}/03.py: Enter")
    seen.until("lesson 3: 1 of 3 solved")


def test_a_grade_is_dropped_when_the_file_is_saved_again(tmp_path, watching):
    file, begin = tmp_path / "mine.py", time.monotonic()
    file.write_text(solved(1, "convolve") + "\n\ndef output_size(**case):\n    while True:\n        pass\n")
    seen = watching(file)
    seen.until("---")
    time.sleep(1.5)  # the process of the function starts
    file.write_text(solved(1, "convolve"))
    assert seen.until("lesson 1")[-4:-1] == ["output_size  not yet", "conv_pixel   not yet", "convolve     solved"]
    assert time.monotonic() - begin < 15  # an endless loop is ended after 20 seconds
    assert not any("seconds" in line for line in seen.seen)


@pytest.mark.skipif(os.name == "nt", reason="no terminal to open")
def test_ctrl_d_ends_it():
    import pty

    ours, theirs = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", START, "grade", "1", "--watch"]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdin=theirs, stdout=subprocess.PIPE, text=True) as process:
        timer = threading.Timer(60, process.kill)
        timer.start()
        assert any(line.startswith("lesson 1") for line in process.stdout)
        os.write(ours, b"\x04")
        assert process.wait(timeout=20) == 1
        timer.cancel()
    os.close(ours)
    os.close(theirs)


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for one process")
def test_ctrl_c(watching):
    seen = watching("1")
    seen.until("lesson 1")
    seen.process.send_signal(2)
    assert seen.until("mbnp: stopped")[-1] == "mbnp: stopped"
    assert seen.process.wait(timeout=20) == 130
