"""Intervals of BLEU and chrF, which are scores of whole sets: clips are resampled, and the set is scored again.

What BLEU and chrF need of a clip are counts of n-grams, which add up; so a set of resampled clips costs a sum. The
percentiles are widened for few clips (the expanded percentile interval of Hesterberg 2015), and the farther of the two
ends gives the width. Clips that loop must be left out: where they are rare, no resampling covers them.
`stepaudio.evaluation.coverage` measures how often the intervals hold.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .intervals import Interval
from .quantiles import student_quantile
from .translation import one_line, tokenizer_of

BLEU_ORDER, CHRF_ORDER, BETA = 4, 6, 2  # sacrebleu's defaults
SETS = 1000  # resampled sets, or a few more
FEWEST, CHANGED = 24, 10  # clips that resampling needs, and how many of them must differ for a difference
PART = 1 << 22  # numbers held at a time


def bleu_counts(references: Sequence[str], hypotheses: Sequence[str], tokenizer: str) -> np.ndarray:
    """(n, 10): of each text the n-grams that are right, those that there are, and both lengths, by sacrebleu."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize=tokenizer, effective_order=True)
    found = [metric.sentence_score(h, [r]) for r, h in zip(references, hypotheses, strict=True)]
    return np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in found], np.float64)


def chrf_counts(references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
    """(n, 18): of each text the character n-grams of the hypothesis, of the reference, and those in both."""
    return np.array([_characters(r, h) for r, h in zip(references, hypotheses, strict=True)], np.float64)


def _characters(reference: str, hypothesis: str) -> list[int]:
    texts, found = ["".join(text.split()) for text in (hypothesis, reference)], []
    for n in range(1, CHRF_ORDER + 1):
        ours, theirs = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in texts)
        found.append((ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()))
    return [count for kind in zip(*found, strict=True) for count in kind]


def bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU, 0 to 100, from sums of `bleu_counts` (…, 10); where no n-gram is right, smoothed as sacrebleu does."""
    right, there = sums[..., :BLEU_ORDER], sums[..., BLEU_ORDER : 2 * BLEU_ORDER]
    ours, theirs = sums[..., -2], sums[..., -1]
    halved = 2.0 ** -np.cumsum(right == 0, axis=-1)  # a half, a quarter, ... of one n-gram
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(right > 0, right, halved) / there
        short = np.minimum(0, 1 - theirs / ours)
        found = 100 * np.exp(short + np.log(precision).mean(-1))
    return np.where((right[..., 0] > 0) & (there[..., -1] > 0), found, 0.0)


def chrf(sums: np.ndarray) -> np.ndarray:
    """chrF2, 0 to 100, from sums of `chrf_counts` (…, 18)."""
    ours, theirs, both = (sums[..., k * CHRF_ORDER : (k + 1) * CHRF_ORDER] for k in range(3))
    counts = (ours > 0) & (theirs > 0)
    n = np.maximum(counts.sum(-1), 1)
    precision, recall = (np.where(counts, both / np.maximum(side, 1), 0).sum(-1) / n for side in (ours, theirs))
    below = BETA**2 * precision + recall
    return 100 * (1 + BETA**2) * precision * recall / np.where(below > 0, below, 1)


SCORES = {"bleu": bleu, "chrf": chrf}


def translation_counts(references: Sequence[str], hypotheses: Sequence[str], to: str) -> dict[str, np.ndarray]:
    """What BLEU and chrF need of each text, by "bleu" and "chrf"; parameters as in `translation.translation_scores`."""
    texts = [one_line(text) for text in references], [one_line(text) for text in hypotheses]
    return {"bleu": bleu_counts(*texts, tokenizer_of(to)), "chrf": chrf_counts(*texts)}


def score_interval(
    measure: str, counts: np.ndarray, other: np.ndarray | None = None, *, level: float = 0.95
) -> Interval:
    """The interval of a score or, with `other`, of the difference of two on the same clips.

    Parameters
    ----------
    measure : "bleu" or "chrf". counts, other : (n, ·), as `translation_counts` has them, of clips that do not loop.

    Returns
    -------
    Interval of "loop_free_bleu" or "loop_free_chrf", in points of 100; without ends where fewer than `FEWEST` clips are
    there, or fewer than `CHANGED` differ. The resampling is always the same: a set of clips has one interval.
    """
    n, score = len(counts), SCORES[measure]

    def change(weights: np.ndarray) -> np.ndarray:
        return score(weights @ counts) - (0 if other is None else score(weights @ other))

    estimate, far = float(change(np.ones(n))), math.inf
    if n >= FEWEST and (other is None or np.any(counts != other, axis=1).sum() >= CHANGED):
        size = min(SETS, max(1, PART // n))
        scores = np.concatenate([change(_sets(n, size, part)) for part in range(-(-SETS // size))])
        wider = student_quantile((1 - level) / 2, n - 1) * math.sqrt(n / (n - 1))
        tail = (1 + math.erf(wider / math.sqrt(2))) / 2
        low, high = np.quantile(scores, [tail, 1 - tail])
        far = max(high - estimate, estimate - low)
    return Interval(f"loop_free_{measure}", estimate, float(estimate - far), float(estimate + far), level, n)


@lru_cache(1)
def _sets(n: int, size: int, part: int) -> np.ndarray:
    """(size, n): how often each clip is in a resampled set; the same sets for every score of n clips."""
    return np.random.default_rng(part).multinomial(n, np.full(n, 1 / n), size).astype(np.float64)
