"""What is solved is remembered, outside of the repository; without a file `mbnp grade` says what comes next."""

import json
import os
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

from mbnp import cli, grading
from mbnp.grading import progress, source
from tests.grading.answers import solved

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def shown(capsys, *arguments):
    status = cli.main(["grade", *map(str, arguments)])
    captured = capsys.readouterr()
    assert captured.err == ""
    assert all(len(line) <= 80 for line in captured.out.splitlines() if "/tmp" not in line and str(ROOT) not in line)
    return status, captured.out


def test_nothing_is_solved_yet(capsys, kept):
    status, out = shown(capsys)
    lines = out.splitlines()
    assert status == 0
    assert lines[0] == "lesson  solved  to do"
    assert lines[2] == "1          0/3  output_size, conv_pixel, convolve"
    assert len(lines[2:]) == len(grading.lessons()) + 8, "the names of lesson 13 take a second line"
    assert lines[-4:] == [
        "next: lesson 1, output_size",
        "  read tutorials/rendered/01_convolution_by_hand.md",
        "  open tutorials/exercises/01.py",
        "  then mbnp grade --watch",
    ]
    assert not kept.exists(), "looking changes nothing"


def test_it_remembers_and_goes_on(tmp_path, capsys, kept):
    file = tmp_path / "mine.py"
    file.write_text(solved(1, "output_size", "convolve"), encoding="utf-8")
    assert shown(capsys, file)[0] == 1
    _, out = shown(capsys)
    assert "\n1          2/3  conv_pixel\n" in out
    assert f"next: lesson 1, conv_pixel\n  read tutorials/rendered/01_convolution_by_hand.md\n  open {file}\n" in out
    file.write_text(solved(1), encoding="utf-8")
    status, out = shown(capsys, file)
    assert status == 0
    assert out.splitlines()[3:] == [
        "lesson 1: 3 of 3 solved",
        "next: lesson 2, depthwise",
        "  read tutorials/rendered/02_depthwise_and_pointwise.md",
        "  open tutorials/exercises/02.py",
    ]
    _, out = shown(capsys, "tutorials/exercises/01.py")  # the stubs, with nothing in them
    remembered = "solved before, and remembered: output_size, conv_pixel, convolve"
    assert out.splitlines()[-2:] == ["lesson 1: 0 of 3 solved", remembered]
    _, out = shown(capsys)
    assert "\n1          3/3\n" in out, "what was solved once stays so"
    assert "\nwhat was solved once is remembered, whatever the file has now\n" in out
    assert json.loads(kept.read_text())["1"]["solved"] == ["output_size", "conv_pixel", "convolve"]


def test_everything_is_solved(tmp_path, capsys):
    kept = progress.load()
    for lesson in kept:
        kept[lesson].solved = [exercise.name for exercise in grading.exercises(lesson)]
    progress.save(kept)
    status, out = shown(capsys)
    assert status == 0
    assert out.splitlines()[-2:] == [
        "your conv_dx in a real training step: mbnp grade --use",
        "all 14 lessons are solved",
    ]
    assert cli.main(["grade", "--hint"]) == 2
    assert capsys.readouterr().err == "mbnp: error: every lesson is solved: name a file to grade it again\n"


def test_a_lesson_by_its_number(tmp_path, capsys):
    assert "taps     not yet" in shown(capsys, 3)[1]
    file = tmp_path / "mine.py"
    file.write_text(solved(3), encoding="utf-8")
    shown(capsys, file)
    status, out = shown(capsys, 3)
    assert (status, "lesson 3: 3 of 3 solved" in out) == (0, True)
    assert cli.main(["grade", "99"]) == 2
    assert capsys.readouterr().err == "mbnp: error: there is no lesson 99: they are 1 to 14\n"


def test_the_next_lesson_is_after_this_one_if_there_is_one():
    kept = progress.load()
    assert progress.next_lesson(kept) == 1
    assert progress.next_lesson(kept, after=4) == 5
    assert progress.next_lesson(kept, after=14) == 1


DAMAGED = ["", "[]", "{", '{"1": 2}', '{"x": {}}', '{"1": {"solved": [1]}}', '{"1": {"hints": {"taps": "a"}}}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_file_is_left_alone(tmp_path, capsys, kept, text):
    kept.parent.mkdir()
    kept.write_text(text)
    assert cli.main(["grade"]) == 2
    error = f"{kept} is damaged, so what was solved is not known: delete it to begin anew"
    assert capsys.readouterr().err == f"mbnp: error: {error}\n"
    file = tmp_path / "mine.py"
    file.write_text(solved(1), encoding="utf-8")
    status, out = shown(capsys, file)
    assert status == 0, "the grade counts all the same"
    assert " ".join(out.split()).endswith(f"this is not remembered: {error}")
    assert kept.read_text() == text


def test_a_folder_that_cannot_be_written_to(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MBNP_PROGRESS", str(tmp_path / "file" / "progress.json"))
    (tmp_path / "mine.py").write_text(solved(1), encoding="utf-8")
    status, out = shown(capsys, tmp_path / "mine.py")
    assert status == 0
    assert "this is not remembered: " in out


def test_it_is_kept_with_the_users_data(tmp_path, monkeypatch):
    monkeypatch.delenv("MBNP_PROGRESS")
    assert progress.path() == platformdirs.user_data_path("mbnp", appauthor=False) / "progress.json"
    assert not progress.path().is_relative_to(ROOT)


def test_away_from_the_repository(tmp_path):
    """The stubs are found beside the package, as after `pip install -e`, and a wheel says where they are."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mbnp", "grade"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert f"  open {ROOT / 'tutorials/exercises/01.py'}\n" in done.stdout


def test_without_the_repository(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for module in (progress, source):
        monkeypatch.setattr(module, "__file__", str(tmp_path / "a/b/c.py"))
    assert cli.main(["grade"]) == 0
    assert capsys.readouterr().out.splitlines()[-2] == "  open tutorials/exercises/01.py of mbnp's repository"
    assert cli.main(["grade", "1"]) == 2
    assert capsys.readouterr().err.startswith("mbnp: error: the exercises of lesson 1 are not here: name your file")
