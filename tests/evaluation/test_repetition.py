"""Degeneration metrics against definitions worked out by hand, slow twins, and what a person would say."""

import math
import zlib
from itertools import product

import numpy as np
import pytest

from stepaudio.errors import DataError
from stepaudio.evaluation import repetition as m


def slow_rep_n(ids, n):
    """Count, for every n-gram, whether the same one starts anywhere before it."""
    starts = range(len(ids) - n + 1)
    repeats = sum(any(ids[j : j + n] == ids[i : i + n] for j in range(i)) for i in starts)
    return repeats / len(starts) if len(starts) > 0 else math.nan


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_rep_n_equals_its_slow_twin(n):
    for length in range(0, 7):
        for ids in product(range(2), repeat=length):
            assert m.rep_n(ids, n) == pytest.approx(slow_rep_n(list(ids), n), nan_ok=True)


def test_rep_n_by_hand():
    assert m.rep_n([5, 5, 5, 5, 5], 4) == 0.5  # two 4-grams, the same
    assert m.rep_n([1, 2, 3, 4, 5], 4) == 0
    assert math.isnan(m.rep_n([1, 2, 3], 4))


def test_seq_rep_4_is_a_mean_over_runs_that_have_4_grams():
    assert m.seq_rep_4([[5] * 5, [1, 2, 3, 4], [9]]) == 0.25
    assert math.isnan(m.seq_rep_4([[1], []]))


def test_rep_window_by_hand():
    ids = [1, 2, 1, 1, 3, 2]
    assert m.rep_window(ids, 1) == 1 / 6  # only the fourth id equals its neighbour
    assert m.rep_window(ids, 2) == 2 / 6
    assert m.rep_window(ids, 3) == 2 / 6
    assert m.rep_window(ids, 4) == 3 / 6  # the last 2 sees the 2 that stands four before it
    assert math.isnan(m.rep_window([], 4))


def test_distinct_n_divides_by_ids_not_by_ngrams():
    assert m.distinct_n([[1, 2, 1]], 1) == 2 / 3
    assert m.distinct_n([[1, 2, 1]], 2) == 2 / 3
    assert m.distinct_n([[1, 2], [1, 2], [2, 3]], 2) == 2 / 6
    assert math.isnan(m.distinct_n([], 1))


def test_loop_period_onset():
    assert m.loop_period_onset([1, 2, 3] + [7, 8, 9, 6] * 10) == (4, 3)
    assert m.loop_period_onset(range(100)) == (None, None)
    assert m.loop_period_onset([4] * 10, min_ids=8) == (1, 0)


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
    "n_ids, packed",
    [
        (256, b"\x01\xff"),
        (257, b"\x01\x00\xff\x00"),
        (6561, b"\x01\x00\xff\x00"),
        (151_688, b"\x01\x00\x00\xff\x00\x00"),
        (1, b"\x00\x00"),
    ],
)
def test_ids_are_packed_in_the_fewest_bytes(n_ids, packed):
    ids = [1, 255] if n_ids > 1 else [0, 0]
    assert m.id_compression_ratio(ids, n_ids) == len(packed) / len(zlib.compress(packed, 6))


def test_looping_codes_compress_and_varied_ones_do_not():
    rng = np.random.default_rng(0)
    varied = rng.integers(0, 6561, 500)
    assert m.id_compression_ratio(varied, 6561) < 1.2 < 10 < m.id_compression_ratio(list(varied[:10]) * 50, 6561)


@pytest.mark.parametrize("ids", [[6561], [-1], [0, 99_999]])
def test_ids_out_of_range_are_refused(ids):
    with pytest.raises(DataError, match="expected ids from 0 to 6560"):
        m.id_compression_ratio(ids, 6561)


def edit_distance(a, b):
    """Levenshtein, the textbook table."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, left = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(left[j] + 1, row[-1] + 1, left[j - 1] + (x != y)))
    return row[-1]


@pytest.mark.parametrize(
    "expected, heard",
    [
        ("The cat sat.", "the cat sat"),
        ("a cat sat here", "cat sat there"),
        ("one two", "one two two two two"),
        ("Don't!", "dont"),
        ("x", ""),
    ],
)
def test_errors_equal_the_edit_distance_after_normalising(expected, heard):
    a, b = m.normalise(expected), m.normalise(heard)
    assert m.word_errors(expected, heard) == (len(a.split()), edit_distance(a.split(), b.split()))
    assert m.char_errors(expected, heard) == (len(a), edit_distance(a, b))


def test_what_is_heard_in_silence_counts():
    assert m.word_errors("", "you you") == (0, 2)
    assert m.char_errors("...", "ab c") == (0, 4)


def test_error_rate_weighs_clips_by_their_words():
    assert m.error_rate([(1, 1), (9, 0)]) == 0.1
    assert math.isnan(m.error_rate([(0, 2)]))


def test_logprobs_and_entropy_by_hand():
    logits = np.log([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]]) + [[7.0], [-900.0]]
    assert m.token_logprobs(logits, [0, 2]) == pytest.approx([math.log(0.5), -math.log(3)])
    assert m.step_entropy(logits) == pytest.approx([1.5 * math.log(2), math.log(3)])


def test_banned_ids_do_not_spoil_the_entropy():
    assert m.step_entropy([[0.0, -np.inf, 0.0], [5.0, -np.inf, -np.inf]]) == pytest.approx([math.log(2), 0])


def test_logprobs_equal_those_of_the_decoding_loop(tiny_model):
    """What `generate` reports is the same number computed on the device."""
    from stepaudio.models.kv_cache import NoCache

    run = tiny_model.generate_with_audio([{"role": "human", "content": "what is the time"}], max_tokens=6)
    request = tiny_model.request([{"role": "human", "content": "what is the time"}])
    x = tiny_model.net.embed(np.array([*request.ids, *run.ids]))
    logits = np.array(tiny_model.net.logits(x, NoCache(tiny_model.net.model.rope)))[0]
    steps = logits[len(request.ids) - 1 : -1]
    assert m.token_logprobs(steps, run.ids).mean() == pytest.approx(run.mean_logprob, abs=1e-4)


def test_logprobs_refuse_unequal_lengths():
    with pytest.raises(DataError, match="T ids"):
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
        lambda: m.id_compression_ratio([], 0),
    ],
)
def test_lengths_under_one_are_refused(call):
    with pytest.raises(DataError, match="expected at least 1, found 0"):
        call()
