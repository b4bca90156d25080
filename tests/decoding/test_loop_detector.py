"""The loop detector against a brute-force reference, and against what people rightly say twice."""

import numpy as np
import pytest
from reference import loop_reference

from stepaudio.decoding.loop_detector import Loop, LoopDetector, find_loop
from stepaudio.errors import DecodeError

SMALL = {"max_period": 7, "min_repeats": 3, "min_ids": 6}
USUAL = {"max_period": 64, "min_repeats": 4, "min_ids": 32}


def same_as_reference(tokens, thresholds) -> int:
    """Compare after every id; returns how often there was a loop."""
    detector, found = LoopDetector(**thresholds), 0
    for n, token in enumerate(tokens, 1):
        loop, want = detector.push(token), loop_reference(tokens[:n], **thresholds)
        assert (loop and (loop.period, loop.onset)) == want, (tokens[:n], thresholds)
        if loop:
            assert loop.repeats == pytest.approx((n - loop.onset) / loop.period)
            found += 1
    return found


def test_random_ids():
    rng = np.random.default_rng(0)
    vocabularies = [1, 2, 2, 2, 3, 3, 5] * 8
    found = [same_as_reference(rng.integers(0, vocab, 60).tolist(), SMALL) for vocab in vocabularies]
    assert sum(f > 0 for f in found) > 15 and sum(f == 0 for f in found) > 15


@pytest.mark.parametrize("thresholds", [SMALL, USUAL, {"max_period": 1, "min_repeats": 2, "min_ids": 2}], ids=str)
@pytest.mark.parametrize("period", [1, 2, 3, 7, 8, 20, 64, 65])
def test_planted_loops(period, thresholds):
    rng = np.random.default_rng(period)
    before, block = rng.permutation(50)[:23].tolist(), rng.integers(50, 99, period).tolist()
    tokens = before + (block * 40)[: max(45, 5 * period)] + rng.permutation(50)[:9].tolist()
    found = same_as_reference(tokens, thresholds)
    if len(set(block)) == period:
        assert (found > 0) == (period <= thresholds["max_period"])


def test_onset_period_and_repeats():
    loop = find_loop([5, 6, 7] + [1, 2, 3, 4] * 9)
    assert loop == Loop(period=4, onset=3, repeats=9.0)
    # The first id of the loop may be older than the first whole block: 4 stands before it here.
    assert find_loop([5, 6, 4] + [1, 2, 3, 4] * 9) == Loop(4, 2, 37 / 4)


def test_a_loop_of_one_is_not_a_loop_of_two():
    assert find_loop([9] * 40).period == 1
    assert find_loop([8, 9] * 40).period == 2


def test_a_loop_that_ended_is_still_reported():
    assert find_loop([1, 2] * 30 + [7, 8, 9]).period == 2
    detector = LoopDetector()
    answers = [detector.push(t) for t in [1, 2] * 30 + [7, 8, 9]]
    assert answers[-4].period == 2 and answers[-3:] == [None] * 3 and answers[:31] == [None] * 31


@pytest.mark.parametrize(
    "tokens",
    [
        [4] * 31,  # "no no no", a row of equal digits
        [1, 2, 3] * 10 + [9],
        list(range(12)) * 3,  # a chorus of three
        [1, 1, 2, 2, 3, 3] * 3 + [4],
        list(range(100)),
        [],
        [1],
        (list(range(40)) * 3)[:-1],
    ],
    ids=lambda tokens: f"{len(tokens)} tokens",
)
def test_intended_repetition_is_no_loop(tokens):
    assert find_loop(tokens) is None and loop_reference(tokens, **USUAL) is None


@pytest.mark.parametrize("bad", [{"max_period": 0}, {"min_repeats": 1}, {"min_ids": 1}, {"min_repeats": -4}])
def test_refuses_thresholds_that_make_everything_a_loop(bad):
    with pytest.raises(DecodeError, match=next(iter(bad))):
        LoopDetector(**bad)
