"""Format strings in Chinese by their English, and which language is chosen."""

import pytest

from mbnp import translation


@pytest.mark.parametrize(
    ("variables", "language"),
    [
        ({"MBNP_LANG": "zh"}, "zh"),
        ({"MBNP_LANG": "en", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LC_ALL": "", "LANG": "zh_TW"}, "zh"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
    ],
)
def test_the_language_is_mbnp_langs_or_else_the_locales(variables, language, monkeypatch):
    for name in ("MBNP_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert translation.chosen() == language


@pytest.fixture
def known():
    found = translation.Catalogue()
    for english, chinese in (
        ("solved", "已解决"),
        ("{what} is {state}", "{what}是 {state}"),
        ("{what} is {state} ({n} of {all})", "{what}是 {state}（{all} 中的 {n}）"),
        ("`{name}` is {state}", "`{name}` 的状态：{state}"),
        ("100 % (sure)", "百分之百"),
    ):
        found.add(english, chinese)
    return found


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("solved", "已解决"),
        ("this is solved", "this 是 已解决"),  # a value that is known is translated, and set off if it is not
        ("this  is\nnew (3 of 4)", "this 是 new（4 中的 3）"),  # the most particular form; white space does not count
        ("`solved` is solved", "`solved` 的状态：已解决"),  # code stays
        ("100 % (sure)", "百分之百"),  # nothing but {name} is special
        ("100 % (sure", None),
        ("", None),
    ],
)
def test_a_sentence_is_translated_by_its_form(known, english, chinese):
    assert known.get(english) == chinese


def test_rows_of_a_table():
    lines = ["# title", "", "| English | 中文 |", "| --- | :---: |", "| a {b} | {b} 甲 |", "|---|---|", "text | more"]
    assert list(translation.rows(lines)) == [("English", "中文"), ("a {b}", "{b} 甲")]
