"""Word and character errors: the normaliser by example, the counting against the textbook edit distance."""

import doctest
import math
import unicodedata

import jiwer
import numpy as np
import pytest

from stepaudio.errors import DataError
from stepaudio.evaluation import word_errors
from stepaudio.evaluation.word_errors import (
    cer,
    characters,
    count_char_errors,
    count_errors,
    count_errors_of_beginning,
    count_mixed_errors,
    error_rate,
    mixed_error_rate,
    normalise,
    read_words,
    units,
    wer,
)


def edit_distance(a, b):
    """Levenshtein, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, left = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(left[j] + 1, row[-1] + 1, left[j - 1] + (x != y)))
    return row[-1]


def test_doctests():
    found = doctest.testmod(word_errors)
    assert found.failed == 0 and found.attempted == 3


@pytest.mark.parametrize(("text", "wanted"), [
    ("It's  A\tDog's\nlife.", "it's a dog's life"), ("'tis the dogs' turn", "tis the dogs turn"),
    ("rock \u2019n\u2019 roll", "rock n roll"), ("up-to-date \u2014 well\u2013known", "up to date well known"),
    ("\uff21\uff22\uff23 caf\u00e9", "abc caf\u00e9"), ("", ""), ("... !?", ""), ("1,000.5", "1000.5"),
    ("cafe\u0301", "caf\u00e9"), ("Wait…what?", "wait what"), ("well...I know", "well i know"),
    ("Yes,no;maybe/so", "yes no maybe so"), ("one（two）three、four", "one two three four"), ("a|b+c=d", "a b c d"),
    ("The U.S.A., at 5 p.m., J.R.R.Tolkien", "the usa at 5 pm jrr tolkien"),
    ("3.5, 3,5 or 1,00,000", "3.5 3 5 or 100000"),
    ("٣٫٥ ١٬٠٠٠", "٣.٥ ١٠٠٠"), ("don´t donʼt don′t", "don't don't don't"), ("İstanbul", "istanbul"),
    ("soft\u00adhyphen e\u200d\u0301 a\u200bb", "softhyphen é a b"), ("1\ufe0f\u20e3 ok \u0301x", "1 ok x"),
    ("हिन्दी।नमस्ते", "हिन्दी नमस्ते"), ("كـتـاب", "كتاب"), ("ארה״ב ארה\"ב צ׳ק", "ארהב ארהב צ'ק"),
])  # fmt: skip
def test_normaliser(text, wanted):
    assert normalise(text) == wanted == normalise(wanted)


@pytest.mark.parametrize(("one", "other"), [
    ("कि", "की"), ("नमस्ते", "नमसत"), ("สวัสดี", "สวสด"), ("படி", "பாடி"), ("কি", "কী"),
    ("كَتَبَ", "كُتِبَ"), ("שָׁלוֹם", "שלום"),
    ("ແມ່", "ແມ"), ("မြို့", "မြို"), ("ខ្មែរ", "ខមរ"), ("ఆమె", "ఆమ"), ("resume", "résumé"), ("3.5", "35"), ("が", "か"),
    ("བོད", "བད"), ("Tiê\u0301ng", "Tiêng"),
])  # fmt: skip
def test_words_that_differ_by_a_mark_differ(one, other):
    assert (
        count_errors(one, other) == (1, 1) and count_char_errors(one, other)[1] > 0 < count_mixed_errors(one, other)[1]
    )


@pytest.mark.parametrize("text", [
    "कि की", "สวัสดีครับ", "தமிழ் மொழி", "বাংলা", "العَرَبِيَّة", "עִבְרִית", "한국어", "Việt Nam", "日本語が", "ខ្មែរ", "čeština",
])  # fmt: skip
def test_composed_and_decomposed_letters_are_the_same_word(text):
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert normalise(unicodedata.normalize(form, text)) == unicodedata.normalize("NFKC", text).lower()


def test_normalising_twice_changes_nothing():
    rng = np.random.default_rng(0)
    letters = [*map(chr, range(32, 0x3100)), *map(chr, range(0xF900, 0xFFFF)), *"abc .,'’…5 3.1," * 200]
    for _ in range(3000):
        once = normalise("".join(rng.choice(letters, rng.integers(1, 9))))
        assert normalise(once) == once == " ".join(once.split())


@pytest.mark.parametrize(("text", "wanted"), [
    ("我喜欢 Python 3。", ["我", "喜", "欢", "python", "3"]), ("2024年の東京タワー", ["2024", *"年の東京タワー"]),
    ("ก็ดี ok", [*"ก็ดี", "ok"]), ("한국어 漢字", ["한국어", "漢", "字"]),
    ("ㄅㄆ々〇 ｶﾞ", [*"ㄅㄆ々〇ガ"]), ("नमस्ते जी", ["नमस्ते", "जी"]),
])  # fmt: skip
def test_units_are_characters_where_no_blanks_are_written(text, wanted):
    assert units(text) == wanted


def test_blanks_inside_chinese_are_no_errors():
    assert count_char_errors("今天天气", "今天 天气") == (4, 0) == count_mixed_errors("今天天气", "今天，天气")
    assert count_char_errors("北京 is big", "北京is big") == (8, 0) and count_mixed_errors("北京 is", "北京is") == (
        3,
        0,
    )


def test_rates_agree_with_jiwer_and_with_the_textbook_over_random_pairs():
    rng = np.random.default_rng(1)
    words = ["今", "天气", "好", "カ", "the", "cat", "it's", "नम", "ดี"]
    for _ in range(1000):
        one, other = (" ".join(rng.choice(words, rng.integers(1, 8))) for _ in range(2))
        a, b = characters(one), characters(other)
        assert cer(one, other) == pytest.approx(jiwer.cer(a, b)) == pytest.approx(edit_distance(a, b) / len(a))
        assert wer(one, other) == pytest.approx(jiwer.wer(one, other))
        a, b = slow_units(one), slow_units(other)
        assert count_mixed_errors(one, other) == (len(a), edit_distance(a, b))
        assert mixed_error_rate(one, other) == pytest.approx(jiwer.wer(" ".join(a), " ".join(b)))


def slow_units(text):
    """Character by character, by the names that Unicode gives them."""
    found = []
    for word in text.split():
        joins = False
        for c in word:
            alone = unicodedata.name(c).startswith(("CJK", "HIRAGANA", "KATAKANA", "THAI"))
            found[len(found) - joins :] = [found[-1] + c] if joins and not alone else [c]
            joins = not alone
    return found


def test_a_part_is_scored_against_the_beginning_that_fits_best():
    said = "one two three four five six"
    assert count_errors_of_beginning(said, "one too three") == (3, 1)
    assert count_errors_of_beginning(said, "") == (0, 0) and count_errors_of_beginning("", "a b") == (0, 2)
    rng = np.random.default_rng(2)
    for _ in range(100):
        a, b = ([str(w) for w in rng.integers(0, 4, rng.integers(0, 9))] for _ in range(2))
        n, errors = count_errors_of_beginning(" ".join(a), " ".join(b))
        every = [edit_distance(b, a[:k]) for k in range(len(a) + 1)]
        assert errors == min(every) == every[n] and min(every) not in every[n + 1 :]


def test_word_errors_are_the_edit_distance_of_words():
    rng = np.random.default_rng(0)
    for _ in range(60):
        a, b = ([str(w) for w in rng.integers(0, 4, rng.integers(1, 9))] for _ in range(2))
        assert count_errors(" ".join(a), " ".join(b)) == (len(a), edit_distance(a, b))


@pytest.mark.parametrize(
    ("reference", "hypothesis"),
    [
        ("The cat sat.", "the cat sat"),
        ("a cat sat here", "cat sat there"),
        ("one two", "one two two two two two"),
        ("Don't!", "dont"),
        ("x", ""),
    ],
)
def test_errors_equal_the_edit_distance_after_normalising(reference, hypothesis):
    a, b = normalise(reference), normalise(hypothesis)
    assert count_errors(reference, hypothesis) == (len(a.split()), edit_distance(a.split(), b.split()))
    assert count_char_errors(reference, hypothesis) == (len(a), edit_distance(a, b))
    assert wer(reference, hypothesis) == edit_distance(a.split(), b.split()) / len(a.split())
    assert cer(reference, hypothesis) == edit_distance(a, b) / len(a)


@pytest.mark.parametrize(("reference", "hypothesis", "words", "chars"), [
    ("", "", (0, 0), (0, 0)), ("", "oh no", (0, 2), (0, 5)), ("oh no", "", (2, 2), (5, 5)),
    ("...", "ab c", (0, 2), (0, 4)), ("Yes, sir!", "yes sir", (2, 0), (7, 0)),
])  # fmt: skip
def test_words_recognised_in_silence_are_errors(reference, hypothesis, words, chars):
    assert count_errors(reference, hypothesis) == words
    assert count_char_errors(reference, hypothesis) == chars


def test_rates_weigh_utterances_by_their_length():
    assert error_rate([(1, 1), (9, 0)]) == 0.1
    assert wer(["a", "b c d e f g h i j"], ["x", "b c d e f g h i j"]) == 0.1
    assert wer("one two", "one two three four five") == 1.5
    assert math.isnan(error_rate([(0, 2)])) and math.isnan(wer("", "you you")) and math.isnan(cer([], []))


@pytest.mark.parametrize(("reference", "hypothesis", "message"), [
    ("a", ["a"], "two sequences of texts, found str and list"),
    (["a", "b"], ["a"], "2 references and 1 hypotheses"),
])  # fmt: skip
def test_sides_that_do_not_match_are_refused(reference, hypothesis, message):
    with pytest.raises(DataError, match=message):
        wer(reference, hypothesis)


def test_words_of_a_model(tmp_path):
    (tmp_path / "words.txt").write_text("the\t12\nDon't\t3\nforty-two\t1\n\n", encoding="utf-8")
    assert read_words(tmp_path / "words.txt") == {"the", "don't", "forty", "two"}
    with pytest.raises(DataError, match="list of words"):
        read_words(tmp_path / "none.txt")
