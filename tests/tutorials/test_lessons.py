"""Every lesson runs, at a small size, and every page was made from the lesson as it stands."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from tests.tutorials.helpers import LESSONS, TUTORIALS, builder

build = builder()
each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
NAMES = """01_convolution_by_hand 02_depthwise_and_pointwise 03_backwards_through_a_convolution 04_batch_normalisation
05_building_the_network 06_training 07_separable_against_standard 08_width_and_resolution 09_flops_are_not_time
10_making_it_fast 11_looking_inside 12_weights_from_elsewhere 13_what_came_after 14_where_is_it"""

ONE_THREAD = dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def test_there_are_fourteen():
    assert [lesson.stem for lesson in LESSONS] == NAMES.split()


def run(lesson):
    """Run `python LESSON` at the small size, without this machine's data and screen."""
    env = {name: value for name, value in os.environ.items() if name not in ("MBNP_DATA", "MBNP_BACKEND", "MBNP_FACES")}
    return subprocess.run(
        [sys.executable, lesson.name],
        cwd=TUTORIALS,
        env=env | {"MBNP_LESSONS": "small", "MPLBACKEND": "Agg", "PYTHONUTF8": "1"} | ONE_THREAD,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )


@pytest.fixture(scope="module")
def runs(request):
    """Run the lessons to be tested, two at a time, each on one thread."""
    chosen = [item.callspec.params["lesson"] for item in request.session.items if "runs" in item.fixturenames]
    with ThreadPoolExecutor(2) as pool:
        yield {lesson: pool.submit(run, lesson) for lesson in chosen}


@each_lesson
def test_runs_as_a_script(lesson, runs):
    done = runs[lesson].result()
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "warnings clutter the lesson"
    printed = " ".join(done.stdout.split())
    cells = re.split(r"^# %%", lesson.read_text(encoding="utf-8"), flags=re.MULTILINE)
    cells = [
        re.sub(r"^# ?", "", cell.partition("\n")[2], flags=re.M) for cell in cells if cell.startswith(" [markdown]")
    ]
    assert len(cells) >= 9
    for paragraph in (p for cell in cells for p in cell.strip().split("\n\n") if not p.startswith(("<!--", "|"))):
        assert " ".join(paragraph.split()) in printed, "a script prints the text, too"
    assert "<summary>" not in printed
    as_it_stands = re.compile(r"^(```|\$\$).*?\1$", re.MULTILINE | re.DOTALL)  # code and formulas
    assert [line for line in as_it_stands.sub("", done.stdout).splitlines() if len(line) > 80] == []


@each_lesson
def test_page_is_made_from_the_current_source(lesson):
    assert build.is_fresh(lesson), f"run: python tutorials/build.py {lesson.stem[:2]}"


@each_lesson
def test_page_has_its_figures_and_no_other(lesson):
    page = build.page_of(lesson)
    named = re.findall(r"^!\[(.+)\]\((.+)\)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    folder = page.with_name(f"{page.stem}_files")
    linked = set(re.findall(rf"\]\((?:\.\./rendered/)?({folder.name}/[^)]+)\)", page.read_text(encoding="utf-8")))
    assert linked == {f"{folder.name}/{file.name}" for file in folder.glob("*")}
    assert named, "a lesson has a figure"
    for alt, name in named:
        with Image.open(page.parent / name) as image:
            assert image.width <= 1000, "as wide as a page"
            opaque = "A" not in image.getbands() or image.getchannel("A").getextrema()[0] == 255
            assert opaque, "black labels need a white background on a dark page"
        assert len(alt) > 20, f"{name}: describe it in words"


def test_figures_are_small_together():
    assert sum(file.stat().st_size for file in build.RENDERED.glob("*_files/*")) < 5e6


@each_lesson
def test_form(lesson):
    """A lesson has the question first, a prediction, questions and exercises at the end, and links that exist."""
    text = build.source_of(lesson)
    assert "<details>" not in lesson.read_text(encoding="utf-8"), (
        "hints are out of sight, in mbnp/grading/lessons/hints"
    )
    number = int(lesson.stem[:2])
    prose = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
    assert re.match(rf"%% \[markdown\]\n# {number}\. [^\n]+\n\n\*\*[^*]+\?\*\*", prose), "title, then a question"
    assert "**Before you run the next cell:**" in prose
    assert text.index("# ## Questions") < text.index("# ## Exercises")
    assert text.count("<summary>Hint</summary>") == text.count("<summary>Solution</summary>") in (2, 3, 4)
    page = build.page_of(lesson).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([\w./-]+\.\w+)\)", page):
        assert (build.RENDERED / target).exists(), target


def test_readmes_link_every_lesson():
    for name in ("README.md", "README.zh-CN.md"):
        text = (TUTORIALS / name).read_text(encoding="utf-8")
        for lesson in LESSONS:
            folder = "rendered/zh" if "zh" in name and build.chinese_of(lesson) else "rendered"
            assert f"({folder}/{lesson.stem}.md)" in text, f"{name} lacks {lesson.stem}"
        for target in re.findall(r"\]\(([\w./-]+)\)", text):
            assert (TUTORIALS / target).exists(), target


def test_the_map_links_notebooks_only_where_a_repository_is_named():
    text = (TUTORIALS / "README.md").read_text(encoding="utf-8")
    assert text == build.linked_to_colab(text), "run: python tutorials/build.py --notebooks"
    assert ("colab.research" in text) == bool(build.repository())


def test_glossary_names_files_that_exist():
    text = (TUTORIALS / "glossary.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| (?!term|---)", line)]
    assert all(row.count("|") == 5 and re.search(r"[\u4e00-\u9fff]|ReLU", row) for row in rows)
    for path in re.findall(r"`(mbnp/[\w/.]+)`", text):
        assert (TUTORIALS.parent / path).exists(), path
