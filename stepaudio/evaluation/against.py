"""Two evaluations of the same recordings, compared clip by clip: what moved, and by how much at least."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..choices import alternatives
from ..errors import DataError
from ..errors import one_line as shown
from .alignment import MIXED, WORDS
from .bootstrap import SCORES, chrf, chrf_counts, score_interval, translation_counts
from .clip_score import Score
from .intervals import Comparison, Interval, interval, paired_difference
from .manifest import TRANSLATE, Clip, one_task
from .normalisers import normaliser
from .translation import check_sacrebleu, one_line

LEVEL = 0.95
SHOWN = 3  # names of clips that only one side has


@dataclass(frozen=True)
class Against:
    """What moved between two evaluations, here - there; below 0, the errors here are fewer.

    Parameters
    ----------
    change : the paired differences of loops, of errors where neither side loops, and of all errors. The errors are
        those of clips in which somebody speaks. Of translations there are no errors, and it is None.
    translation : of translations, the paired differences of loops and, where neither side loops, of BLEU and chrF, in
        points of 100.
    silence : the same of the share of clips without speech that got words; None with fewer than two such clips.
    here, there : the rates of both sides over the clips that both have, in the order of `differences()`.
    clips : how many clips both have.
    only_here, only_there : names of those that only one side has, or could use; they are left out.
    changed : (name, errors here, errors there) of the clips whose errors differ most, the largest change first; of
        translations, the chrF of each, in whole points.
    """

    change: Comparison | None
    silence: Interval | None
    here: tuple[float, ...]
    there: tuple[float, ...]
    clips: int
    only_here: tuple[str, ...]
    only_there: tuple[str, ...]
    changed: tuple[tuple[str, int, int], ...]
    translation: tuple[Interval, ...] = ()

    def differences(self) -> list[Interval]:
        """All intervals: loops, errors (or scores) without loops, all errors, and words in silence where compared."""
        change = self.change
        found = [change.loop_rate, change.loop_free, change.total] if change else list(self.translation)
        return [*found, self.silence] if self.silence else found

    @property
    def moved(self) -> tuple[str, ...]:
        """The measures whose difference is not 0, as far as intervals of 95 % can tell."""
        return tuple(found.measure for found in self.differences() if found.excludes_zero)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; an end is infinite where the data bound nothing."""
        return {
            "clips": self.clips,
            "only_here": list(self.only_here),
            "only_there": list(self.only_there),
            "differences": {
                d.measure: {"here": a, "there": b, "difference": d.estimate, "low": d.low, "high": d.high}
                for d, a, b in zip(self.differences(), self.here, self.there, strict=True)
            },
            "moved": list(self.moved),
            "changed": [list(found) for found in self.changed],
        }

    def __str__(self) -> str:
        rows = [("", "here", "there", "difference", "moved")]
        for found, a, b in zip(self.differences(), self.here, self.there, strict=True):
            moved = "yes" if found.excludes_zero else "no"
            unit = "f" if found.measure in POINTS else "%"
            rows.append((NAMES[found.measure], f"{a:.1{unit}}", f"{b:.1{unit}}", f"{found:+.1{unit}}", moved))
        widths = [max(len(row[k]) for row in rows) for k in range(5)]
        lines = ["  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        subset = [f"{len(names)} {side} ({_some(names)})" for names, side in self._left_out() if names]
        note = f"clips in both: {self.clips}" + (f"; left out: {', '.join(subset)}" if subset else "")
        changed = ", ".join(f"{name} {there} → {here}" for name, here, there in self.changed)
        what = "chrF" if self.translation else "errors"
        return "\n".join([*lines, note, *([f"{what} that changed most (there → here): {changed}"] if changed else [])])

    def _left_out(self) -> list[tuple[tuple[str, ...], str]]:
        return [(self.only_here, "only here"), (self.only_there, "only there")]


NAMES = {
    "loop_rate": "loops", "loop_free_wer": "word errors without loops", "wer": "word errors",
    "loop_free_mixed": "mixed errors without loops", "mixed": "mixed errors", "hallucination_rate": "words in silence",
    "loop_free_bleu": "BLEU without loops", "loop_free_chrf": "chrF without loops",
}  # fmt: skip
POINTS = ("loop_free_bleu", "loop_free_chrf")  # measures of 0 to 100, not shares


def compare_evaluations(here: Sequence[Score], there: Sequence[Score]) -> Against:
    """Compare two evaluations clip by clip. Clips that only one side has, or could use, are left out and named.

    Raises
    ------
    DataError : the normalisers differ, a clip's text differs, one is of translations and the other is not, or fewer
        than two clips are in both.
    """
    check_pairs([s.clip for s in here], here[0].normalizer if here else "", there)
    keys = _keyed([s.clip for s in here], [s.clip for s in there])
    sides = [dict(zip(found, side, strict=True)) for found, side in zip(keys, (here, there), strict=True)]
    usable = [{k for k, s in side.items() if s.transcript is not None} for side in sides]
    common = [k for k in keys[0] if k in usable[0] & usable[1]]
    speech = [k for k in common if sides[0][k].clip.has_speech]
    silent = [k for k in common if not sides[0][k].clip.has_speech]
    neither = [k for k in speech if not (sides[0][k].loops or sides[1][k].loops)]
    translated = any(side[k].clip.task == TRANSLATE for side in sides for k in common)
    unit = MIXED if any(sides[0][k].measure == MIXED for k in speech) else WORDS
    moved = [_moved("loop_rate", sides, common)]
    if translated:
        moved += _scores_moved(sides, neither)
    else:
        moved += [_moved(f"loop_free_{unit}", sides, neither), _moved(unit, sides, speech)]
    quiet = _moved("hallucination_rate", sides, silent) if len(silent) > 1 else None
    both = [(a, b) for _, a, b in [*moved, *([quiet] if quiet else [])]]
    count = _chrf if translated else lambda score: _errors(score, unit)
    errors = [(sides[0][k].label, count(sides[0][k]), count(sides[1][k])) for k in (speech if translated else common)]
    changed = sorted((e for e in errors if e[1] != e[2]), key=lambda e: -abs(e[1] - e[2]))[:SHOWN]
    left_out = [tuple(side[k].label for k in side if k not in set(common)) for side in sides]
    return Against(
        None if translated else Comparison(moved[0][0], moved[1][0], moved[2][0]),
        quiet[0] if quiet else None,
        tuple(a for a, _ in both),
        tuple(b for _, b in both),
        len(common),
        left_out[0],
        left_out[1],
        tuple(changed),
        tuple(found for found, _, _ in moved) if translated else (),
    )


def _scores_moved(sides: list[dict[str, Score]], keys: list[str]) -> list[tuple[Interval, float, float]]:
    """The paired differences of BLEU and chrF over these clips, and the scores of each side."""
    if not keys:
        return [(Interval(m, math.nan, -math.inf, math.inf, LEVEL, 0), math.nan, math.nan) for m in POINTS]
    to = sides[0][keys[0]].clip.target
    here, there = (
        translation_counts([side[k].clip.text for k in keys], [side[k].hypothesis for k in keys], to) for side in sides
    )
    return [
        (score_interval(m, here[m], there[m]), float(score(here[m].sum(0))), float(score(there[m].sum(0))))
        for m, score in SCORES.items()
    ]


def _chrf(score: Score) -> int:
    """Of one clip, in whole points."""
    return round(float(chrf(chrf_counts([score.clip.text], [score.hypothesis])[0])))


def _errors(score: Score, unit: str) -> int:
    counted = score.counts()
    return counted.mixed_errors if unit == MIXED else counted.errors


def _moved(measure: str, sides: list[dict[str, Score]], keys: list[str]) -> tuple[Interval, float, float]:
    """The paired difference of a measure over these clips, and the rate of each side; unbounded with too few clips."""
    column = "loop_rate" if measure == "hallucination_rate" else measure
    here, there = ([_row(k, side[k], measure) for k in keys] for side in sides)
    try:
        found = paired_difference(here, there, column)
        rates = [interval(side, column).estimate for side in (here, there)]
    except DataError:  # fewer than two clips, or no word in any
        return Interval(measure, math.nan, -math.inf, math.inf, LEVEL, len(keys)), math.nan, math.nan
    return Interval(measure, found.estimate, found.low, found.high, found.level, found.n_clips), rates[0], rates[1]


def check_pairs(clips: Sequence[Clip], normalizer: str, there: Sequence[Score]) -> None:
    """Refuse what cannot be compared, before any work is done; errors as in `compare_evaluations`."""
    tasks = [one_task(clips), one_task(s.clip for s in there if s.transcript is not None)]
    translated = TRANSLATE in tasks
    if translated:
        check_sacrebleu()
        if there and tasks[0] != tasks[1]:
            raise DataError("one evaluation is of translations and the other of transcripts: they share no measure")
        targets = {clip.target for clip in (*clips, *(s.clip for s in there if s.transcript is not None))}
        if len(targets) > 1:
            raise DataError(f"translations into {', '.join(sorted(targets))}: compare each language by itself")
    elif other := {s.normalizer for s in there} - {normalizer}:
        raise DataError(
            f"the other evaluation was scored by normalizer {alternatives(tuple(other))}, this one by {normalizer}: "
            f"give the same to both, for instance by scoring the other file again with --normalizer {normalizer}"
        )
    keys = _keyed(clips, [s.clip for s in there])
    said = dict(zip(keys[1], (s for s in there), strict=True))
    usable = 0
    for key, clip in zip(keys[0], clips, strict=True):
        score = said.get(key)
        if score is None or score.transcript is None:
            continue
        usable += 1
        by = one_line if translated else normaliser(normalizer, clip.text, clip.language)
        if by(clip.text) != by(score.clip.text) or clip.has_speech != score.clip.has_speech:
            raise DataError(
                f"{key}: the reference text is not that of the other evaluation ({clip.text!r:.100} here, "
                f"{score.clip.text!r:.100} there): compare evaluations of the same table"
            )
    if usable < 2:
        raise DataError(
            f"the evaluations have {usable} clips in common, and a comparison needs two: here for instance "
            f"{_some(keys[0])}, there {_some(keys[1])}"
        )


def _keyed(here: Sequence[Clip], there: Sequence[Clip]) -> tuple[list[str], list[str]]:
    """What each clip is known by on both sides: as much of its path as tells it from all others.

    Folders that differ between the two (a table that moved) do not count; a recording that comes twice is numbered.
    """
    paths = [[clip.file.parts for clip in side] for side in (here, there)]
    n, deepest = 1, max((len(p) for side in paths for p in side), default=1)
    while n < deepest and any(len(set(side)) > len({p[-n:] for p in side}) for side in paths):
        n += 1
    ends = [_numbered("/".join(p[-n:]) for p in side) for side in paths]
    return ends[0], ends[1]


def _numbered(names: Iterable[str]) -> list[str]:
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def _row(key: str, score: Score, measure: str) -> dict[str, Any]:
    loops = int(score.words_in_silence > 0) if measure == "hallucination_rate" else score.loops
    return {"clip": key, "loops": loops, **score.counts()._asdict()}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return shown(", ".join(names[:SHOWN]) + more)
