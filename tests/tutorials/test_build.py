"""The builder: the form of a page, when it is stale, and the effect of a failing lesson."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.tutorials.helpers import TUTORIALS, builder

LESSON = """\
# %% [markdown]
# # 13. A lesson
#
# **Is it so?** $x^2$

# %%
import sys

from lesson import BLUE, figure, say, show, source, table
from mbnp.ops import window

number = 6 * 7
say(f"It is {number}.")

# %%
source(window.same_padding)

# %%
print("plain <output>")
print("a warning", file=sys.stderr)
with open("made.html", "w") as file:
    file.write("a page")
say(table([["a", 1_000, 0.5]], ["name", "count", "fraction"]))

# %% tags=["hide-input"]
fig, axes = figure()
axes.plot([0, 1], color=BLUE)
show(fig, "a line that rises")

# %% [markdown]
# See [the lesson after](14_after.py), [the tools](lesson.py) and [the web](https://example.org/lesson.py).
#
# [What it made](rendered/13_try_files/made.html).
#
# <details><summary>Solution</summary>
#
# ```python
# def f():
#     return 1
#
#
# g = f
# ```
#
# </details>
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Import build.py, with a folder of lessons of its own: 13, between a 12 and a 14."""
    module = builder()
    tmp_path = tmp_path / "tutorials"
    tmp_path.mkdir()
    (tmp_path / "lesson.py").write_text((TUTORIALS / "lesson.py").read_text(encoding="utf-8"), encoding="utf-8")
    for name in ("12_before.py", "14_after.py"):
        (tmp_path / name).write_text("# %%\n1 + 1\n", encoding="utf-8")
    (tmp_path / "13_try.py").write_text(LESSON, encoding="utf-8")
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "RENDERED", tmp_path / "rendered")
    return module


def run(build, *names):
    """Run `python build.py NAMES` in that folder, in a process of its own, as its tools do not close their sockets."""
    code = (
        f"import sys; sys.path.insert(0, {str(TUTORIALS)!r}); import build; from pathlib import Path\n"
        f"build.HERE = Path({str(build.HERE)!r}); build.RENDERED = build.HERE / 'rendered'\n"
        f"sys.argv[1:] = {list(names)!r}; sys.exit(build.main())"
    )
    env = {**os.environ, "MBNP_LESSONS": "small", "MPLBACKEND": "Agg", "MBNP_BACKEND": "loops"}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, encoding="utf-8", timeout=120
    )


def test_page_and_staleness(build, monkeypatch):
    lesson = build.HERE / "13_try.py"
    assert not build.is_fresh(lesson)
    done = run(build, "13")
    assert (done.returncode, done.stderr) == (0, "13_try.py: a warning\n")
    assert done.stdout.startswith("13_try ")
    page = build.page_of(lesson).read_text(encoding="utf-8")
    links = "[← 12. Before](12_before.md) · [All lessons](../README.md) · [Source](../13_try.py) · "
    links += "[Exercises](../exercises/13.py) · [14. After →](14_after.md)"
    assert page.splitlines()[2] == page.splitlines()[-1] == links
    for text in (
        "\n\n# 13. A lesson\n\n**Is it so?** $x^2$\n\n```python\nimport sys\n",
        "```\n\nIt is 42.\n\n```python\nsource(window.same_padding)\n```\n\n```python\ndef same_padding(",
        "\n\n```text\nplain <output>\n```\n\n",
        "\n\n| name | count | fraction |\n| --- | ---: | ---: |\n| a | 1,000 | 0.5 |\n\n",
        "<details><summary>The code of this figure</summary>\n\n```python\nfig, axes = figure()",
        "```\n\n</details>\n\n![a line that rises](13_try_files/4.png)\n\nSee ",
        "\n\n<details><summary>Solution</summary>\n\n```python\ndef f():\n    return 1\n\n\ng = f\n",
        "\ng = f\n```\n\n</details>\n\n---\n",
        "\n\nSee [the lesson after](14_after.md), [the tools](../lesson.py) and [the web](https://example.org/lesson.py).",
        "\n\n[What it made](../rendered/13_try_files/made.html).\n\n",
    ):
        assert text in page
    assert "a warning" not in page.replace('print("a warning"', "")
    assert sorted(file.name for file in build.RENDERED.glob("13_try_files/*")) == ["4.png", "made.html"]
    assert (build.RENDERED / "13_try_files" / "made.html").read_text(encoding="utf-8") == "a page"
    assert not (build.HERE / "made.html").exists()

    assert build.is_fresh(lesson)
    true_source = build.inspect.getsource
    monkeypatch.setattr(build.inspect, "getsource", lambda code: true_source(code) + "# changed")
    assert not build.is_fresh(lesson), "the code of mbnp that it shows has changed"
    monkeypatch.undo()


@pytest.mark.parametrize("change", ["13_try.py", "lesson.py"])
def test_a_changed_source_makes_a_page_stale(build, change):
    lesson = build.HERE / "13_try.py"
    build.RENDERED.mkdir()
    text = "\n".join([build._stamp(lesson, ["mbnp.ops.window:pad"]), build._links(lesson)])
    build.page_of(lesson).write_text(text, encoding="utf-8")
    assert build.is_fresh(lesson)
    (build.HERE / "12_before.py").rename(build.HERE / "12_renamed.py")
    assert not build.is_fresh(lesson), "its links lead nowhere"
    (build.HERE / "12_renamed.py").rename(build.HERE / "12_before.py")
    source = build.HERE / change
    source.write_bytes(source.read_bytes().replace(b"\n", b"\r\n"))
    assert build.is_fresh(lesson), "line ends are not a change"
    source.write_bytes(source.read_bytes() + b"\n# more\n")
    assert not build.is_fresh(lesson)


def test_failing_cell_is_one_line_and_leaves_the_old_page(build):
    lesson = build.HERE / "13_try.py"
    lesson.write_text(LESSON.replace("number = 6 * 7", "number = 6 / 0"), encoding="utf-8")
    build.RENDERED.mkdir()
    build.page_of(lesson).write_text("old", encoding="utf-8")
    done = run(build, "13")
    assert done.returncode == 1
    assert done.stderr == (
        "build.py: 13_try.py, cell 2, line 12 (number = 6 / 0): ZeroDivisionError: division by zero; "
        "what was built before is untouched\n"
    )
    assert [file.name for file in build.RENDERED.iterdir()] == ["13_try.md"]
    assert build.page_of(lesson).read_text(encoding="utf-8") == "old"


def test_a_page_is_made_in_the_environment_of_a_fresh_clone(build, monkeypatch):
    """What a reader has beside the repository, such as weights and photographs, is not on it."""
    before = build._environment()
    for name in ("MBNP_LESSONS", "MBNP_DATA", "MBNP_BACKEND", "MBNP_FACES"):
        monkeypatch.setenv(name, "something")
    assert build._environment() == before
    assert "MBNP_FACES" in (TUTORIALS / "14_where_is_it.py").read_text(encoding="utf-8")


def test_unknown_lesson(build):
    done = run(build, "99")
    assert done.returncode == 2
    assert done.stderr == "build.py: no lesson '99': known are 12_before, 13_try, 14_after\n"


MARKED = "# %% [markdown]\n# **2. `conv_dx`**: back.\n#\n# <!-- mbnp/grading/lessons/hints/03.md: conv_dx -->\n"


def test_hints_are_put_back(build):
    lesson = build.HERE / "13_try.py"
    lesson.write_text(MARKED, encoding="utf-8")
    text = build.source_of(lesson)
    assert text.startswith(
        "# %% [markdown]\n# **2. `conv_dx`**: back.\n#\n# <details><summary>Hint</summary>\n#\n# The "
    )
    assert text.endswith(
        "#     return padded[:, padding : padding + H, padding : padding + W]\n# ```\n#\n# </details>\n"
    )
    lesson.write_text(MARKED.replace("conv_dx -->", "other -->"), encoding="utf-8")
    with pytest.raises(build.LessonError, match=r"13_try.py: hints/03.md has nothing on other"):
        build.source_of(lesson)


def test_notebook(build):
    (build.HERE / "README.md").write_text("| [13. Try](rendered/13_try.md) | why? |\n", encoding="utf-8")
    done = run(build, "--notebooks", "13")
    assert (done.returncode, done.stderr) == (0, "13_try.py: a warning\n")
    assert not build.RENDERED.exists()
    notebook = json.loads((build.HERE / "notebooks" / "13_try.ipynb").read_text(encoding="utf-8"))
    setup, _, first, *_, figure, last = notebook["cells"]
    assert "%pip install" in "".join(setup["source"])
    assert setup["outputs"] == []
    # It ran in a folder without lesson.py, and found it.
    assert "".join(first["outputs"][0]["data"]["text/markdown"]) == "It is 42."
    assert "image/png" in figure["outputs"][0]["data"]
    assert figure["metadata"]["jupyter"] == {"source_hidden": True}
    text = "".join(last["source"])
    assert "[the lesson after](14_after.ipynb), [the tools](../lesson.py) and [the web](https://example.org" in text
    assert "colab" not in (build.HERE / "README.md").read_text(encoding="utf-8")


def test_a_repository_is_linked(build):
    pyproject = '[project]\nname = "mbnp"\n[project.urls]\nRepository = "https://github.com/someone/mbnp.git"\n'
    (build.HERE.parent / "pyproject.toml").write_text(pyproject, encoding="utf-8")
    assert build.repository() == "https://github.com/someone/mbnp"
    row = "| [13. Try](rendered/13_try.md){} | why? |\nSee [it](rendered/13_try.md).\n"
    colab = (
        " ([Colab](https://colab.research.google.com/github/someone/mbnp/blob/main/tutorials/notebooks/13_try.ipynb))"
    )
    linked = build.linked_to_colab(row.format(""))
    assert linked == row.format(colab)
    assert build.linked_to_colab(linked) == linked
    assert "found = next(around, None) or 'git+https://github.com/someone/mbnp'" in build._setup()
    (build.HERE.parent / "pyproject.toml").write_text('[project]\nname = "mbnp"\n', encoding="utf-8")
    assert build.linked_to_colab(linked) == row.format("")
    assert "found = next(around, None) or ''" in build._setup()


@pytest.mark.parametrize("around", [True, False])
def test_the_first_cell_installs_mbnp_where_it_is_missing(build, monkeypatch, tmp_path, around):
    if around:
        (tmp_path / "mbnp" / "grading").mkdir(parents=True)
    monkeypatch.chdir(build.HERE)
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    installed = []
    cell = re.sub(r"%pip install (.*)", r"install(f'\1')", build._setup())
    if not around:
        with pytest.raises(ModuleNotFoundError, match="not in a clone"):
            exec(cell, {"install": installed.append})
        return
    exec(cell, {"install": installed.append})
    assert installed == [f'--quiet "{tmp_path}" scipy threadpoolctl']
    assert callable(sys.modules["lesson"].say)


SCRIPT = """\
# %% [markdown]
# # 15. A script
#
# A paragraph that is longer than a line of a terminal, which has eighty columns and not one more.
#
# - one thing
# - another
#
# | name | | count |
# | --- | --- | ---: |
# | `conv` | a cell that is longer than what an ordinary terminal has room for in a line | 1 |
# | fc | | 23 |
#
# <!-- mbnp/grading/lessons/hints/03.md: conv_dx -->

# %%
from lesson import say

say("Said.")

# %% [markdown]
# Then:

# %%
print(1 / 0)
"""


def test_a_script_prints_its_text_and_a_traceback_its_line(build):
    file = build.HERE / "15_script.py"
    file.write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert done.stdout == (
        "# 15. A script\n\nA paragraph that is longer than a line of a terminal, which has eighty columns\n"
        "and not one more.\n\n- one thing\n- another\n\n"
        f"name{'count':>76}\n{'-' * 80}\n"
        "`conv`  a cell that is longer than what an ordinary terminal has room for      1\n"
        f"        in a line\nfc{'23':>78}\n\n"
        "Said.\n\nThen:\n\n"
    )
    assert done.returncode == 1
    assert "line 25, in <module>\n    print(1 / 0)" in done.stderr
    file.write_text(SCRIPT.replace("1 / 0", "__name__, 5"), encoding="utf-8")
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert done.stdout.endswith("Then:\n\n__main__ 5\n")
    assert (done.returncode, done.stderr) == (0, "")
