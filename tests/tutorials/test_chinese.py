"""The Chinese pages: all of a lesson is translated, from its current English, with the same code, numbers, figures."""

import re
from collections import Counter

import pytest

from tests.tutorials.helpers import LESSONS, TUTORIALS, builder
from tests.tutorials.test_build import LESSON, build, run  # noqa: F401 (a fixture)

pages = builder()
chinese = pages.chinese
TRANSLATED = [lesson for lesson in LESSONS if pages.chinese_of(lesson)]
each_lesson = pytest.mark.parametrize("lesson", TRANSLATED, ids=lambda lesson: lesson.stem)


def read(lesson):
    return pages._translation(lesson)


def english(lesson):
    return pages.page_of(lesson).read_text(encoding="utf-8")


def page(lesson):
    return (pages.RENDERED / "zh" / f"{lesson.stem}.md").read_text(encoding="utf-8")


def test_the_first_six_are_translated():
    assert [lesson.stem[:2] for lesson in TRANSLATED] == ["01", "02", "03", "04", "05", "06"]


@each_lesson
def test_all_cells_and_sentences_are_translated_from_the_current_english(lesson):
    assert chinese.outdated(pages.source_of(lesson), read(lesson)) == []


def test_what_all_lessons_say_is_translated():
    translation, missing = chinese.read(TUTORIALS / "zh" / "lesson.md"), []
    for text in chinese.said((TUTORIALS / "lesson.py").read_text(encoding="utf-8")):
        chinese._outputs(text, translation, missing, "")
    assert missing == []


@each_lesson
def test_page_is_made_of_the_english_one(lesson):
    assert page(lesson) == pages.chinese_page(lesson), f"run: python tutorials/build.py {lesson.stem[:2]}"


@each_lesson
def test_code_and_figures_are_the_same(lesson):
    ours, theirs = page(lesson), english(lesson)
    assert chinese.FENCED.findall(ours) == chinese.FENCED.findall(theirs)
    figures = re.findall(r"^!\[.*\]\((.*)\)$", theirs, re.MULTILINE)
    assert re.findall(r"^!\[.*\]\(\.\./(.*)\)$", ours, re.MULTILINE) == figures
    assert not list((pages.RENDERED / "zh").glob("*_files")), "the figures are the English page's files"


def outputs(text, cells):
    """Return the numbers that the outputs after each cell show, captions left out."""
    found = []
    for cell in reversed(cells):
        text, _, after = text.rpartition(cell)
        after = re.sub(r"^(!\[|\*(?!\*)).*$", "", chinese.FENCED.sub("", after), flags=re.MULTILINE)
        found.append(Counter(re.findall(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]\d+)?", after)))
    return found


@each_lesson
def test_numbers_are_the_same(lesson):
    source, translation = pages.source_of(lesson), read(lesson)
    cells = chinese.prose(source)
    theirs = [pages._tidy(pages._linked(cell, "{}.md", "../{}")) for cell in cells]
    ours = [
        chinese._filled(cell, pages._linked(text, "../{}.md", "../../{}"), translation)
        for cell, (_, text) in zip(cells, translation.cells, strict=True)
    ]
    numbers = outputs(english(lesson).rpartition("\n---\n")[0], theirs)
    assert sum(map(len, numbers)) > 20
    for there, here in zip(numbers, outputs(page(lesson).rpartition("\n---\n")[0], ours), strict=True):
        assert there <= here, f"lost: {there - here}"
        assert here.keys() <= there.keys() | {"1"}, f"of our own, but for the 1 of 1/8: {here - there}"


@each_lesson
def test_names_and_formulas_in_the_text_are_the_same(lesson):
    """Code in a sentence is not translated, and a variable that one language explains is in the other's text, too."""
    for cell, (_, text) in zip(chinese.prose(pages.source_of(lesson)), read(lesson).cells, strict=True):
        for form in (r"`[^`\n]+`", r"\$[^$\n]+\$", r"arXiv:\d+\.\d+", r"https?://[\w./]+"):
            bare = chinese.FORMULA.sub("", chinese.FENCED.sub("", cell))
            assert set(re.findall(form, " ".join(bare.split()))) == set(re.findall(form, text)), text[:40]


@each_lesson
def test_form(lesson):
    text = page(lesson)
    number = int(lesson.stem[:2])
    assert re.search(rf"^# {number}\. [\u4e00-\u9fff]+\n\n\*\*[^*]+？\*\*$", text, re.MULTILINE), (
        "title, then a question"
    )
    assert "**运行下一个单元格之前**：" in text
    assert text.count("<summary>提示</summary>") == text.count("<summary>答案</summary>")
    assert text.count("<summary>提示</summary>") == english(lesson).count("<summary>Hint</summary>")
    prose = chinese.FENCED.sub("", text)
    for bold in re.finditer(r"\*\*([^*\n]+)\*\*(.?)", prose):
        at_end = re.fullmatch(r".*[，。：；？！、）]\*\*[\u4e00-\u9fff]", bold[0])
        assert not at_end, f"Markdown does not end it: {bold[0]}"
    assert not re.search(
        r"[^\x00-\x7f]\$[^$\n]+\$|\$[^$\n]+\$[^\x00-\x7f]", re.sub(r"\$\$.*?\$\$", "", prose, flags=re.DOTALL)
    )
    assert "{code}" not in text
    assert "{formula}" not in text
    for target in re.findall(r"\]\(([\w./-]+\.\w+)\)", text):
        assert (pages.RENDERED / "zh" / target).exists(), target


def test_the_terms_are_those_of_the_glossary():
    glossary = (TUTORIALS / "glossary.md").read_text(encoding="utf-8")
    text = "".join(map(page, TRANSLATED))
    terms = """特征图 步幅 填充 偏置 感受野 标准卷积 深度卷积 逐点卷积 深度可分离卷积 批量归一化 矩阵乘法 反向传播
    链式法则 有限差分 滑动 交叉熵 学习率 动量 过拟合 混淆矩阵 数据增强 推理 后端 折叠"""
    for term in terms.split():
        assert term in glossary, term
        assert term in text, term
    for other in ("步长为", "卷积神经网络层", "反向传递", "学习速率"):
        assert other not in text, other
    assert text.count("批归一化") == 1, "its other name is mentioned, once"


# --- what is reported ---


@pytest.fixture(scope="module")
def first():
    lesson = LESSONS[0]
    return pages.source_of(lesson), read(lesson)


def test_a_changed_cell_is_reported(first):
    source, translation = first
    changed = source.replace("Nine multiplications, one sum", "Nine products, one sum")
    assert chinese.outdated(changed, translation) == [
        "changed since it was translated: cell 3, 'A convolution lays the kernel over a part of the image, i...'"
    ]


def test_a_new_and_a_missing_cell_are_reported(first):
    source, translation = first
    new = source.replace("# %% [markdown]\n# ## Numba", "# %% [markdown]\n# New.\n\n# %% [markdown]\n# ## Numba")
    assert chinese.outdated(new, translation) == ["not translated: cell 16, 'New.'"]
    cells = chinese.prose(source)
    without = source.replace("# %% [markdown]\n# With the windows, the formula is a single contraction.", "# %%\n#")
    assert without != source
    (line,) = chinese.outdated(without, translation)
    assert line.startswith("no such cell any more: '有了窗口")
    assert len(cells) == len(translation.cells)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (
            "the same nine numbers as above",
            "the same numbers as above",
            "x 1 with w 1 gives y 1, the same numbers as above.",
        ),
        ('"output rows"', '"rows of output"', "rows of output"),
        (
            "each of the five implementations",
            "every way",
            "Milliseconds for one image, on a logarithmic scale, for e...",
        ),
    ],
)
def test_a_changed_sentence_heading_or_caption_is_reported(first, old, new, what):
    source, translation = first
    assert old in source
    assert chinese.outdated(source.replace(old, new), translation) == [f"not translated: {what!r}"]


def test_the_hashes_are_written_anew(first, tmp_path):
    source, _ = first
    file = tmp_path / "01.md"
    text = (TUTORIALS / "zh" / "01_convolution_by_hand.md").read_text(encoding="utf-8")
    file.write_text(re.sub(r"<!-- cell \w+ -->", "<!-- cell -->", text), encoding="utf-8")
    chinese.stamp(source, file)
    assert file.read_text(encoding="utf-8") == text
    with pytest.raises(chinese.TranslationError, match=r"01.md has 23 cells, its lesson 24"):
        chinese.stamp(source + "\n# %% [markdown]\n# One more.\n", file)


# --- a page, from its lesson ---

TRANSLATION = """\
<!-- cell -->
# 13. 一节课

**是这样吗？** $x^2$

<!-- say It is {number}. -->
它是 {number}。

<!-- words -->
| name | 名称 |
| count | 个数 |
| fraction | 比例 |

<!-- figure a line that rises -->
一条上升的直线

<!-- cell -->
见[下一课](14_after.py)、[工具](lesson.py)和[网页](https://example.org/lesson.py)。

<details><summary>答案</summary>

{code}

</details>
"""


def test_one_run_makes_both_pages(build):  # noqa: F811
    file = build.HERE / "zh" / "13_try.md"
    file.parent.mkdir()
    file.write_text(TRANSLATION, encoding="utf-8")
    stamped = run(build, "--translated", "13")
    assert (stamped.returncode, stamped.stderr) == (0, "")
    assert re.findall("<!-- cell (.*) -->", file.read_text(encoding="utf-8")) == [
        build.chinese.digest(cell) for cell in build.chinese.prose(LESSON)
    ]
    done = run(build, "13")
    assert (done.returncode, done.stderr) == (0, "13_try.py: a warning\n")
    assert "· [中文](zh/13_try.md) · [14. After →]" in build.page_of(build.HERE / "13_try.py").read_text(
        encoding="utf-8"
    )
    text = (build.RENDERED / "zh" / "13_try.md").read_text(encoding="utf-8")
    for part in (
        "[← 12. Before（英文）](../12_before.md) · [全部课程](../../README.zh-CN.md) · [源代码](../../13_try.py)",
        "# 13. 一节课\n\n**是这样吗？** $x^2$\n\n```python\nimport sys",
        "```\n\n它是 42。\n\n```python\nsource(window.same_padding)\n```\n\n```python\ndef same_padding(",
        "| 名称 | 个数 | 比例 |\n| --- | ---: | ---: |\n| a | 1,000 | 0.5 |",
        "</details>\n\n![一条上升的直线](../13_try_files/4.png)\n\n*一条上升的直线。*\n\n见[下一课](../14_after.md)、[工具](../../lesson.py)",
        "<details><summary>答案</summary>\n\n```python\ndef f():\n    return 1\n\n\ng = f\n```\n\n</details>",
    ):
        assert part in text

    (build.HERE / "13_try.py").write_text(LESSON.replace("Is it so?", "Is it?"), encoding="utf-8")
    again = run(build, "13")
    assert again.returncode == 1
    assert "zh/13_try.md: changed since it was translated: cell 1, '# 13. A lesson **Is it?** $x^2$'" in again.stderr
    assert (build.RENDERED / "zh" / "13_try.md").read_text(encoding="utf-8") == text
    listed = run(build, "--outdated")
    assert (listed.returncode, listed.stdout.count("\n")) == (1, 1)
