"""How repetitive is a run of tokens, and how certain was the model along it? Published measures, in plain numpy.

A value that is not defined (an n-gram rate of fewer than n tokens) is NaN, never a flattering 0. Axes: T steps of a
run, V entries of the vocabulary.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..decoding.loop_detector import find_loop
from ..errors import DataError

ZLIB_LEVEL = 6  # zlib's default, and what Whisper's compression ratio uses

# ---------------------------------------------------------------- repetition and diversity of tokens


def ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """All n-grams in order, len(tokens) - n + 1 of them, none if `tokens` is shorter. Raises `DataError` if n < 1."""
    _at_least_one(n, "n")
    tokens = [int(t) for t in tokens]
    return list(zip(*(tokens[k:] for k in range(n)), strict=False))


def rep_n(tokens: Sequence[int], n: int) -> float:
    """Share of a run's n-grams that are repeats: 1 - distinct / all, in [0, 1).

    This is seq-rep-n of Welleck et al. 2020 ("Neural Text Generation with Unlikelihood Training", section 6)
    for one sequence, and rep-n / 100 of Su et al. 2022 ("A Contrastive Framework for Neural Text Generation").
    NaN under n tokens.

    >>> rep_n([1, 2, 1, 2, 1], 2)  # (1,2) (2,1) (1,2) (2,1): two of four are repeats
    0.5
    """
    grams = ngrams(tokens, n)
    return 1 - len(set(grams)) / len(grams) if grams else math.nan


def seq_rep_4(runs: Iterable[Sequence[int]]) -> float:
    """Mean of `rep_n(tokens, 4)` over runs (Welleck et al. 2020); runs under 4 tokens have no rate and are left out."""
    return _mean([rep_n(tokens, 4) for tokens in runs])


def rep_window(tokens: Sequence[int], window: int) -> float:
    """Share of tokens that occur among the `window` tokens before them, in [0, 1]: rep/l of Welleck et al. 2020.

    They count the most probable token of each step against the tokens before it, which in a greedy run are these
    tokens. NaN if there are none; the first token can never be a repeat.

    >>> rep_window([7, 8, 7, 7], 1)
    0.25
    """
    _at_least_one(window, "window")
    tokens = [int(t) for t in tokens]
    repeats = sum(t in tokens[max(0, i - window) : i] for i, t in enumerate(tokens))
    return repeats / len(tokens) if tokens else math.nan


def distinct_n(runs: Iterable[Sequence[int]], n: int) -> float:
    """Number of different n-grams in all runs together over the number of tokens in them, in [0, 1].

    Li et al. 2016 ("A Diversity-Promoting Objective Function for Neural Conversation Models", section 5.3): the
    denominator is generated tokens, not n-grams. NaN if there is no token.

    >>> distinct_n([[1, 2, 3], [1, 2]], 2)  # (1,2) and (2,3) over five tokens
    0.4
    """
    runs = [list(tokens) for tokens in runs]
    total = sum(map(len, runs))
    return len({gram for tokens in runs for gram in ngrams(tokens, n)}) / total if total else math.nan


def loop_period_onset(
    tokens: Sequence[int], max_period: int = 64, min_repeats: int = 4, min_tokens: int = 32
) -> tuple[int | None, int | None]:
    """(period in tokens, index of the loop's first token) of the last loop in a run, (None, None) if it never loops.

    Thresholds as in `LoopDetector`.
    """
    loop = find_loop(tokens, max_period=max_period, min_repeats=min_repeats, min_ids=min_tokens)
    return (None, None) if loop is None else (loop.period, loop.onset)


# ---------------------------------------------------------------- compression


def text_compression_ratio(text: str) -> float:
    """Bytes of UTF-8 over bytes after zlib (level 6): what Whisper measures (`decoding.py`), and above 2.4 retries.

    Short texts stay below 1, because zlib adds about 8 bytes. NaN for no text.
    """
    return _ratio(text.encode("utf-8"))


def token_compression_ratio(tokens: Iterable[int], n_tokens: int) -> float:
    """Bytes of tokens over bytes after zlib (level 6); for text tokens and for audio codes.

    Each token is written little-endian in the fewest whole bytes that can hold every token id from 0 to n_tokens - 1
    (audio codes, 6561: 2 bytes; the text vocabulary, 151 688: 3), so ratios compare only at equal `n_tokens`. NaN for
    no tokens.

    Raises
    ------
    DataError : a token id outside 0 .. n_tokens - 1.
    """
    _at_least_one(n_tokens, "n_tokens")
    width = max(1, -(-(n_tokens - 1).bit_length() // 8))
    found = np.asarray(list(tokens), dtype=np.int64)
    if found.size and (found.min() < 0 or found.max() >= n_tokens):
        raise DataError(
            f"compression ratio: expected token ids from 0 to {n_tokens - 1}, found {found.min()} to {found.max()}"
        )
    return _ratio(found.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes())


def _ratio(data: bytes) -> float:
    return len(data) / len(zlib.compress(data, ZLIB_LEVEL)) if data else math.nan


# ---------------------------------------------------------------- certainty along the run


def log_softmax(logits: ArrayLike) -> np.ndarray:
    """Natural log-probabilities over the last axis, in float64; logits of -inf (banned tokens) stay -inf."""
    x = np.asarray(logits, dtype=np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def token_logprobs(logits: ArrayLike, tokens: Sequence[int]) -> np.ndarray:
    """(T, V) logits and the T tokens that were chosen -> (T,) natural log-probabilities of them."""
    scores, chosen = np.asarray(logits, dtype=np.float64), np.asarray(tokens, dtype=np.int64)
    if scores.ndim != 2 or len(scores) != len(chosen):
        raise DataError(
            f"log-probabilities: expected logits (T, V) for T tokens, found {scores.shape} for {len(chosen)} tokens"
        )
    return np.take_along_axis(log_softmax(scores), chosen[:, None], axis=1)[:, 0]


def step_entropy(logits: ArrayLike) -> np.ndarray:
    """Entropy of each step's distribution, (T, V) -> (T,) nats, from 0 (certain) to log V (uniform)."""
    logp = log_softmax(logits)
    p = np.exp(logp)
    return -(p * np.where(p > 0, logp, 0.0)).sum(axis=-1)


def trailing_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Mean of each value and up to window - 1 before it, (T,) -> (T,): log-probability or entropy along a run."""
    _at_least_one(window, "window")
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    end = np.arange(1, len(total))
    start = np.maximum(0, end - window)
    return (total[end] - total[start]) / (end - start)


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def _at_least_one(value: int, name: str) -> None:
    if value < 1:
        raise DataError(f"{name}: expected at least 1, found {value}")
