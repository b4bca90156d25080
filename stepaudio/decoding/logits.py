"""Logit rules as small pure functions of arrays; `sampler` decides their order.

Axes: B sequences of a batch, V token ids, N slots of a history.
"""

from __future__ import annotations

import math

import mlx.core as mx

from ..backend.device import on_cpu
from ..backend.ops import log_sum_exp, sort
from .sampling import Sampling

# ---------------------------------------------------------------- rules: (B, V) logits in, (B, V) logits out


def contrasted(logits: mx.array, other: mx.array, weight: float, plausible: float) -> mx.array:
    """Logits plus `weight` times how much likelier each id is than by the logits of another distribution.

    -inf for ids that are less probable than `plausible` times the best, by their own logits.
    """
    own = log_softmax(logits)
    found = logits + weight * (own - log_softmax(other))
    if plausible:
        found = mx.where(own < own.max(axis=-1, keepdims=True) + math.log(plausible), -mx.inf, found)
    return found


def furthest(logits: mx.array, others: list[mx.array]) -> mx.array:
    """Per sequence, the one of several (B, V) whose distribution is furthest from that of the logits.

    By Jensen-Shannon divergence; the first of equals.
    """
    if len(others) == 1:
        return others[0]
    own = log_softmax(logits)
    distances = []
    for other in others:
        theirs = log_softmax(other)
        middle = mx.logaddexp(own, theirs) - math.log(2)
        terms = mx.exp(own) * (own - middle) + mx.exp(theirs) * (theirs - middle)
        distances.append(terms.sum(axis=-1))
    which = mx.argmax(mx.stack(distances), axis=0)
    return mx.take_along_axis(mx.stack(others), which[None, :, None], axis=0)[0]


def log_softmax(logits: mx.array) -> mx.array:
    """Natural log-probabilities (B, V)."""
    return logits - log_sum_exp(logits)[:, None]


def seen_counts(history: mx.array, n_ids: int) -> mx.array:
    """(B, N) ids, -1 where empty -> (B, V) how often each id occurs."""
    B = history.shape[0]
    counts = mx.zeros((B, n_ids + 1))  # the last column swallows the empty slots
    index = mx.where(history < 0, n_ids, history)
    return counts.at[mx.arange(B)[:, None], index].add(1.0)[:, :n_ids]


def penalise(logits: mx.array, counts: mx.array, repetition=1.0, frequency=0.0, presence=0.0) -> mx.array:
    """Repetition, then frequency and presence penalties, on ids with a count above 0."""
    if repetition != 1:
        penalised = mx.where(logits > 0, logits / repetition, logits * repetition)
        logits = mx.where(counts > 0, penalised, logits)
    if frequency:
        logits = logits - frequency * counts
    if presence:
        logits = logits - presence * (counts > 0)
    return logits


def ban_repeated_ngrams(logits: mx.array, history: mx.array, length: mx.array, n: int) -> mx.array:
    """-inf for every id that would complete an n-gram already in the history.

    history (B, N), its first `length` (B,) entries in use, -1 behind them.
    """
    B, N = history.shape
    if n > N:
        return logits
    V = logits.shape[1]
    spots = mx.arange(N - n + 1)  # where an earlier n-gram may start
    match = spots[None, :] + n <= length[:, None]
    for k in range(n - 1):
        tail = mx.take_along_axis(history, mx.maximum(length - (n - 1) + k, 0)[:, None], axis=1)
        match = match & (history[:, k : N - n + 1 + k] == tail)
    last = mx.where(match, history[:, n - 1 :], V)
    banned = mx.zeros((B, V + 1)).at[mx.arange(B)[:, None], last].add(1.0)[:, :V]
    return mx.where(banned > 0, -mx.inf, logits)


def keep_top_k(logits: mx.array, k: int) -> mx.array:
    """-inf below the k-th highest logit; ties with it stay."""
    if k >= logits.shape[-1]:
        return logits
    kth = mx.min(mx.topk(logits, k, axis=-1), axis=-1, keepdims=True)
    return mx.where(logits < kth, -mx.inf, logits)


def keep_top_p(logits: mx.array, p: float) -> mx.array:
    """-inf outside the smallest set of ids whose probability reaches p; the best id always stays.

    Of equal logits of which not all fit, those with the higher ids stay.
    """
    return _top_p_by_values(logits, p) if on_cpu() else _top_p_by_ids(logits, p)


def _top_p_by_ids(logits: mx.array, p: float) -> mx.array:
    """Sorts ids, in few kernels, which is what counts on a GPU; MLX sorts there for a partition too."""
    order = mx.argsort(logits, axis=-1)
    rising = mx.take_along_axis(logits, order, axis=-1)
    drop = mx.cumsum(mx.softmax(rising, axis=-1), axis=-1) <= 1 - p
    drop = drop & (mx.arange(logits.shape[-1]) < logits.shape[-1] - 1)
    return mx.put_along_axis(logits, order, mx.where(drop, -mx.inf, rising), axis=-1)


def _top_p_by_values(logits: mx.array, p: float) -> mx.array:
    """Sorts values alone, which a CPU does in a fraction of the time, and finds the lowest that stays."""
    rising = sort(logits)
    dropped = (mx.cumsum(mx.softmax(rising, axis=-1), axis=-1) <= 1 - p).sum(axis=-1, keepdims=True)
    dropped = mx.minimum(dropped, logits.shape[-1] - 1)
    lowest = mx.take_along_axis(rising, dropped, axis=-1)
    below, tied = logits < lowest, logits == lowest
    surplus = dropped - below.sum(axis=-1, keepdims=True)
    return mx.where(below | (tied & (mx.cumsum(tied.astype(mx.int32), axis=-1) <= surplus)), -mx.inf, logits)


def keep_min_p(logits: mx.array, p: float) -> mx.array:
    """-inf where the probability is below p times the highest."""
    probability = mx.softmax(logits, axis=-1)
    return mx.where(probability < p * probability.max(axis=-1, keepdims=True), -mx.inf, logits)


def warp(logits: mx.array, s: Sampling) -> mx.array:
    """Temperature, top-k, top-p, min-p, in that order; s.temperature must be above 0."""
    logits = logits / s.temperature
    if s.top_k:
        logits = keep_top_k(logits, s.top_k)
    if s.top_p < 1:
        logits = keep_top_p(logits, s.top_p)
    return keep_min_p(logits, s.min_p) if s.min_p else logits
