"""How degenerate is a run, and how wrong? Numbers over ids, text and logits; plain numpy, zlib and jiwer.

Knows no nets, no files and no sampling. A value that is not defined (an n-gram rate of fewer than n ids) is NaN,
never a flattering 0. Axes: T steps of a run, V ids.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence

import jiwer
import numpy as np

from ..decoding.loop_detector import find_loop
from ..errors import DataError
from .wer import count_errors, normalise

ZLIB_LEVEL = 6  # zlib's default, and what Whisper's compression ratio uses

# ---------------------------------------------------------------- repetition and diversity of ids


def ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """All n-grams in order, len(ids) - n + 1 of them, none if `ids` is shorter. Raises `DataError` if n < 1."""
    _at_least_one(n, "n")
    ids = [int(t) for t in ids]
    return list(zip(*(ids[k:] for k in range(n)), strict=False))


def rep_n(ids: Sequence[int], n: int) -> float:
    """Share of a run's n-grams that are repeats: 1 - distinct / all, in [0, 1).

    This is seq-rep-n of Welleck et al. 2020 ("Neural Text Generation with Unlikelihood Training", section 6)
    for one sequence, and rep-n / 100 of Su et al. 2022 ("A Contrastive Framework for Neural Text Generation").
    NaN under n ids.

    >>> rep_n([1, 2, 1, 2, 1], 2)  # (1,2) (2,1) (1,2) (2,1): two of four are repeats
    0.5
    """
    grams = ngrams(ids, n)
    return 1 - len(set(grams)) / len(grams) if grams else math.nan


def seq_rep_4(runs: Iterable[Sequence[int]]) -> float:
    """Mean of `rep_n(ids, 4)` over runs (Welleck et al. 2020), leaving out runs under 4 ids, which have no rate."""
    return _mean([rep_n(ids, 4) for ids in runs])


def rep_window(ids: Sequence[int], window: int) -> float:
    """Share of ids that occur among the `window` ids before them, in [0, 1]: rep/l of Welleck et al. 2020.

    They count the most probable id of each step against the ids before it, which in a greedy run are these ids. NaN
    if there are none; the first id can never be a repeat.

    >>> rep_window([7, 8, 7, 7], 1)
    0.25
    """
    _at_least_one(window, "window")
    ids = [int(t) for t in ids]
    repeats = sum(t in ids[max(0, i - window) : i] for i, t in enumerate(ids))
    return repeats / len(ids) if ids else math.nan


def distinct_n(runs: Iterable[Sequence[int]], n: int) -> float:
    """Number of different n-grams in all runs together over the number of ids in them, in [0, 1].

    Li et al. 2016 ("A Diversity-Promoting Objective Function for Neural Conversation Models", section 5.3): the
    denominator is generated tokens, not n-grams. NaN if there is no id.

    >>> distinct_n([[1, 2, 3], [1, 2]], 2)  # (1,2) and (2,3) over five ids
    0.4
    """
    runs = [list(ids) for ids in runs]
    total = sum(map(len, runs))
    return len({gram for ids in runs for gram in ngrams(ids, n)}) / total if total else math.nan


def loop_period_onset(
    ids: Sequence[int], max_period: int = 64, min_repeats: int = 4, min_ids: int = 32
) -> tuple[int | None, int | None]:
    """(period in ids, index of the loop's first id) of the last loop in a run, (None, None) if it never loops.

    Thresholds as in `loops.LoopDetector`.
    """
    loop = find_loop(ids, max_period=max_period, min_repeats=min_repeats, min_ids=min_ids)
    return (None, None) if loop is None else (loop.period, loop.onset)


# ---------------------------------------------------------------- compression


def text_compression_ratio(text: str) -> float:
    """Bytes of UTF-8 over bytes after zlib (level 6): what Whisper measures (`decoding.py`), and above 2.4 retries.

    Short texts stay below 1, because zlib adds about 8 bytes. NaN for no text.
    """
    return _ratio(text.encode("utf-8"))


def id_compression_ratio(ids: Sequence[int], n_ids: int) -> float:
    """Bytes of ids over bytes after zlib (level 6); for text ids and for audio codes.

    Each id is written little-endian in the fewest whole bytes that can hold every id from 0 to n_ids - 1 (audio
    codes, 6561: 2 bytes; the text vocabulary, 151 688: 3), so ratios compare only at equal `n_ids`. NaN for no ids.

    Raises
    ------
    DataError : an id outside 0 .. n_ids - 1.
    """
    _at_least_one(n_ids, "n_ids")
    width = max(1, -(-(n_ids - 1).bit_length() // 8))
    found = np.asarray(list(ids), dtype=np.int64)
    if found.size and (found.min() < 0 or found.max() >= n_ids):
        raise DataError(f"compression ratio: expected ids from 0 to {n_ids - 1}, found {found.min()} to {found.max()}")
    return _ratio(found.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes())


def _ratio(data: bytes) -> float:
    return len(data) / len(zlib.compress(data, ZLIB_LEVEL)) if data else math.nan


# ---------------------------------------------------------------- errors against what was said


def word_errors(expected: str, heard: str) -> tuple[int, int]:
    """(words expected, word errors): jiwer's alignment after `evaluate.normalise`."""
    return count_errors(expected, heard)


def char_errors(expected: str, heard: str) -> tuple[int, int]:
    """(characters expected, character errors): as `word_errors`; a space between words counts as a character."""
    want, got = normalise(expected), normalise(heard)
    if not want:
        return 0, len(got)
    found = jiwer.process_characters(want, got)
    return len(want), found.substitutions + found.deletions + found.insertions


def error_rate(pairs: Iterable[tuple[int, int]]) -> float:
    """All errors over all units of (units, errors) pairs: WER or CER of a set. NaN if nothing was expected."""
    pairs = list(pairs)
    units = sum(n for n, _ in pairs)
    return sum(errors for _, errors in pairs) / units if units else math.nan


# ---------------------------------------------------------------- how sure it was, along the run


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log-probabilities over the last axis, in float64; logits of -inf (banned ids) stay -inf."""
    x = np.asarray(logits, dtype=np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def token_logprobs(logits: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """(T, V) logits and the T ids that were chosen -> (T,) natural log-probabilities of them."""
    logits, ids = np.asarray(logits, dtype=np.float64), np.asarray(ids, dtype=np.int64)
    if logits.ndim != 2 or len(logits) != len(ids):
        raise DataError(f"log-probabilities: expected logits (T, V) for T ids, found {logits.shape} for {len(ids)} ids")
    return np.take_along_axis(log_softmax(logits), ids[:, None], axis=1)[:, 0]


def step_entropy(logits: np.ndarray) -> np.ndarray:
    """Entropy of each step's distribution, (T, V) -> (T,) nats, from 0 (certain) to log V (clueless)."""
    logp = log_softmax(logits)
    p = np.exp(logp)
    return -(p * np.where(p > 0, logp, 0.0)).sum(axis=-1)


def trailing_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Mean of each value and up to window - 1 before it, (T,) -> (T,): log-probability or entropy along a run."""
    _at_least_one(window, "window")
    values = np.asarray(values, dtype=np.float64)
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - window)
    return (total[end] - total[start]) / (end - start)


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def _at_least_one(value: int, name: str) -> None:
    if value < 1:
        raise DataError(f"{name}: expected at least 1, found {value}")
