"""Tables are aligned and made to fit; long lines are broken with a hanging indent."""

import pytest
from rich.cells import cell_len

from mbnp import tables

HEAD = ["name", "kind", "count", "share"]
ROWS = [["a", "long kind", "1,234", "3 %"], ["bcd", "k", "5", ""]]


def test_columns_are_aligned_under_a_rule():
    assert tables.table(HEAD, ROWS, left=2).splitlines() == [
        "name  kind       count  share",
        "-----------------------------",
        "a     long kind  1,234    3 %",
        "bcd   k              5",
    ]
    assert tables.table(["", "n", "note"], [["a", "1", "x"], ["b", "23", "yes"]], left_last=True).splitlines() == [
        "    n  note",
        "-----------",
        "a   1  x",
        "b  23  yes",
    ]


def test_a_total_is_below_a_rule_of_its_own_and_counts_for_the_widths():
    *_, row, rule, total = tables.table(HEAD, ROWS, left=2, total=["all", "", "1,000,000", ""]).splitlines()
    assert rule == "-" * 33
    assert (row, total) == ("bcd   k                  5", "all              1,000,000")


@pytest.mark.parametrize(
    ("length", "kept"),
    [
        (60, "name kind count share"),
        (61, "name kind share"),
        (69, "name share"),
        (80, "name share"),
        (90, "name share"),
    ],
)
def test_columns_are_left_out_until_it_fits(length, kept):
    rows = [["a" * length, "kind", "12345", "x"], ["b", "k", "1", "y"]]
    lines = tables.table(HEAD, rows, 2, total=["all", "", "2", "z"], drop=["count", "kind"]).splitlines()
    assert lines[0].split() == kept.split()
    assert len(lines) == 6
    assert lines[-1].split()[-1] == "z"
    if length < 75:
        assert max(map(len, lines)) <= tables.WIDTH


def test_long_lines_hang_and_short_ones_stay():
    text = f"short\n\n  indented: {'word ' * 20}end"
    lines = tables.hang(text, indent=4).split("\n")
    assert lines[:2] == ["short", ""]
    assert lines[2].startswith("  indented: word")
    assert lines[3].startswith("    word")
    assert max(map(len, lines)) <= tables.WIDTH
    assert " ".join(" ".join(lines[2:]).split()) == text.split("\n")[2].strip()


def test_chinese_lines_end_between_characters():
    text = f"name  错误: {'第三个数应为零，' * 12}（{'不是一' * 20}）：`a + b`。{'end ' * 20}"
    lines = tables.hang(text, indent=6).split("\n")
    assert max(map(cell_len, lines)) <= tables.WIDTH
    assert all(cell_len(line) > tables.WIDTH - 8 for line in lines[:-2]), "and fill the line"
    assert "".join(line.strip() for line in lines).replace(" ", "") == text.replace(" ", "")
    for line in lines[1:]:
        assert line.startswith("      ")
        assert line.strip()[0] not in "，。：）"
        assert not line.endswith("（")


def test_a_path_is_not_broken():
    path = "/" + "a-long-folder/" * 10
    assert tables.hang(f"kept under {path}") == f"kept under\n  {path}"


def test_chinese_names_take_two_columns_each():
    text = tables.table(["class", "images"], [["猫咪", "12"], ["dog", "7"]])
    assert text.splitlines() == ["class  images", "-" * 13, "猫咪       12", "dog         7"]
