"""Totals: hand-worked rates, intervals of others' making, silence apart, and the table that prints them."""

import json

import pytest
from scored import evaluation, score

from stepaudio.errors import DataError
from stepaudio.evaluation.intervals import interval
from stepaudio.evaluation.summary import rows_of, summary, totals

ROWS = (("a.wav", "one two three four", "one too three"), ("b.wav", "five six", "five six seven"),
        ("c.wav", "eight nine", "eight nine"))  # fmt: skip


def test_rates_and_kinds_by_hand():
    t = evaluation(*ROWS).totals()
    assert (t["measure"], t["words"], t["errors"], t["wer"]) == ("wer", 8, 3, 0.375)
    assert (t["substitutions"], t["deletions"], t["insertions"]) == (1, 1, 1)
    assert t["confusions"] == [[None, "seven", 1], ["four", None, 1], ["two", "too", 1]]
    assert [(w["file"], w["errors"], w["units"]) for w in t["worst"]] == [("a.wav", 2, 4), ("b.wav", 1, 2)]
    json.dumps(t, allow_nan=False)


def test_mandarin_by_hand():
    """气→汽, 吧→吗 and one too many: 3 of 6 + 4 + 2 units; of characters, blanks beside Chinese do not count."""
    t = evaluation(
        ("a", "今天天气很好。", "今天天汽很好"), ("b", "我们走吧", "我们 走吗"), ("c", "用 Python", "用了python")
    ).totals()
    assert (t["measure"], t["mixed_units"], t["mixed_errors"], t["mixed"]) == ("mixed", 12, 3, 0.25)
    assert (t["chars"], t["char_errors"], t["cer"]) == (6 + 4 + 7, 3, 0.1765)
    assert t["words"] == 4 and (t["substitutions"], t["deletions"], t["insertions"]) == (2, 0, 1)


def test_mandarin_by_every_normaliser():
    pytest.importorskip("whisper_normalizer")
    t = evaluation(("a", "今天天气很好。", "今天天汽很好"), ("b", "我 用 Python", "我用python")).totals()
    assert (
        t["by_normalizer"]["ours"]["mixed"] == t["by_normalizer"]["whisper"]["mixed"] == pytest.approx(1 / 9, abs=1e-4)
    )
    assert t["by_normalizer"]["whisper"]["kind"] == "basic"
    plain = evaluation(
        ("a", "今天天气很好。", "今天天汽很好"), ("b", "我 用 Python", "我用python"), normalizer="none"
    ).totals()
    assert plain["normalizer"] == "none" and (plain["mixed_units"], plain["mixed_errors"]) == (10, 3)


def test_both_normalisers_are_reported_where_they_are_installed():
    pytest.importorskip("whisper_normalizer")
    found = evaluation(
        ("a", "It cost $21.", "it cost twenty one dollars"), ("b", "we're gonna go", "we are going to go")
    )
    t = found.totals()
    assert t["by_normalizer"]["ours"]["errors"] == 7 == t["errors"] and t["by_normalizer"]["whisper"]["errors"] == 0
    assert t["by_normalizer"]["whisper"]["kind"] == "english" and "by Whisper's English" in str(found)


def test_without_whisper_ours_is_reported_alone(monkeypatch):
    monkeypatch.setattr("stepaudio.evaluation.summary.has_whisper", lambda: False)
    t = evaluation(*ROWS).totals()
    assert list(t["by_normalizer"]) == ["ours"] and "Whisper" not in summary(t)


def test_intervals_are_those_of_the_clips():
    scores = [score(f"{i}", "a b c d e", "a b c d" if i % 3 else "a b c d e", loops=i in (4, 9)) for i in range(20)]
    t = totals(scores)
    rows = [{"clip": i, "seed": 0, "words": 5, "errors": int(i % 3 > 0), "loops": int(i in (4, 9))} for i in range(20)]
    for measure in ("loop_rate", "loop_free_wer", "wer"):
        wanted, found = interval(rows, measure), t["intervals"][measure]
        assert [found["estimate"], found["low"], found["high"]] == pytest.approx(
            [wanted.estimate, wanted.low, wanted.high], abs=1e-4
        )
    assert t["loops"] == 2 and t["intervals"]["loop_rate"]["clips"] == 20
    assert rows_of(scores)[4]["loops"] == 1


def test_of_no_loop_the_bound_is_said_and_the_total_has_none():
    """0 of 16: 1 - 0.025 ** (1 / 16) = 20.6 %."""
    found = evaluation(*[(f"{i}.wav", "a b c", "a b") for i in range(16)])
    ends = found.totals()["intervals"]
    assert ends["loop_rate"]["high"] == round(1 - 0.025 ** (1 / 16), 4) and ends["wer"]["high"] is None
    assert "0 of 16 clips; a rate above 20.6% is excluded" in str(found) and "no upper bound" in str(found)


def test_silence_stands_apart():
    """2 of 4 clips got words, 5 words in 40 s; none of them is a word error."""
    rows = [("s1", "", "thank you"), ("s2", " ", "so so so"), ("s3", "", ""), ("s4", "", " ... ")]
    t = evaluation(*ROWS, *rows).totals()
    assert (t["words"], t["errors"], t["wer"], t["clips"]) == (8, 3, 0.375, 7)
    assert (t["clips_without_speech"], t["hallucinated"], t["hallucination_rate"]) == (4, 2, 0.5)
    assert t["words_per_minute"] == 5 / (40 / 60)
    assert [t["intervals"]["hallucination_rate"][k] for k in ("low", "high")] == [0.0676, 0.9324]  # R: binom.test(2, 4)
    assert t["intervals"]["wer"]["clips"] == 3 and "2 of 4 clips without speech, 7.5 words a minute" in summary(t)
    alone = evaluation(*rows).totals()
    assert (alone["wer"], alone["hallucination_rate"], alone["intervals"]["wer"]) == (None, 0.5, None)
    chinese = evaluation(("s", "", "谢谢观看"), ("t", "", "")).totals()
    assert chinese["words_per_minute"] == 4 * 60 / 20


def test_a_text_without_words_is_no_silence():
    t = evaluation(("a", "...", "hm"), ("b", "one", "one")).totals()
    assert (t["clips_without_speech"], t["errors"], t["words"]) == (0, 1, 1)


@pytest.mark.parametrize("rows", [(), (("a", "x", None),), (("a", "", ""),), (("a", "one", "one"),)])
def test_few_clips_have_totals_too(rows):
    found = evaluation(*rows)
    json.dumps(found.totals(), allow_nan=False)
    assert "word error rate" in str(found).splitlines()[-1]


def test_the_table_fits_a_screen():
    found = evaluation(
        *[(f"a_long_name_of_a_clip_{i}.wav", "one two " * 9, "won too " * 9) for i in range(60)], ("s", "", "x")
    )
    shown = summary(found.totals()).splitlines()
    assert len(shown) <= 20 and max(map(len, shown)) <= 150
    assert shown[-1].startswith("word error rate 100.0% (1080 of 1080 words), character error rate")
    assert "normaliser ours" in shown[-1] and "S" in found.listing()


def test_worst_first_and_loops_flagged():
    found = evaluation(("a", "one two", "one"), ("b", "one two", "and " * 90, 1), ("c", "one", "one"),
                       ("s", "", "hm hm hm"), ("x", "one", None))  # fmt: skip
    assert [s.name for s in found.worst()] == ["b", "s", "a", "c"]
    shown = found.listing()
    assert [line.split()[0] for line in shown.splitlines() if line and line[0] != " "] == ["b", "s", "a", "x"]
    assert "b  90 of 2 words wrong, loops (2 S, 0 D, 88 I)" in shown and "b 90 of 2 (loops)" in str(found)
    page = found._repr_html_()
    assert "<del" in page and page.count("<b>") == 3


def test_a_name_that_a_terminal_would_obey_is_escaped():
    found = evaluation(("a\x1b[2J.wav", "one", "two"))
    assert "\x1b" not in str(found) + found.listing() and "a\\x1b[2J.wav" in str(found)


def test_known_words_leave_silence_out():
    t = evaluation(("a", "yes", "no"), ("s", "", "hm")).totals({"yes"})
    assert (t["wer_known"], t["clips_known"]) == (1, 1)


def test_translations_have_bleu_and_no_word_errors():
    sacrebleu = pytest.importorskip("sacrebleu")
    said, heard = ["今天天气很好。", "我们去公园吧。"], ["今天天气好。", "我们去公园。"]
    t = evaluation(*[(str(i), *t) for i, t in enumerate(zip(said, heard, strict=True))], task="translate").totals()
    assert t["bleu"] == round(sacrebleu.corpus_bleu(heard, [said], tokenize="zh").score, 2)
    assert t["chrf"] == round(sacrebleu.corpus_chrf(heard, [said]).score, 2)
    assert (t["measure"], t["wer"], t["to"], t["bleu_tokenizer"]) == ("bleu", None, "zh", "zh")
    assert "tok:zh" in t["bleu_signature"] and "tok:zh" in summary(t) and "wer" not in t["intervals"]
    json.dumps(t, allow_nan=False)


def test_two_languages_are_two_tables():
    pytest.importorskip("sacrebleu")
    with pytest.raises(DataError, match="into en, zh"):
        evaluation(("a", "好", "好"), ("b", "good", "good"), task="translate").totals()
