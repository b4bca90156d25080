"""Evaluations as files: the JSON lines that `stepaudio evaluate` prints, read again to be compared or counted anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..choices import MAX_COUNT, StopReason, alternatives, is_count, is_number, shown
from ..errors import DataError
from ..reading import parse_object, read_bytes
from ..transcript import Segment, Transcript
from .clip_score import Score
from .manifest import JSON_LINES, TRANSCRIBE, TRANSLATE, Clip, distinct_names
from .normalisers import NORMALIZERS, OURS, check_normalizer

EXPECTED = 'expected the JSON lines that "stepaudio evaluate --json" prints'
EITHER = f"{EXPECTED}, or those of a manifest, with file and text"
RECOGNISED = {"hypothesis", "reference", "error", "measure", "wer"}  # a line of an evaluation has one of these
MOST_LOOPS = 10_000  # of one recording: days of sound
Line = tuple[str, dict[str, Any]]  # "file: line n", for messages; its object


def read_results(path: str | Path, normalizer: str | None = None) -> list[Score]:
    """The scores of an earlier evaluation, from its JSON lines.

    Errors are counted anew from the texts, so a file of hypotheses of any system will do: an object a line with
    `file`, `reference` and `hypothesis`, and, if known, `loops`, `audio_seconds`, `wall_seconds` and `segments`.

    Parameters
    ----------
    normalizer : by which errors are counted; by default the one that the file names, else "ours".

    Raises
    ------
    DataError : the file is missing, holds anything else, no clip, or several evaluations.
    ConfigError : a normaliser whose library is not installed.
    """
    lines = _lines(Path(path))
    ends = [what for what, line in lines if "file" not in line]
    if len(ends) > 1 or (ends and "file" in lines[-1][1]):
        raise DataError(f"{ends[0]}: totals, and more behind them: two evaluations in one file; {EXPECTED} of one")
    clips = [(what, line) for what, line in lines if "file" in line]
    if not clips:
        raise DataError(f"{path}: holds no clip; {EXPECTED}")
    recorded = {_word(what, line, "normalizer", NORMALIZERS, OURS) for what, line in clips if "error" not in line}
    if normalizer is None and len(recorded) > 1:
        raise DataError(f"{path}: clips scored by {' and '.join(sorted(recorded))}; {EXPECTED} of one evaluation")
    by = check_normalizer(normalizer or min(recorded, default=OURS))
    read = [(_clip(what, line), _transcript(what, line), line) for what, line in clips]
    names = distinct_names([clip.file for clip, _, _ in read])
    return [
        Score(clip, None, error=str(line["error"]), name=name, normalizer=by)
        if transcript is None
        else Score.of(clip, transcript, name, by)
        for (clip, transcript, line), name in zip(read, names, strict=True)
    ]


def are_results(path: str | Path) -> bool:
    """Whether a file holds the lines of an evaluation rather than a manifest: the first says what was recognised.

    Only names like those of JSON lines are looked at; a file of such a name that is neither is taken for an evaluation.
    """
    if Path(path).suffix.lower() not in JSON_LINES:
        return False
    lines = read_bytes(path, DataError, EXPECTED).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    first = next((line for line in lines if line.strip()), None)
    return first is None or bool(RECOGNISED & parse_object(first, f"{path}: line 1", DataError, EITHER).keys())


def _lines(path: Path) -> list[Line]:
    found = []
    for n, data in enumerate(read_bytes(path, DataError, EXPECTED).removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if data.strip():
            what = f"{path}: line {n}"
            line = parse_object(data, what, DataError, EXPECTED)
            if "file" not in line and "measure" not in line and "wer" not in line:
                raise DataError(f"{what}: names no file, and is no totals; {EXPECTED}")
            found.append((what, line))
    return found


def _clip(what: str, line: dict) -> Clip:
    file = Path(_text(what, line, "file"))
    if not file.name:
        raise DataError(f"{what}: file: expected the path of a recording, found {shown(line['file'])}; {EXPECTED}")
    if "error" in line:
        return Clip(file, "")
    task = _word(what, line, "task", (TRANSCRIBE, TRANSLATE), TRANSCRIBE)
    language = line.get("to" if task == TRANSLATE else "language")
    if language is not None and not isinstance(language, str):
        raise DataError(f"{what}: language: expected a text, found {shown(language)}; {EXPECTED}")
    return Clip(file, _text(what, line, "reference"), task, language)


def _transcript(what: str, line: dict) -> Transcript | None:
    if "error" in line:
        return None
    text, loops = _text(what, line, "hypothesis"), line.get("loops", 0)
    if not is_count(loops) or loops > MOST_LOOPS:
        raise DataError(
            f"{what}: loops: expected a whole number from 0 to {MOST_LOOPS}, found {shown(loops)}; {EXPECTED}"
        )
    audio, wall, skipped = (_seconds(what, line, f"{name}_seconds") for name in ("audio", "wall", "skipped"))
    segments = [_segment(what, part) for part in _list(what, line, "segments")]
    segments = segments or [Segment(0.0, audio, text, (), StopReason.EOS, 0.0)]
    # A line without segments says how many of them looped and how much was silence, but not where.
    unplaced = max(0, loops - sum(part.loop is not None for part in segments))
    segments += [Segment(audio, audio, "", (), StopReason.LOOP, 0.0, loop={})] * unplaced
    if skipped and not any(part.stop == StopReason.SILENCE for part in segments):
        segments.append(Segment(max(0.0, audio - skipped), audio, "", (), StopReason.SILENCE, 0.0))
    return Transcript(text, tuple(segments), audio, wall)


def _segment(what: str, part: object) -> Segment:
    if not isinstance(part, dict):
        raise DataError(f"{what}: segments: expected objects with start, end and text, found {shown(part)}; {EXPECTED}")
    start, end = (_seconds(what, part, name) for name in ("start", "end"))
    text = "" if part.get("text") is None else _text(what, part, "text")
    stop = _word(what, part, "stop", StopReason.values(), StopReason.EOS)
    loops = part.get("loops", False)
    if not isinstance(loops, bool):
        raise DataError(f"{what}: loops of a segment: expected true or false, found {shown(loops)}; {EXPECTED}")
    return Segment(start, end, text, (), StopReason(stop), 0.0, loop={} if loops else None)


def _list(what: str, line: dict, key: str) -> list:
    found = line.get(key) or []
    if not isinstance(found, list):
        raise DataError(f"{what}: {key}: expected a list, found {shown(found)}; {EXPECTED}")
    return found


def _text(what: str, line: dict, key: str) -> str:
    if not isinstance(line.get(key), str):
        raise DataError(f"{what}: {key}: expected a text, found {shown(line.get(key))}; {EXPECTED}")
    return line[key]


def _seconds(what: str, line: dict, key: str) -> float:
    value = line.get(key)
    if value is None:
        return 0.0
    if not is_number(value) or not 0 <= value <= MAX_COUNT:  # NaN is not, either
        raise DataError(f"{what}: {key}: expected seconds from 0, found {shown(value)}; {EXPECTED}")
    return float(value)


def _word(what: str, line: dict, key: str, words: tuple[str, ...], default: str) -> str:
    found = line.get(key, default)
    if found not in words:
        raise DataError(f"{what}: {key}: expected {alternatives(words)}, found {shown(found)}; {EXPECTED}")
    return found
