"""Sums over the scores of a table: rates with their intervals, errors by kind, the worst clips; and how they print."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import DataError, one_line
from .alignment import KINDS, MIXED, WIDTH, WORDS, most_frequent
from .bootstrap import SCORES, score_interval, translation_counts
from .clip_score import Counts, Score
from .intervals import Interval, interval
from .manifest import TRANSLATE, one_task
from .normalisers import OURS, WHISPER, has_whisper, normalise, whisper_kind
from .quantiles import exact_interval
from .translation import translation_scores

LEVEL = 0.95
MOST = 5  # worst clips and most frequent confusions of the totals
BLEU = "bleu"
GLUE = "\u00a0"  # a blank at which no line breaks
COUNTED = {WORDS: ("words", "errors"), "cer": ("chars", "char_errors"), MIXED: ("mixed_units", "mixed_errors")}


def rows_of(scores: Iterable[Score], normalizer: str | None = None) -> list[dict[str, Any]]:
    """The scores as rows of `intervals.interval`, one for each clip that could be used."""
    good = [score for score in scores if score.transcript is not None]
    return [{"clip": f"{s.label} {i}", "loops": s.loops, **s.counts(normalizer)._asdict()} for i, s in enumerate(good)]


def totals(scores: Iterable[Score], known_words: set[str] | None = None) -> dict:
    """Sums over all scores.

    Returns
    -------
    dict with `measure`, the name of the rate to read: "mixed" if a reference has a script without blanks between
    words, "wer" elsewhere, "bleu" of translations. Then:

    - `wer`, `cer` and `mixed`: all errors over all words, characters, or characters of such scripts and words
      elsewhere, of the clips in which somebody speaks; a rate of nothing is None. `loop_free_wer` or `loop_free_mixed`
      is that of the clips without a loop (`clips_loop_free` of them). `words`, `errors`, `chars`,
      `char_errors`, `mixed_units` and `mixed_errors` are what they are made of, `substitutions`, `deletions` and
      `insertions` the errors of `measure` by kind, `confusions` (reference, hypothesis, how often) and `worst` the most
      frequent and the clips with most errors.
    - `clips`, `failed`, `loops` (clips with one), `audio_seconds`, `rtf` (seconds of work per second of audio).
    - `clips_without_speech`, `hallucinated` (of these, with words), `hallucination_rate` and `words_per_minute`.
    - `intervals`: of 95 %, measure -> estimate, low, high (None where the data bound nothing) and clips.
    - `normalizer`, and `by_normalizer`: the same rates by each normaliser, Whisper's too where it is installed.
    - `bleu`, `chrf` and their signatures, of translations, for which no error rate is given; `loop_free_bleu` and
      `loop_free_chrf` are those of the clips without a loop, and have the intervals.
    - With `known_words` (say, a model's training vocabulary) `wer_known` and `clips_known`: the clips all of whose
      words are among them.
    """
    scores = list(scores)
    good = [s for s in scores if s.transcript is not None]
    speech, silent = [s for s in good if s.clip.has_speech], [s for s in good if not s.clip.has_speech]
    if one_task(s.clip for s in good) == TRANSLATE:
        line = {"measure": BLEU, "wer": None, "cer": None, "mixed": None} | _translated(speech)
    else:
        line = _error_rates(speech)
    transcripts = [s.transcript for s in good if s.transcript is not None]
    audio = sum(t.audio_seconds for t in transcripts)
    line |= {
        "clips": len(good),
        "failed": len(scores) - len(good),
        "loops": sum(s.loops > 0 for s in good),
        "audio_seconds": round(audio, 2),
        "rtf": _share(sum(t.wall_seconds for t in transcripts), audio),
    }
    line |= _silence(silent)
    line["intervals"] = _intervals(good, speech, silent, line["measure"])
    if line["measure"] != BLEU:
        line |= _by_normalizer(good, speech, line["measure"])
    if known_words is not None:
        known = [s for s in speech if s.words and set(normalise(s.clip.text).split()) <= known_words]
        line["wer_known"] = _share(sum(s.errors for s in known), sum(s.words for s in known))
        line["clips_known"] = len(known)
    return line


def _error_rates(speech: list[Score]) -> dict:
    measure = MIXED if any(s.measure == MIXED for s in speech) else WORDS
    free = [s for s in speech if not s.loops]
    counted, alignments = _sum(speech), [s.alignment(measure) for s in speech]
    kinds: Counter[str] = sum((a.kinds for a in alignments), Counter())
    wrong = sorted(zip(speech, alignments, strict=True), key=lambda pair: -pair[1].errors)
    worst = [(s, a) for s, a in wrong[:MOST] if a.errors]
    return {
        "measure": measure,
        **_rates(counted),
        f"loop_free_{measure}": _rates(_sum(free))[measure],
        "clips_loop_free": len(free),
        **counted._asdict(),
        **{f"{kind}s": kinds[kind] for kind in KINDS},
        "confusions": [list(found) for found in most_frequent(alignments)[:MOST]],
        "worst": [{"file": s.label, "errors": a.errors, "units": a.units, "loops": s.loops} for s, a in worst],
    }


def _sum(scores: Iterable[Score], normalizer: str | None = None) -> Counts:
    counted = [s.counts(normalizer) for s in scores]
    return Counts(*map(sum, zip(*counted, strict=True))) if counted else Counts(0, 0, 0, 0, 0, 0)


def _rates(counted: Counts) -> dict[str, float | None]:
    found = counted._asdict()
    return {rate: _share(found[errors], found[units]) for rate, (units, errors) in COUNTED.items()}


def _translated(speech: list[Score]) -> dict:
    if not speech:
        return {"bleu": None, "chrf": None, "loop_free_bleu": None, "loop_free_chrf": None, "clips_loop_free": 0}
    targets = {s.clip.target for s in speech}
    if len(targets) > 1:
        raise DataError(f"translations into {', '.join(sorted(targets))}: score each language as a table of its own")
    to = targets.pop()
    free = [s for s in speech if not s.loops]
    found = {"to": to} | _scored(speech, to)
    without = {f"loop_free_{name}": _scored(free, to)[name] if free else None for name in SCORES}
    return found | without | {"clips_loop_free": len(free)}


def _scored(scores: list[Score], to: str) -> dict:
    return translation_scores([s.clip.text for s in scores], [s.hypothesis for s in scores], to)


def _silence(silent: list[Score]) -> dict:
    words = [s.words_in_silence for s in silent]
    minutes = sum(s.transcript.audio_seconds for s in silent if s.transcript is not None) / 60
    return {
        "clips_without_speech": len(silent),
        "hallucinated": sum(n > 0 for n in words),
        "hallucination_rate": _share(sum(n > 0 for n in words), len(words)),
        "words_per_minute": _share(sum(words), minutes),
    }


def _intervals(good: list[Score], speech: list[Score], silent: list[Score], measure: str) -> dict:
    found: dict[str, Any] = {"level": LEVEL, "loop_rate": _share_of(good, lambda s: s.loops > 0)}
    if measure == BLEU:
        found |= {f"loop_free_{name}": _score_ends(speech, name) for name in SCORES}
    else:
        found |= _error_intervals(rows_of(speech), measure)
    if silent:
        found["hallucination_rate"] = _share_of(silent, lambda s: s.words_in_silence > 0)
    return found


def _score_ends(speech: list[Score], name: str) -> dict | None:
    """The interval of BLEU or chrF of the clips without a loop, in points of 100."""
    free = [s for s in speech if not s.loops]
    if not free:
        return None
    texts = [s.clip.text for s in free], [s.hypothesis for s in free]
    return _ends(lambda: score_interval(name, translation_counts(*texts, free[0].clip.target)[name]), digits=2)


def _share_of(scores: list[Score], holds: Callable[[Score], bool]) -> dict | None:
    """The share of clips of which something holds, with its exact interval."""
    if not scores:
        return None
    n, of = sum(map(holds, scores)), len(scores)
    return _ends(lambda: Interval("", n / of, *exact_interval(n, of, LEVEL), LEVEL, of))


def _error_intervals(rows: list[dict], measure: str) -> dict:
    names = [name for unit in dict.fromkeys((measure, "cer")) for name in (f"loop_free_{unit}", unit)]
    return {name: _ends(lambda name=name: interval(rows, name)) for name in names}


def _ends(find: Callable[[], Interval], digits: int = 4) -> dict | None:
    """An interval in plain values; None where the clips are too few for one."""
    try:
        found = find()
    except DataError:
        return None
    low, high = (round(end, digits) if math.isfinite(end) else None for end in (found.low, found.high))
    return {"estimate": round(found.estimate, digits), "low": low, "high": high, "clips": found.n_clips}


def _by_normalizer(good: list[Score], speech: list[Score], measure: str) -> dict:
    own = good[0].normalizer if good else OURS
    names: list[str] = list(dict.fromkeys([own, OURS, *([WHISPER] if has_whisper() else [])]))
    line: dict[str, Any] = {"normalizer": own, "by_normalizer": {}}
    for name in names:
        counted = _sum(speech, name)
        found: dict[str, Any] = _rates(counted) | {n: getattr(counted, n) for n in COUNTED[measure]}
        if name == WHISPER:
            found["kind"] = " and ".join(sorted({whisper_kind(s.clip.text, s.clip.language) for s in speech}))
        found["intervals"] = {
            n: _ends(lambda n=n, name=name: interval(rows_of(speech, name), n))
            for n in (f"loop_free_{measure}", measure)
        }
        line["by_normalizer"][name] = found
    return line


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


# --- printed --------------------------------------------------------------------------------------------------------


def percent(value: float | None) -> str:
    """A share as percent, "-" for none."""
    return "-" if value is None else f"{value:.1%}"


def summary(line: dict) -> str:
    """The totals for a screen: a table of rates with intervals, errors by kind, the worst clips, one sentence."""
    rows = [("", "rate", "95 % interval", "counted")]
    rows += _rows_of_translation(line) if line["measure"] == BLEU else _rows_of_errors(line)
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    shown = [
        f"{name:{widths[0]}}  {rate:>{widths[1]}}  {ends:{widths[2]}}  {counted}".rstrip()
        for name, rate, ends, counted in rows
    ]
    return "\n".join([*shown, *_details(line), "", sentence(line)])


def _rows_of_errors(line: dict) -> list[tuple[str, str, str, str]]:
    measure, found, rows = line["measure"], line["intervals"], [_loop_row(line)]
    name = "word errors" if measure == WORDS else "mixed errors"
    of = "words" if measure == WORDS else "characters and words"
    errors, units = (line[n] for n in COUNTED[measure][::-1])
    free = found[f"loop_free_{measure}"]
    rows.append((name, percent(line[measure]), _between(found[measure]), f"{errors} of {units} {of}"))
    rate = percent(line[f"loop_free_{measure}"])
    rows.append((f"{name} without loops", rate, _between(free), f"in {line['clips_loop_free']} clips"))
    for name, other in line["by_normalizer"].items():
        if name != line["normalizer"]:
            kind = f"Whisper's {other['kind'].title()}" if name == WHISPER else f"normaliser {name}"
            errors, units = (other[n] for n in COUNTED[measure][::-1])
            rows.append(
                (f"  by {kind}", percent(other[measure]), _between(other["intervals"][measure]), f"{errors} of {units}")
            )
    counted = f"{line['char_errors']} of {line['chars']} characters"
    rows.append(("character errors", percent(line["cer"]), _between(found["cer"]), counted))
    return rows + _silence_row(line)


def _rows_of_translation(line: dict) -> list[tuple[str, str, str, str]]:
    rows = [_loop_row(line)]
    for name, key in (("BLEU", "bleu"), ("chrF", "chrf")):
        ends, counted = _points_between(line["intervals"][f"loop_free_{key}"]), f"in {line['clips_loop_free']} clips"
        looping = line[f"loop_free_{key}"] != line[key]
        rows.append((name, _points(line[key]), "not given" if looping else ends, line.get(f"{key}_signature", "")))
        rows += [(f"{name} without loops", _points(line[f"loop_free_{key}"]), ends, counted)] if looping else []
    return rows + _silence_row(line)


def _points(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _points_between(ends: dict | None) -> str:
    return "too few clips" if ends is None or ends["low"] is None else f"{ends['low']:.1f} to {ends['high']:.1f}"


def _loop_row(line: dict) -> tuple[str, str, str, str]:
    ends, counted = line["intervals"]["loop_rate"], f"{line['loops']} of {line['clips']} clips"
    if ends and not line["loops"]:
        counted += f"; a rate above {percent(ends['high'])} is excluded"
    return "loops", percent(_share(line["loops"], line["clips"])), _between(ends), counted


def _silence_row(line: dict) -> list[tuple[str, str, str, str]]:
    if not line["clips_without_speech"]:
        return []
    per_minute = line["words_per_minute"]
    counted = f"{line['hallucinated']} of {line['clips_without_speech']} clips without speech"
    counted += "" if per_minute is None else f", {per_minute:.1f} words a minute"
    ends = _between(line["intervals"]["hallucination_rate"])
    return [("words in silence", percent(line["hallucination_rate"]), ends, counted)]


def _between(ends: dict | None) -> str:
    if ends is None:
        return "too few clips"
    low, high = (percent(ends[key]) for key in ("low", "high"))
    return f"{low} to {high}" if ends["high"] is not None else f"from {low}, no upper bound"


def _details(line: dict) -> list[str]:
    if line["measure"] == BLEU or not sum(line[f"{kind}s"] for kind in KINDS):
        return []
    kinds = [f"{line[f'{kind}s']} {kind}s" for kind in KINDS]
    confused = [f"{a or '(nothing)'} → {b or '(nothing)'} {n}" for a, b, n in line["confusions"]]
    worst = [f"{w['file']} {w['errors']} of {w['units']}{' (loops)' * bool(w['loops'])}" for w in line["worst"]]
    return ["", _listed("kinds", kinds), _listed("confused", confused), _listed("worst", worst)]


def _listed(name: str, items: list[str]) -> str:
    """Items after a name, in lines that break between items alone."""
    text = ", ".join(one_line(item).replace(" ", GLUE) for item in items)
    return textwrap.fill(f"{name:10}{text}", WIDTH, subsequent_indent=" " * 10).replace(GLUE, " ")


def sentence(line: dict) -> str:
    """The totals in one line: the rate to read, clips, loops, speed, normaliser."""
    failed = f", {line['failed']} could not be used" if line["failed"] else ""
    rtf = "-" if line["rtf"] is None else f"{line['rtf']:.3f}"
    rest = f"{line['clips']} clips{failed}, loops in {line['loops']}, real-time factor {rtf}"
    if line["measure"] == BLEU:
        scores = [_points(line[key]) for key in ("bleu", "chrf")]
        tokens = f", tokenizer {line['bleu_tokenizer']}" if "bleu_tokenizer" in line else ""
        return f"BLEU {scores[0]}{tokens}, chrF {scores[1]}, {rest}"
    main = f"word error rate {percent(line['wer'])} ({line['errors']} of {line['words']} words)"
    if line["measure"] == MIXED:
        units = f"{line['mixed_errors']} of {line['mixed_units']} characters and words"
        main = f"mixed error rate {percent(line['mixed'])} ({units})"
    return f"{main}, character error rate {percent(line['cer'])}, {rest}, normaliser {line['normalizer']}"


def worst_first(scores: Sequence[Score]) -> list[Score]:
    """The clips that could be scored, those with most errors first; with as many, in the order of the table."""
    good = [s for s in scores if s.transcript is not None]
    return sorted(good, key=lambda s: -(s.alignment().errors if s.clip.has_speech else s.words_in_silence))
