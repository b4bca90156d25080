"""BLEU and chrF: a hand-worked BLEU, sacrebleu as the oracle over random pairs, tokenizers by language."""

import importlib.util
import math

import numpy as np
import pytest

from stepaudio.errors import ConfigError, DataError
from stepaudio.evaluation import translation
from stepaudio.evaluation.translation import translation_scores


def test_bleu_by_hand():
    """1- to 4-grams 6/6, 5/5, 4/4, 3/3 and 6 of 7 words: exp(1 - 7/6)."""
    pytest.importorskip("sacrebleu")
    found = translation_scores(["the cat sat on the mat today"], ["the cat sat on the mat"])
    assert found["bleu"] == round(100 * math.exp(1 - 7 / 6), 2) and found["bleu_tokenizer"] == "13a"
    chinese = translation_scores(["今天天气很好啊"], ["今天天气很好"], "zh")
    assert chinese["bleu"] == found["bleu"] and "tok:zh" in chinese["bleu_signature"]
    assert translation_scores(["今天天气很好啊"], ["今天天气很好"], "en")["bleu"] < 1  # one word, and it is another


@pytest.mark.parametrize(("to", "tokenizer", "words"), [
    ("en", "13a", ["The", "the", "cat,", "sat.", "on", "a", "mat!", "$21", "don't"]),
    ("zh", "zh", ["今天", "天气", "很好，", "我们", "python", "去", "公园。"]),
    ("ja", "char", ["今日", "は", "いい", "天気", "です。"]),
    ("de", "13a", ["Straße", "größer,", "um", "acht."]), ("th", "char", ["สวัสดี", "ครับ"]),
])  # fmt: skip
def test_scores_are_sacrebleus(to, tokenizer, words):
    sacrebleu = pytest.importorskip("sacrebleu")
    rng, blank, n = np.random.default_rng(0), " " if to in ("en", "de") else "", 1000 if to in ("en", "zh") else 100
    texts = [[blank.join(rng.choice(words, rng.integers(1, 15))) for _ in range(n)] for _ in range(2)]
    found = translation_scores(*texts, to)
    assert found["bleu_tokenizer"] == tokenizer
    assert found["bleu"] == round(sacrebleu.corpus_bleu(texts[1], [texts[0]], tokenize=tokenizer).score, 2)
    assert found["chrf"] == round(sacrebleu.corpus_chrf(texts[1], [texts[0]]).score, 2)
    assert 0 < found["bleu"] < found["chrf"] or to in ("th", "ja")
    assert translation_scores(texts[0], texts[0], to)["bleu"] == 100


def test_without_the_library(monkeypatch):
    known = importlib.util.find_spec
    monkeypatch.setattr(translation.importlib.util, "find_spec", lambda n: None if n == "sacrebleu" else known(n))
    with pytest.raises(ConfigError, match=r'sacrebleu, not installed here: pip install "stepaudio\[scoring\]"'):
        translation_scores(["a"], ["a"])


@pytest.mark.parametrize("texts", [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_as_many_of_each(texts):
    pytest.importorskip("sacrebleu")
    with pytest.raises(DataError, match="BLEU needs a hypothesis for each reference"):
        translation_scores(*texts)
