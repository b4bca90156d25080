"""Scoring: manifests, word errors, repetition and intervals. What a stranger looks for is imported lazily."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names as _lazy_names

if TYPE_CHECKING:
    from .intervals import Comparison, Interval, compare, interval, paired_difference, pick
    from .manifest import Clip, read_manifest
    from .repetition import loop_period_onset, rep_n
    from .scores import Evaluation, Score, evaluate, score_clips, totals
    from .word_errors import cer, count_errors, mixed_error_rate, normalise, read_words, wer

_NAMES = {
    "Clip": "manifest",
    "Comparison": "intervals",
    "Evaluation": "scores",
    "Interval": "intervals",
    "Score": "scores",
    "cer": "word_errors",
    "compare": "intervals",
    "count_errors": "word_errors",
    "evaluate": "scores",
    "interval": "intervals",
    "loop_period_onset": "repetition",
    "mixed_error_rate": "word_errors",
    "normalise": "word_errors",
    "paired_difference": "intervals",
    "pick": "intervals",
    "read_manifest": "manifest",
    "read_words": "word_errors",
    "rep_n": "repetition",
    "score_clips": "scores",
    "totals": "scores",
    "wer": "word_errors",
}

__all__ = [
    "Clip", "Comparison", "Evaluation", "Interval", "Score", "cer", "compare", "count_errors", "evaluate", "interval",
    "loop_period_onset", "mixed_error_rate", "normalise", "paired_difference", "pick", "read_manifest", "read_words",
    "rep_n", "score_clips", "totals", "wer",
]  # fmt: skip

__getattr__, __dir__ = _lazy_names(__name__, _NAMES)
