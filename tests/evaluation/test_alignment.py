"""Alignments: hand-worked edits, jiwer's counts, times of segments, and what is printed."""

import doctest

import jiwer
import numpy as np
import pytest

from stepaudio.errors import DataError
from stepaudio.evaluation import alignment
from stepaudio.evaluation.alignment import Edit, align, columns, most_frequent


def test_doctests():
    found = doctest.testmod(alignment)
    assert found.failed == 0 and found.attempted == 1


def test_edits_by_hand():
    found = align("the cat sat on a soft mat", "The cat, sat in soft mat now!")
    assert [(e.kind[:3], e.reference, e.hypothesis) for e in found] == [
        ("equ", "the", "the"), ("equ", "cat", "cat"), ("equ", "sat", "sat"), ("sub", "on", "in"), ("del", "a", None),
        ("equ", "soft", "soft"), ("equ", "mat", "mat"), ("ins", None, "now"),
    ]  # fmt: skip
    assert (found.units, found.errors, found.substitutions, found.deletions, found.insertions) == (7, 3, 1, 1, 1)
    assert found[3] == Edit("substitution", "on", "in") and found[:2] == found.edits[:2] and len(found) == 8


def test_chinese_by_character_and_english_beside_it_by_word():
    found = align("今天天气很好 Python", "今天天汽好python吗")
    assert [(e.reference, e.hypothesis) for e in found if e.kind != "equal"] == [
        ("气", "汽"),
        ("很", None),
        (None, "吗"),
    ]
    assert found.units == 7 and align("今天", "今 天", unit="wer").errors == 2
    assert align("cat", "猫猫", unit="mixed").errors == 2 and align("cat", "猫猫").errors == 1


def test_counts_are_jiwers():
    rng = np.random.default_rng(3)
    for _ in range(1000):
        said, heard = (" ".join(rng.choice(list("abcdefg"), rng.integers(1, 9))) for _ in range(2))
        found, wanted = align(said, heard, normalizer="none"), jiwer.process_words(said, heard)
        assert (found.substitutions, found.deletions, found.insertions) == (
            wanted.substitutions, wanted.deletions, wanted.insertions
        )  # fmt: skip
        assert [e.reference for e in found if e.reference] == said.split() and [
            e.hypothesis for e in found if e.hypothesis
        ] == heard.split()
        assert all((e.reference == e.hypothesis) == (e.kind == "equal") for e in found)


@pytest.mark.parametrize(("said", "heard", "kinds"), [
    ("", "", []), ("", "hm hm", ["insertion"] * 2), ("a b", "", ["deletion"] * 2), ("...", "?!", []),
])  # fmt: skip
def test_nothing_on_one_side(said, heard, kinds):
    found = align(said, heard)
    assert [e.kind for e in found] == kinds and str(found)


def test_times_are_those_of_the_segments():
    parts = [(0.0, 2.0, "one two"), (2.0, 2.5, ""), (2.5, 4.0, "four six")]
    found = align("one two three four five", "one two four six", segments=parts)
    assert [(e.reference, e.start, e.end) for e in found] == [
        ("one", 0, 2), ("two", 0, 2), ("three", 0, 4), ("four", 2.5, 4), ("five", 2.5, 4),
    ]  # fmt: skip
    assert [(e.start, e.end) for e in align("a", "", segments=[(0, 1, ""), (1, 3, "")])] == [(0, 3)]


def test_a_normaliser_that_joins_segments_keeps_times():
    pytest.importorskip("whisper_normalizer")
    parts = [(0.0, 2.0, "it cost twenty"), (2.0, 4.0, "one dollars she says")]
    found = align("It cost $21, he said.", "it cost twenty one dollars she says", normalizer="whisper", segments=parts)
    assert [(e.reference, e.hypothesis, e.start) for e in found][:2] == [("it", "it", 0), ("cost", "cost", 0)]
    assert [(e.hypothesis, e.start, e.end) for e in found][3:] == [("she", 2, 4), ("says", 2, 4)]


def test_most_frequent_errors():
    found = most_frequent([align("the a the", "a a the b"), align("the", "a")])
    assert found == [("the", "a", 2), (None, "b", 1)]


def test_what_is_printed_lines_up():
    words = [f"w{i}" for i in range(60)]
    heard = [*words[:10], "猫猫", *words[11:50], *words[51:]]
    lines = str(align(" ".join(words), " ".join(heard), segments=[(0, 9.5, " ".join(heard))])).splitlines()
    assert lines[0] == "  0.0 to 9.5 s" and all(columns(line) <= 96 for line in lines)
    said, heard, marks = lines[1:4]
    assert said.startswith("    ref … w6 ") and "猫猫" in heard and "w20" not in said
    place = marks.index("S")
    assert columns(said[: said.index("w10 ")]) == place == columns(heard[: heard.index("猫")])
    assert "w30" in align(" ".join(words), "w0 x " + " ".join(words[2:])).text(near=None)


def test_a_loop_is_shortened():
    shown = str(align("a b", "a b " + "c " * 500))
    assert "(+494)" in shown and len(shown) < 400
    assert "(+94)" in str(align("c " * 100, ""))
    assert "(+" not in str(align("c " * 12, "")) and "(+7)" in str(align("c " * 13, ""))


def test_what_a_terminal_cannot_show_is_escaped():
    shown = str(align("a", "\x1b[2J" + "x" * 300, normalizer="none"))
    assert "\x1b" not in shown and "\\x1b" in shown and all(columns(line) < 97 for line in shown.splitlines())


def test_in_a_notebook():
    assert align("a <b>", "a c", normalizer="none")._repr_html_().count("&lt;b&gt;") == 1
    assert "<del" in align("a b", "a")._repr_html_() and "<ins" in align("a", "a b")._repr_html_()


def test_unknown_unit():
    with pytest.raises(DataError, match="unit: expected wer, mixed or auto, found 'words'"):
        align("a", "b", unit="words")
