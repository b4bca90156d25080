"""Measures of repetition against values worked out by hand, and plain implementations of the definitions."""

import math
import zlib
from itertools import product

import numpy as np
import pytest

from stepaudio.errors import DataError
from stepaudio.evaluation import repetition as m


def slow_rep_n(tokens, n):
    """Count, for every n-gram, whether the same one starts anywhere before it."""
    starts = range(len(tokens) - n + 1)
    repeats = sum(any(tokens[j : j + n] == tokens[i : i + n] for j in range(i)) for i in starts)
    return repeats / len(starts) if len(starts) > 0 else math.nan


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_rep_n_equals_a_direct_count(n):
    for length in range(0, 7):
        for tokens in product(range(2), repeat=length):
            assert m.rep_n(tokens, n) == pytest.approx(slow_rep_n(list(tokens), n), nan_ok=True)


def test_rep_n_by_hand():
    assert m.rep_n([5, 5, 5, 5, 5], 4) == 0.5  # two 4-grams, the same
    assert m.rep_n([1, 2, 3, 4, 5], 4) == 0
    assert math.isnan(m.rep_n([1, 2, 3], 4))


def test_seq_rep_4_is_a_mean_over_runs_that_have_4_grams():
    assert m.seq_rep_4([[5] * 5, [1, 2, 3, 4], [9]]) == 0.25
    assert math.isnan(m.seq_rep_4([[1], []]))


def test_rep_window_by_hand():
    tokens = [1, 2, 1, 1, 3, 2]
    assert m.rep_window(tokens, 1) == 1 / 6  # only the fourth equals its neighbour
    assert m.rep_window(tokens, 2) == 2 / 6
    assert m.rep_window(tokens, 3) == 2 / 6
    assert m.rep_window(tokens, 4) == 3 / 6  # the last 2 sees the 2 that stands four before it
    assert math.isnan(m.rep_window([], 4))


def test_distinct_n_divides_by_tokens_not_by_ngrams():
    assert m.distinct_n([[1, 2, 1]], 1) == 2 / 3
    assert m.distinct_n([[1, 2, 1]], 2) == 2 / 3
    assert m.distinct_n([[1, 2], [1, 2], [2, 3]], 2) == 2 / 6
    assert math.isnan(m.distinct_n([], 1))


def test_loop_period_onset():
    assert m.loop_period_onset([1, 2, 3, *[7, 8, 9, 6] * 10]) == (4, 3)
    assert m.loop_period_onset(range(100)) == (None, None)
    assert m.loop_period_onset([4] * 10, min_tokens=8) == (1, 0)


def test_text_compression_ratio_is_whispers():
    text = "so und so und so und so und " * 8 + "é"
    raw = text.encode("utf-8")
    assert m.text_compression_ratio(text) == len(raw) / len(zlib.compress(raw))
    long = " ".join(f"{i * i % 97} and {i % 7}" for i in range(3000))  # long enough for the level to matter
    assert m.text_compression_ratio(long) == len(long) / len(zlib.compress(long.encode()))
    assert len(zlib.compress(long.encode(), 1)) != len(zlib.compress(long.encode()))
    assert (
        m.text_compression_ratio("The quick brown fox jumps over the lazy dog.")
        < 1
        < 2.4
        < m.text_compression_ratio(text)
    )
    assert math.isnan(m.text_compression_ratio(""))


@pytest.mark.parametrize(
    "n_tokens, packed",
    [
        (256, b"\x01\xff"),
        (257, b"\x01\x00\xff\x00"),
        (6561, b"\x01\x00\xff\x00"),
        (151_688, b"\x01\x00\x00\xff\x00\x00"),
        (1, b"\x00\x00"),
    ],
)
def test_tokens_are_packed_in_the_fewest_bytes(n_tokens, packed):
    tokens = [1, 255] if n_tokens > 1 else [0, 0]
    assert m.token_compression_ratio(tokens, n_tokens) == len(packed) / len(zlib.compress(packed, 6))


def test_looping_codes_compress_and_varied_ones_do_not():
    rng = np.random.default_rng(0)
    varied = rng.integers(0, 6561, 500)
    assert m.token_compression_ratio(varied, 6561) < 1.2 < 10 < m.token_compression_ratio(list(varied[:10]) * 50, 6561)


@pytest.mark.parametrize("tokens", [[6561], [-1], [0, 99_999]])
def test_tokens_out_of_range_are_refused(tokens):
    with pytest.raises(DataError, match="expected token ids from 0 to 6560"):
        m.token_compression_ratio(tokens, 6561)


def test_logprobs_and_entropy_by_hand():
    logits = np.log([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]]) + np.array([[7.0], [-900.0]])
    assert m.token_logprobs(logits, [0, 2]) == pytest.approx([math.log(0.5), -math.log(3)])
    assert m.step_entropy(logits) == pytest.approx([1.5 * math.log(2), math.log(3)])


def test_banned_tokens_leave_the_entropy_finite():
    assert m.step_entropy([[0.0, -np.inf, 0.0], [5.0, -np.inf, -np.inf]]) == pytest.approx([math.log(2), 0])


def test_logprobs_equal_those_of_the_decoding_loop(tiny_model):
    """What `generate` reports is the same number computed on the device."""
    from stepaudio.models.kv_cache import NoCache

    run = tiny_model.generate_with_audio([{"role": "human", "content": "what is the time"}], max_tokens=6)
    request = tiny_model.request([{"role": "human", "content": "what is the time"}])
    x = tiny_model.net.embed(np.array([*request.tokens, *run.tokens]))
    logits = np.array(tiny_model.net.logits(x, NoCache(tiny_model.net.model.rope)))[0]
    steps = logits[len(request.tokens) - 1 : -1]
    assert m.token_logprobs(steps, run.tokens).mean() == pytest.approx(run.mean_logprob, abs=1e-4)


def test_logprobs_refuse_unequal_lengths():
    with pytest.raises(DataError, match="T tokens"):
        m.token_logprobs(np.zeros((3, 5)), [1, 2])


def test_trailing_mean_by_hand():
    assert m.trailing_mean([2, 4, 6, 8], 2) == pytest.approx([2, 3, 5, 7])
    assert m.trailing_mean([2, 4, 6], 9) == pytest.approx([2, 3, 4])
    assert len(m.trailing_mean([], 3)) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: m.rep_n([1], 0),
        lambda: m.distinct_n([[1]], 0),
        lambda: m.rep_window([1], 0),
        lambda: m.trailing_mean([1], 0),
        lambda: m.token_compression_ratio([], 0),
    ],
)
def test_lengths_under_one_are_refused(call):
    with pytest.raises(DataError, match="expected at least 1, found 0"):
        call()
