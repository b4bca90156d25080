"""Texts into parts to read: by hand, and what must hold of any text."""

import random
import re

import pytest

from stepaudio.errors import ConfigError
from stepaudio.text.sentences import cut_text


@pytest.mark.parametrize(("text", "limit", "parts"), [
    ("One. Two! Three?", 100, ["One. Two! Three?"]),
    ("One. Two! Three?", 9, ["One. Two!", "Three?"]),
    ('He said "yes." Then he left.', 14, ['He said "yes."', "Then he left."]),
    ("It is 3.14 or so. Yes.", 20, ["It is 3.14 or so.", "Yes."]),
    ("first line\nsecond line", 100, ["first line", "second line"]),
    ("你好。世界！今天，天气好。", 6, ["你好。世界！", "今天，", "天气好。"]),
    ("before, and after it all.", 12, ["before,", "and after it", "all."]),
    ("abcdefgh ij", 5, ["abcde", "fgh", "ij"]), ("", 5, []), (" \n ", 5, []),
])  # fmt: skip
def test_by_hand(text, limit, parts):
    assert cut_text(text, limit) == parts


def test_nothing_is_lost_and_no_piece_is_too_long():
    draw = random.Random(0)
    for _ in range(1000):
        text = "".join(draw.choice("ab ,.!?。，\n\"'3") for _ in range(draw.randrange(60)))
        limit = draw.randrange(1, 15)
        parts = cut_text(text, limit)
        assert "".join(re.sub(r"\s", "", p) for p in parts) == re.sub(r"\s", "", text)
        assert all(0 < len(p) <= limit and p == p.strip() for p in parts)


@pytest.mark.parametrize("limit", [0, -3, 2.5, None])
def test_impossible_limits(limit):
    with pytest.raises(ConfigError, match="max_characters"):
        cut_text("text", limit)


@pytest.mark.parametrize("odd", [".", ".)", ")", ",", "。", " ", "?!…", "a"])
@pytest.mark.parametrize("limit", [7, 200, 10**6])
def test_long_odd_texts_take_linear_time(odd, limit):
    # If each full stop is looked at from every one before it, this takes minutes.
    text = odd * (40_000 // len(odd))
    assert "".join(cut_text(text, limit)) == text.strip()
