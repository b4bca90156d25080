"""Bootstrap intervals against a plain implementation, their promised coverage, and where nothing varies."""

import numpy as np
import pytest

from stepaudio.errors import DataError
from stepaudio.evaluation.bootstrap import Interval, interval, paired_difference, pick


def rows(setting, errors, words, loops=None, seeds=(0,)):
    """errors (clips,) or (clips, seeds)."""
    errors = np.asarray(errors).reshape(len(words), -1)
    loops = np.zeros_like(errors) if loops is None else np.asarray(loops).reshape(errors.shape)
    return [
        {
            "setting": setting,
            "clip": f"{c:03}.wav",
            "seed": s,
            "errors": int(errors[c, k]),
            "words": int(words[c]),
            "char_errors": int(errors[c, k]) * 4,
            "chars": int(words[c]) * 5,
            "loops": int(loops[c, k]),
            "error": "",
        }
        for c in range(len(words))
        for k, s in enumerate(seeds)
    ]


def test_estimates_by_hand():
    a = rows("a", [1, 0, 3], [4, 4, 2], loops=[2, 0, 1])
    assert interval(a).estimate == 0.4
    assert interval(a, "cer").estimate == 16 / 50
    assert interval(a, "loop_rate").estimate == 2 / 3
    assert paired_difference(a, rows("b", [0, 0, 1], [4, 4, 2])).estimate == pytest.approx(0.3)


def test_equals_a_plain_implementation_that_draws_clips_one_by_one():
    rng = np.random.default_rng(1)
    words = rng.integers(3, 20, 25)
    ea, eb = rng.binomial(words, 0.4), rng.binomial(words, 0.25)
    found = paired_difference(rows("a", ea, words), rows("b", eb, words), n_resamples=20_000)
    slow = []
    for _ in range(20_000):
        drawn = rng.integers(0, 25, 25)
        slow.append((ea[drawn].sum() - eb[drawn].sum()) / words[drawn].sum())
    assert [found.low, found.high] == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.005)


@pytest.mark.parametrize("measure", ["wer", "loop_rate"])
def test_covers_a_known_difference_as_often_as_it_says(measure):
    """300 worlds of 50 clips, hard and easy ones; the true difference is -0.1. Percentile intervals are known
    to cover a little less; with 300 trials two standard errors are 2.5 %."""
    rng, hits = np.random.default_rng(7), 0
    for _ in range(300):
        words = np.full(50, 12)
        hard = rng.uniform(0.2, 0.6, 50)
        draw = (lambda p, words=words: rng.binomial(words, p)) if measure == "wer" else (lambda p: rng.random(50) < p)
        a, b = draw(hard - 0.1), draw(hard)
        given = {"errors": a, "loops": None} if measure == "wer" else {"errors": np.zeros(50), "loops": a}
        other = {"errors": b, "loops": None} if measure == "wer" else {"errors": np.zeros(50), "loops": b}
        found = paired_difference(
            rows("a", words=words, **given), rows("b", words=words, **other), measure, n_resamples=500
        )
        hits += found.low <= -0.1 <= found.high
    assert 0.90 <= hits / 300 <= 0.985


def test_pairing_narrows_the_interval():
    """Clips of very unlike difficulty, each a little easier for b: only a paired interval can see it."""
    rng = np.random.default_rng(2)
    words, errors = np.full(40, 50), rng.integers(1, 45, 40)
    a, b = rows("a", errors + 1, words), rows("b", errors, words)
    found = paired_difference(a, b)
    assert found.excludes_zero and found.high - found.low < 1e-9  # every draw of clips gives the same difference
    alone = interval(a)
    assert alone.high - alone.low > 0.1


def test_seeds_of_a_clip_stay_together():
    """Five seeds that agree are no five clips: the interval is as wide as with one."""
    rng = np.random.default_rng(3)
    words, errors = np.full(20, 10), rng.integers(0, 10, 20)
    one = interval(rows("a", errors, words))
    five = interval(rows("a", np.repeat(errors[:, None], 5, 1), words, seeds=range(5)))
    assert (one.low, one.high) == pytest.approx((five.low, five.high))


def test_greedy_with_one_seed_against_sampling_with_many():
    words = np.full(6, 10)
    one, three = rows("g", np.full(6, 2), words), rows("s", np.full((6, 3), 4), words, seeds=(1, 2, 3))
    assert paired_difference(one, three).estimate == pytest.approx(-0.2)


def test_nothing_varies_zero_width():
    a = rows("a", [2, 2, 2], [8, 8, 8])
    found = interval(a)
    assert (found.low, found.estimate, found.high) == (0.25, 0.25, 0.25)
    found = paired_difference(a, a)
    assert (found.low, found.estimate, found.high) == (0, 0, 0) and not found.excludes_zero


def test_same_seed_same_interval():
    rng = np.random.default_rng(4)
    a = rows("a", rng.integers(0, 9, 12), np.full(12, 9))
    assert interval(a, seed=5) == interval(a, seed=5)
    assert interval(a, seed=5, n_resamples=150) != interval(a, seed=6, n_resamples=150)


def test_a_clip_without_words_is_no_division_by_zero():
    found = interval(rows("a", [1, 3], [4, 0]))  # a quarter of the draws hold the wordless clip alone
    assert np.isfinite([found.low, found.high]).all() and found.estimate == 1.0


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: r[:-1], "same clips"),
        (lambda r: [*r, r[0] | {"clip": "other.wav"}], "same clips"),
        (lambda r: [*r, r[0]], "occurs 2 times"),
        (lambda r: [*r, r[0] | {"seed": 1}], "same seeds"),
        (lambda r: [r[0] | {"error": "too short"}, *r[1:]], "too short"),
        (lambda r: r[:1], "at least two"),
        (lambda r: [x | {"words": 0} for x in r], "not defined"),
    ],
)
def test_unlike_sides_are_refused(change, message):
    a = rows("a", [1, 2, 3], [9, 9, 9])
    with pytest.raises(DataError, match=message):
        paired_difference(a, change(rows("b", [1, 1, 1], [9, 9, 9])))


@pytest.mark.parametrize(
    "options, message",
    [({"measure": "bleu"}, "one of wer"), ({"level": 1.0}, "level"), ({"n_resamples": 5}, "100 resamples")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        interval(rows("a", [1, 2], [9, 9]), **options)


def test_pick_by_columns_and_from_pandas():
    both = rows("a", [1, 2], [9, 9]) + rows("b", [3, 4], [9, 9])
    assert [r["errors"] for r in pick(both, setting="b")] == [3, 4]
    pandas = pytest.importorskip("pandas")
    assert interval(pick(pandas.DataFrame(both), setting="b")).estimate == 7 / 18
    with pytest.raises(DataError, match="there are a, b"):
        pick(both, setting="c")
    with pytest.raises(DataError, match="no column 'colour'"):
        pick(both, colour=1)


def test_an_interval_is_written_in_the_format_asked_for():
    found = Interval("wer", 0.25, 0.125, 0.5, 0.95, 40, 1000)
    assert f"{found:.1%}" == "25.0% [12.5%, 50.0%]" and f"{found:+.2f}" == "+0.25 [+0.12, +0.50]"
    assert f"{found}" == str(found) and "40 clips" in str(found)
