"""BLEU and chrF: a hand-worked BLEU, sacrebleu as the oracle over random pairs, tokenizers by language, intervals."""

import importlib.util
import math

import numpy as np
import pytest
from scored import evaluation

from stepaudio.errors import ConfigError, DataError
from stepaudio.evaluation import translation
from stepaudio.evaluation.bootstrap import bleu, chrf, score_interval, translation_counts
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
    for part in (slice(1), slice(3), slice(40), slice(None)):  # what resampling adds up gives the same scores
        sums = {name: counts.sum(0) for name, counts in translation_counts(texts[0][part], texts[1][part], to).items()}
        wanted = translation_scores(texts[0][part], texts[1][part], to)
        assert [float(bleu(sums["bleu"])), float(chrf(sums["chrf"]))] == pytest.approx(
            [wanted["bleu"], wanted["chrf"]], abs=0.0051
        )


def drawn(n, wrong, seed=0):
    """References, and hypotheses in which each word is wrong with a chance of its clip's own."""
    rng = np.random.default_rng(seed)
    said = [rng.choice(400, rng.integers(5, 20)) for _ in range(n)]
    found = [np.where(rng.random(len(s)) < 2 * wrong * rng.random(), rng.choice(400, len(s)), s) for s in said]
    return [[" ".join(f"w{i}" for i in text) for text in side] for side in (said, found)]


def test_intervals_are_nearly_those_of_sacrebleus_own_bootstrap():
    """It draws other sets, and the width of its intervals is the mean of both sides, not the wider one."""
    pytest.importorskip("sacrebleu")
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    references, hypotheses = drawn(300, 0.3)
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        theirs = metric.corpus_score(hypotheses, [references], n_bootstrap=1000)
        ours = score_interval(name, translation_counts(references, hypotheses, "en")[name])
        assert ours.estimate == pytest.approx(theirs.score) and 0 < ours.low < ours.high < 100
        assert 0.85 < (ours.high - ours.low) / 2 / theirs._ci < 1.2
        assert ours == score_interval(name, translation_counts(references, hypotheses, "en")[name])


def test_paired_intervals_are_narrower_and_find_what_moved():
    references, better = drawn(60, 0.3)
    worse = [" ".join(["oh", *text.split()[1:]]) for text in better]
    few = [worse[i] if i < 9 else text for i, text in enumerate(better)]
    counts = [translation_counts(references, side, "en")["bleu"] for side in (better, worse, few)]
    change, alone = score_interval("bleu", counts[0], counts[1]), score_interval("bleu", counts[0])
    assert change.estimate == pytest.approx(float(bleu(counts[0].sum(0)) - bleu(counts[1].sum(0))))
    assert change.low > 0 and change.high - change.low < (alone.high - alone.low) / 2
    for odd in (score_interval("bleu", counts[0], counts[2]), score_interval("bleu", counts[0][:23])):
        assert not odd.is_bounded and not odd.excludes_zero  # nine clips differ; 23 clips are too few


def test_translations_that_loop_are_left_out_of_the_intervals():
    references, hypotheses = drawn(40, 0.3)
    texts = list(zip([f"{i:02}" for i in range(40)], references, hypotheses, strict=True))
    looping = ("40", references[0], "and " * 200, 1)
    line = evaluation(*texts, looping, task="translate").totals()
    clean = evaluation(*texts, task="translate").totals()
    ends = line["intervals"]["loop_free_bleu"]
    assert ends == clean["intervals"]["loop_free_bleu"] and ends["clips"] == line["clips_loop_free"] == 40
    assert line["loop_free_bleu"] == clean["bleu"] == pytest.approx(ends["estimate"]) and line["bleu"] < clean["bleu"]
    assert line["loop_free_chrf"] == clean["chrf"] and "bleu" not in line["intervals"]
    shown = str(evaluation(*texts, looping, task="translate"))
    assert f"BLEU without loops  {clean['bleu']:.1f}" in shown and f"{ends['low']:.1f} to {ends['high']:.1f}" in shown
    assert "without loops" not in str(evaluation(*texts, task="translate"))
    few = str(evaluation(*texts[:9], task="translate"))
    assert "too few clips" in few


def test_translations_are_compared_clip_by_clip():
    references, hypotheses = drawn(40, 0.3)
    worse = [" ".join(["oh", *text.split()[1:]]) for text in hypotheses]
    here, there = ([(f"{i:02}", r, h) for i, (r, h) in enumerate(zip(references, side, strict=True))]
                   for side in (hypotheses, worse))  # fmt: skip
    there[3] = (*there[3][:2], "and " * 99, 1)
    found = evaluation(*here, task="translate").against(evaluation(*there, task="translate"))
    assert [d.measure for d in found.differences()] == ["loop_rate", "loop_free_bleu", "loop_free_chrf"]
    assert found.moved == ("loop_free_bleu", "loop_free_chrf") and found.change is None and found.clips == 40
    kept = [i for i in range(40) if i != 3]
    alone = translation_scores([references[i] for i in kept], [worse[i] for i in kept])
    assert found.there[1:] == pytest.approx((alone["bleu"], alone["chrf"]), abs=0.0051)
    assert found.to_dict()["differences"]["loop_free_bleu"]["there"] == found.there[1]
    assert "BLEU without loops" in str(found) and f"  {alone['bleu']:.1f}  " in str(found)
    assert "chrF that changed most (there → here): 03 0 →" in str(found)


def test_translations_that_cannot_be_compared():
    rows = [("a", "one two", "one"), ("b", "three", "three")]
    sides = [evaluation(*rows, task="translate"), evaluation(*rows), evaluation(*rows, task="translate", language="de")]
    for other, said in ((sides[1], "of translations and the other of transcripts"), (sides[2], "into de, en: compare")):
        with pytest.raises(DataError, match=said):
            sides[0].against(other)
    changed = evaluation(("a", "One two", "one"), rows[1], task="translate")  # case counts in BLEU
    with pytest.raises(DataError, match="a: the reference text is not that"):
        sides[0].against(changed)


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
