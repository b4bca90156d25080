"""Scoring: manifests, word errors, repetition and intervals. What a stranger looks for is imported lazily."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names as _lazy_names

if TYPE_CHECKING:
    from .against import Against
    from .alignment import Alignment, Edit, align
    from .clip_score import Score
    from .intervals import Comparison, Interval, compare, interval, paired_difference, pick
    from .manifest import Clip, read_manifest
    from .normalisers import normalise
    from .repetition import loop_period_onset, rep_n
    from .results import read_results
    from .scores import Evaluation, evaluate, score_clips
    from .summary import totals
    from .translation import translation_scores
    from .word_errors import cer, count_errors, mixed_error_rate, read_words, wer

_NAMES = {
    "Against": "against",
    "Alignment": "alignment",
    "Clip": "manifest",
    "Comparison": "intervals",
    "Edit": "alignment",
    "Evaluation": "scores",
    "Interval": "intervals",
    "Score": "clip_score",
    "align": "alignment",
    "cer": "word_errors",
    "compare": "intervals",
    "count_errors": "word_errors",
    "evaluate": "scores",
    "interval": "intervals",
    "loop_period_onset": "repetition",
    "mixed_error_rate": "word_errors",
    "normalise": "normalisers",
    "paired_difference": "intervals",
    "pick": "intervals",
    "read_manifest": "manifest",
    "read_results": "results",
    "read_words": "word_errors",
    "rep_n": "repetition",
    "score_clips": "scores",
    "totals": "summary",
    "translation_scores": "translation",
    "wer": "word_errors",
}

__all__ = [
    "Against", "Alignment", "Clip", "Comparison", "Edit", "Evaluation", "Interval", "Score", "align", "cer", "compare",
    "count_errors", "evaluate", "interval", "loop_period_onset", "mixed_error_rate", "normalise", "paired_difference",
    "pick", "read_manifest", "read_results", "read_words", "rep_n", "score_clips", "totals", "translation_scores",
    "wer",
]  # fmt: skip

__getattr__, __dir__ = _lazy_names(__name__, _NAMES)
