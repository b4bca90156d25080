"""Intervals against SciPy's values, worked examples, their promised coverage, and where nothing varies."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from stepaudio.errors import DataError
from stepaudio.evaluation.coverage import SIZES, TEXT_WORLDS, WORLDS, _translations, coverage, text_coverage
from stepaudio.evaluation.intervals import Interval, compare, interval, paired_difference, pick


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
    assert interval(a, "loop_rate").n_clips == 3
    assert paired_difference(a, rows("b", [0, 0, 1], [4, 4, 2])).estimate == pytest.approx(0.3)


def test_loop_rates_are_the_exact_binomial_interval():
    """Clopper and Pearson's limits by SciPy 1.17: `binomtest(k, n).proportion_ci(method="exact")`."""
    words = np.full(48, 10)
    for k, low, high in ((0, 0.0, 0.073973), (3, 0.013079, 0.171960), (48, 0.926027, 1.0)):
        found = interval(rows("a", np.zeros(48), words, loops=np.arange(48) < k), "loop_rate")
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize("looping", [0, 1, 5, 40, 47, 48])
def test_a_rate_of_loops_over_several_seeds_is_a_share(looping):
    """Between 0 and 1, and that of the runs which do not loop turned round: what loops is a matter of naming."""
    words, nothing = np.full(48, 10), np.zeros((48, 3))
    loops = np.stack([np.arange(48) < looping, np.arange(48) <= looping, np.arange(48) < looping], axis=1)
    runs, others = (rows("a", nothing, words, loops=kind, seeds=(0, 1, 2)) for kind in (loops, ~loops))
    found, rest = interval(runs, "loop_rate"), interval(others, "loop_rate")
    assert 0 <= found.low < found.estimate + 1e-12 and found.estimate - 1e-12 < found.high <= 1
    assert (found.low, found.high) == pytest.approx((1 - rest.high, 1 - rest.low))
    change = paired_difference(runs, others, "loop_rate")
    assert -1 <= change.low <= change.estimate <= change.high <= 1


def test_words_that_err_alone_count_as_words_and_clips_that_err_whole_count_as_clips():
    """One error in every other clip of ten words: near the binomial interval of 400 words. The same number of errors
    gathered in two clips: as few as the clips."""
    words = np.full(40, 10)
    spread = interval(rows("a", np.arange(40) % 2, words), "loop_free_wer")
    assert spread.high - spread.low < 0.05
    gathered = interval(rows("a", 10 * (np.arange(40) < 2), words), "loop_free_wer")
    assert gathered.estimate == spread.estimate and gathered.high - gathered.low > 0.13


def test_the_stored_coverage_is_nowhere_under_93_percent():
    stored = json.loads((Path(__file__).parents[2] / "data/coverage.json").read_text())
    assert stored["trials"] >= 1000 and [*stored["worlds"]] == [world.name for world in (*WORLDS, *TEXT_WORLDS)]
    for name, row in stored["worlds"].items():
        assert [*map(int, row["sizes"])] == list(SIZES)
        if name == "difference of errors, few clips ruined":  # the documented limit
            continue
        short = {n: f["covered"] for n, f in row["sizes"].items() if f["covered"] is not None and f["covered"] < 0.93}
        assert not short, f"{name}: {short}"


@pytest.mark.parametrize("name", ["errors without loops, clips unlike", "difference of errors, rarely changed"])
def test_covers_as_often_as_is_stored_where_a_percentile_bootstrap_does_not(name):
    """100 tables of 48 clips: by chance fewer than 87 of 100 are covered once in 1 000 times if 95 % are."""
    world = next(w for w in WORLDS if w.name == name)
    assert coverage(world, 48, 100)["covered"] >= 0.87

    def percentile(*sides_and_measure):
        *sides, _ = sides_and_measure
        errors = np.array([[row["errors"] for row in side] for side in sides])
        words = np.array([row["words"] for row in sides[0]])
        change = errors[0] - errors[1] if len(sides) == 2 else errors[0]
        counts = np.random.default_rng(0).multinomial(len(words), np.full(len(words), 1 / len(words)), size=400)
        low, high = np.quantile((counts @ change) / (counts @ words), [0.025, 0.975])
        return Interval("wer", 0, low, high, 0.95, len(words))

    if len(world.draw(9, np.random.default_rng(0))[1]) == 2:
        assert coverage(world, 48, 100, find=percentile)["covered"] < 0.75


def test_scores_of_translations_are_covered_as_often_as_is_stored(monkeypatch):
    pytest.importorskip("sacrebleu")
    monkeypatch.setattr("stepaudio.evaluation.coverage.TRANSLATIONS", 600)
    _translations.cache_clear()
    found = text_coverage(TEXT_WORLDS[2], 48, 100)
    _translations.cache_clear()
    assert found["covered"] >= 0.87 and found["bounded"] == 1


def test_the_total_has_an_upper_bound_only_where_two_clips_looped():
    words, loops = np.full(30, 10), np.zeros(30)
    none = interval(rows("a", np.ones(30), words, loops))
    assert none.high == math.inf and not none.is_bounded and f"{none:.0%}".endswith("no bound]")
    loops[0] = 1
    assert interval(rows("a", np.ones(30) + 200 * loops, words, loops)).high == math.inf
    loops[1] = 1
    two = interval(rows("a", np.ones(30) + 200 * loops, words, loops))
    assert two.is_bounded and two.low < two.estimate == (30 + 400) / 300 < two.high


def test_three_measures_say_which_of_them_moved():
    """A rule that ends ten loops and harms nobody moves loops and total; one that adds an error a clip moves errors."""
    words, loops = np.full(60, 10), (np.arange(60) < 20).astype(int)
    rng = np.random.default_rng(0)
    plain = rng.binomial(10, 0.1, 60)
    looping = rows("a", plain + loops * rng.integers(100, 300, 60), words, loops)
    fewer = loops * (np.arange(60) % 2)
    cured = rows("b", plain + fewer * rng.integers(100, 300, 60), words, fewer)
    found = compare(cured, looping)
    assert found.moved[0] == "loop_rate" and "loop_free_wer" not in found.moved and "moved: loop_rate" in str(found)
    harmed = compare(rows("c", plain + 1, words), rows("d", plain, words))
    assert harmed.moved == ("loop_free_wer",) and harmed.loop_free.estimate == pytest.approx(0.1)


def test_pairing_narrows_the_interval():
    """Clips of very unlike difficulty, each a little easier for b: only a paired interval can see it."""
    rng = np.random.default_rng(2)
    words, errors = np.full(40, 50), rng.integers(1, 45, 40)
    a, b = rows("a", errors + 1, words), rows("b", errors, words)
    found, alone = paired_difference(a, b, "loop_free_wer"), interval(a, "loop_free_wer")
    assert found.high - found.low < 0.07 and alone.high - alone.low > 0.15


def test_seeds_of_a_clip_stay_together():
    """Five seeds that agree are no five clips: the interval is as wide as with one."""
    rng = np.random.default_rng(3)
    words, errors = np.full(20, 10), rng.integers(0, 10, 20)
    one = interval(rows("a", errors, words), "loop_free_wer")
    five = interval(rows("a", np.repeat(errors[:, None], 5, 1), words, seeds=range(5)), "loop_free_wer")
    assert (one.low, one.high) == pytest.approx((five.low, five.high))


def test_greedy_with_one_seed_against_sampling_with_many():
    words = np.full(6, 10)
    one, three = rows("g", np.full(6, 2), words), rows("s", np.full((6, 3), 4), words, seeds=(1, 2, 3))
    assert paired_difference(one, three).estimate == pytest.approx(-0.2)


def test_where_nothing_differs_the_interval_says_how_little_that_excludes():
    """40 clips of 100 words each, five wrong, none changed: about one clip's change in 40 is not excluded."""
    a = rows("a", np.full(40, 5), np.full(40, 100))
    found = paired_difference(a, a, "loop_free_wer")
    assert found.estimate == 0 and 0.0005 < found.high == -found.low < 0.01


def test_a_clip_without_words_is_no_division_by_zero():
    found = interval(rows("a", [1, 3], [4, 0]), "loop_free_wer")
    assert found.is_bounded and found.estimate == 1.0


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: r[:-1], "same clips"),
        (lambda r: [*r, r[0] | {"clip": "other.wav"}], "same clips"),
        (lambda r: [*r, r[0]], "occurs 2 times"),
        (lambda r: [*r, r[0] | {"seed": 1}], "same seeds"),
        (lambda r: [r[0] | {"error": "too short"}, *r[1:]], "too short"),
        (lambda r: r[:1], "at least two"),
        (lambda r: [r[0] | {"words": 8}, *r[1:]], "expected words on one side"),
    ],
)
def test_unlike_sides_are_refused(change, message):
    a = rows("a", [1, 2, 3], [9, 9, 9])
    with pytest.raises(DataError, match=message):
        paired_difference(a, change(rows("b", [1, 1, 1], [9, 9, 9])))


@pytest.mark.parametrize(
    "options, message",
    [({"measure": "bleu"}, "one of wer"), ({"level": 1.0}, "level")],
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
    found = Interval("wer", 0.25, 0.125, 0.5, 0.95, 40)
    assert f"{found:.1%}" == "25.0% [12.5%, 50.0%]" and f"{found:+.2f}" == "+0.25 [+0.12, +0.50]"
    assert f"{found}" == str(found) and "40 clips" in str(found)
