"""Normalisers: Whisper's against the library itself, and what each makes of the same texts."""

import importlib.util

import jiwer
import numpy as np
import pytest

from stepaudio.errors import ConfigError
from stepaudio.evaluation import normalisers
from stepaudio.evaluation.normalisers import check_normalizer, normalise, normaliser, whisper_kind
from stepaudio.evaluation.word_errors import cer, count_char_errors, count_errors, mixed_error_rate, wer

ENGLISH = """the The a um, uh Mr. colour color organise $21 £5.50 twenty-one 21 21st 1,000 2.5 half can't cannot we're
gonna [noise] (laughs) won't it's O'Neill U.S.A. 9:30 50% café naïve I'll 'cause okay hmm one two three oh"""
WORDS = ENGLISH.split()
OTHER = "Straße größer été où ñandú здравствуй мир 今天 天气 很好 ありがとう 안녕 สวัสดี नमस्ते, مرحبا 42 3,5"
OTHER = OTHER.split(" ")


def pairs(words, n=1000, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        said = list(rng.choice(words, rng.integers(1, 12)))
        heard = [w for w in said if rng.random() > 0.15]
        heard = [str(rng.choice(words)) if rng.random() < 0.2 else w for w in heard]
        yield " ".join(said), " ".join(heard)


def of_jiwer(said, heard):
    """Word and character errors of two texts that need no more than to be parted at blanks."""
    words = jiwer.process_words(said, heard)
    chars = jiwer.process_characters(said, heard)
    return tuple(f.substitutions + f.deletions + f.insertions for f in (words, chars))


def test_money_and_contractions_cost_what_the_normaliser_does_not_know():
    """The numbers that make a word error rate comparable, or not."""
    pytest.importorskip("whisper_normalizer")
    money, talk = ("It cost $21.", "it cost twenty one dollars"), ("We're gonna go.", "we are going to go")
    errors = {n: [count_errors(*t, normaliser(n, t[0]))[1] for t in (money, talk)] for n in ("ours", "whisper", "none")}
    assert errors == {"ours": [3, 4], "whisper": [0, 0], "none": [4, 5]}


@pytest.mark.parametrize(("words", "language"), [(WORDS, None), (WORDS, "en"), (WORDS, "de"), (OTHER, "x")])
def test_whisper_is_the_librarys_own(words, language):
    """1 000 pairs: the library on both sides, then jiwer."""
    basic = pytest.importorskip("whisper_normalizer.basic").BasicTextNormalizer()
    english = pytest.importorskip("whisper_normalizer.english").EnglishTextNormalizer()
    change = english if language in (None, "en") else basic
    for said, heard in pairs(words, 1000 if language in (None, "x") else 50):
        texts = [" ".join(change(text).split()) for text in (said, heard)]
        if not texts[0]:
            continue
        by = normaliser("whisper", said, language)
        assert [by(said), by(heard)] == texts
        assert count_errors(said, heard, by)[1] == of_jiwer(*texts)[0], (said, heard)
        if words is WORDS:
            assert count_char_errors(said, heard, by)[1] == of_jiwer(*texts)[1]


def test_none_is_jiwer():
    """1 000 pairs, words and characters as they are written."""
    for said, heard in pairs(WORDS):
        assert wer(said, heard, "none") == jiwer.wer(said, heard)
        assert cer(said, heard, "none") == jiwer.cer(said, heard)


def test_ours_is_jiwer_after_our_normaliser():
    """1 000 pairs; of English, the mixed rate is the word error rate."""
    for said, heard in pairs([w for w in WORDS if normalise(w)]):
        texts = normalise(said), normalise(heard)
        assert wer(said, heard) == mixed_error_rate(said, heard) == jiwer.wer(*texts)
        assert cer(said, heard) == jiwer.cer(*texts)


def test_mixed_is_jiwer_once_characters_are_parted():
    """1 000 pairs of Chinese, Thai and English: with blanks around each character, jiwer counts the same."""
    words = ["今天", "天气", "很好", "我们", "สวัสดี", "python", "the", "cat", "3"]
    for said, heard in pairs(words, seed=1):
        parted = ["".join(f" {c} " if ord(c) > 0xE00 else c for c in text) for text in (said, heard)]
        assert mixed_error_rate(said, heard) == jiwer.wer(*parted)
        glued = [text.replace(" ", "") if not text.isascii() else text for text in (said, heard)]
        if all(ord(c) > 0xE00 or c == " " for c in said + heard) and heard:
            assert cer(said, heard) == jiwer.cer(*glued)


@pytest.mark.parametrize(("text", "language", "kind"), [
    ("Straße", None, "english"), ("Straße", "de", "basic"), ("привет Anna", None, "basic"), ("今天", None, "basic"),
    ("今天", "en", "english"), ("", None, "english"), ("42!", None, "english"), ("3ª", None, "english"),
])  # fmt: skip
def test_which_of_whispers_two(text, language, kind):
    assert whisper_kind(text, language) == kind


def test_fillers_of_english_are_words_of_german():
    pytest.importorskip("whisper_normalizer")
    assert wer("um acht", "acht", "whisper") == 0 and wer("um acht", "acht", "whisper", "de") == 0.5


@pytest.mark.parametrize("name", ["Ours", "wisper", "", None, 3, ["ours"]])
def test_unknown_normalisers(name):
    with pytest.raises(ConfigError, match="normalizer: expected ours, whisper or none, found"):
        check_normalizer(name)
    with pytest.raises(ConfigError, match="expected ours, whisper or none"):
        wer("a", "b", name)


def test_without_the_library(monkeypatch):
    known = importlib.util.find_spec
    monkeypatch.setattr(
        normalisers.importlib.util, "find_spec", lambda n: None if n == "whisper_normalizer" else known(n)
    )
    with pytest.raises(
        ConfigError, match=r'whisper-normalizer, not installed here: pip install "stepaudio\[scoring\]"'
    ):
        wer("a", "b", "whisper")
    assert wer("a", "b") == 1


@pytest.mark.parametrize("text", ["\ud800", "a" * 5000, "\x00\x1b[2J", "$" * 50, "1" * 400, "٣" * 5, "½ ² ①", "\u200b"])
def test_odd_texts_end_in_a_text(text):
    pytest.importorskip("whisper_normalizer")
    for name in ("ours", "whisper", "none"):
        for language in (None, "en", "de"):
            assert isinstance(normaliser(name, text, language)(text), str)
