"""Joining parts of a text: blanks where the script has them."""

import doctest

import pytest

from stepaudio.text import scripts
from stepaudio.text.scripts import foreign_letters, is_unspaced, join_texts


def test_doctests():
    found = doctest.testmod(scripts)
    assert found.failed == 0 and found.attempted == 3


@pytest.mark.parametrize(("text", "languages", "found"), [
    ("plain words, 12 %", ["en"], ""), ("déjà vu, Ångström", ["en"], ""), ("\u03c0 and \u03c0", ["en"], "\u03c0"),
    ("\u4f60\u597d OK", ["zh"], ""), ("\u3042\u308a \u4f60", ["zh"], "\u3042\u308a"),
    ("\u3042\u308a \u4f60 \u30a2", ["ja"], ""), ("\ud55c\uad6d", ["ko"], ""), ("\u0431", ["en", "zh"], "\u0431"),
    ("\u0431", ["en", "xx"], ""), ("\u4f60", [], "\u4f60"),
])  # fmt: skip
def test_letters_that_no_language_has(text, languages, found):
    assert foreign_letters(text, languages) == found


@pytest.mark.parametrize(("parts", "wanted"), [
    ([], ""), (["", ""], ""), (["a", "", "b"], "a b"), (["你好", "世界"], "你好世界"),
    (["你好，", "Anna"], "你好，Anna"),
    (["Hello.", "你好"], "Hello. 你好"), (["ありがとう", "「はい」"], "ありがとう「はい」"),
    (["한국어", "안녕"], "한국어 안녕"),
    (["Hi!", "（笑）"], "Hi!（笑）"), (["สวัสดี", "ครับ"], "สวัสดี ครับ"), (["你好.", "世界"], "你好. 世界"),
])  # fmt: skip
def test_seams(parts, wanted):
    assert join_texts(iter(parts)) == wanted


@pytest.mark.parametrize("text", ["一", "あ", "ﾊ", "ㄅ", "ไ", "ລ", "မ", "ខ", "Ok 好"])
def test_scripts_without_blanks(text):
    assert is_unspaced(text)


@pytest.mark.parametrize("text", ["", "hello", "한국어", "नमस्ते", "عربي", "…。", "ελ", "12"])
def test_scripts_with_blanks(text):
    assert not is_unspaced(text)
