"""Word and character errors: the normaliser by example, the counting against the textbook edit distance."""

import doctest
import math

import numpy as np
import pytest

from stepaudio.errors import DataError
from stepaudio.evaluation import word_errors
from stepaudio.evaluation.word_errors import (
    cer,
    count_char_errors,
    count_errors,
    error_rate,
    normalise,
    read_words,
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
    assert found.failed == 0 and found.attempted == 2


@pytest.mark.parametrize(("text", "wanted"), [
    ("It's  A\tDog's\nlife.", "it's a dog's life"), ("'tis the dogs' turn", "tis the dogs turn"),
    ("rock \u2019n\u2019 roll", "rock n roll"), ("up-to-date \u2014 well\u2013known", "up to date well known"),
    ("\uff21\uff22\uff23 caf\u00e9", "abc caf\u00e9"), ("", ""), ("... !?", ""), ("1,000.5", "10005"),
    ("cafe\u0301", "caf\u00e9"),
])  # fmt: skip
def test_normaliser(text, wanted):
    assert normalise(text) == wanted == normalise(wanted)


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
