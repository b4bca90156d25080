"""How well a model hears: word error rate, loops and speed over a table of recordings.

Word errors are counted by jiwer after one stated normaliser (`normalise`). Knows no nets.
"""

from __future__ import annotations

import csv
import io
import re
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jiwer

from .errors import DataError, StepAudioError
from .transcribe import Transcript, timed

GROUP = 64  # recordings held in memory at a time


def normalise(text: str) -> str:
    """Lower case, NFKC, curly quotes made straight, hyphens and dashes to spaces, all other punctuation dropped but
    apostrophes inside words, white space single. Numerals and abbreviations stay as they are written.

    >>> normalise("Don't -- I said: “FORTY-TWO”!")
    "don't i said forty two"
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'").replace("‘", "'")
    text = re.sub(r"[-‐-―_/]", " ", text)
    text = re.sub(r"[^\w\s']", "", text)
    text = re.sub(r"(?<!\w)'|'(?!\w)", "", text)
    return " ".join(text.split())


@dataclass(frozen=True)
class Clip:
    """A line of a manifest."""

    file: Path
    text: str


def read_manifest(path: str | Path) -> list[Clip]:
    """A tab- or comma-separated table with at least the columns `file` and `text`; paths relative to the table.

    Raises `DataError` where the table is missing, has no such columns, no line, or a line that does not fit its head.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as a table ({error})") from None
    head = text.splitlines()[0] if text.strip() else ""
    comma = "\t" not in head
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="," if comma else "\t",
                            quoting=csv.QUOTE_MINIMAL if comma else csv.QUOTE_NONE)
    try:
        if not {"file", "text"} <= set(reader.fieldnames or ()):
            found = ", ".join(reader.fieldnames or ()) or "nothing"
            raise DataError(f"{path}: expected columns file and text, found {found}")
        clips = [_clip(path, reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not readable as a table ({error})") from None
    if not clips:
        raise DataError(f"{path}: the table has a head but no line")
    return clips


def _clip(path: Path, line: int, row: dict) -> Clip:
    """One line. A cell too many is most often an unquoted comma in the text, which would cut the text short."""
    if None in row:
        raise DataError(f"{path}: line {line}: more cells than the head has names; quote a text that holds commas")
    if not row["file"]:
        raise DataError(f"{path}: line {line}: the column file is empty")
    return Clip(path.parent / row["file"], row["text"] or "")


@dataclass(frozen=True)
class Score:
    """One clip's result. errors, words: of this clip; error: why it could not be scored, else None."""

    clip: Clip
    transcript: Transcript | None
    words: int = 0
    errors: int = 0
    error: str | None = None

    def to_dict(self) -> dict:
        if self.transcript is None:
            return {"file": str(self.clip.file), "error": self.error}
        return {"file": str(self.clip.file), "text": self.clip.text, "heard": self.transcript.text,
                "words": self.words, "errors": self.errors, "loops": self.transcript.loops,
                "audio_seconds": round(self.transcript.audio_seconds, 3),
                "wall_seconds": round(self.transcript.wall_seconds, 3)}


def count_errors(expected: str, heard: str) -> tuple[int, int]:
    """(words expected, word errors) after normalising; words heard where none were said count as errors."""
    want, got = normalise(expected), normalise(heard)
    if not want:
        return 0, len(got.split())
    found = jiwer.process_words(want, got)
    return len(want.split()), found.substitutions + found.deletions + found.insertions


def evaluate(model, clips: list[Clip], *, downmix: str = "first", **options) -> Iterator[Score]:
    """Transcribe and score all clips, a group at a time; yields in the manifest's order within a group.

    options : as in `StepAudio2.transcribe_many`. A recording that cannot be used gives a Score with `error`.
    """
    if model.tokenizer is None:
        raise DataError("word errors need text, and the model was loaded with tokenizer=None: load it with one")
    for i in range(0, len(clips), GROUP):
        group, samples, began = clips[i : i + GROUP], {}, time.perf_counter()
        failed: dict[int, str] = {}
        for k, clip in enumerate(group):
            try:
                samples[k] = model.pipeline.load(clip.file, downmix=downmix)
            except StepAudioError as error:
                failed[k] = str(error)
        reading = time.perf_counter() - began
        heard = model.transcribe_many(list(samples.values()), **options) if samples else []
        done = dict(zip(samples, heard, strict=True))
        for k, clip in enumerate(group):
            if k in failed:
                yield Score(clip, None, error=failed[k])
                continue
            t = done[k]
            words, errors = count_errors(clip.text, t.text)
            share = reading * len(samples[k]) / sum(map(len, samples.values()))
            yield Score(clip, timed(t, t.wall_seconds + share), words, errors)


def totals(scores: list[Score], known_words: set[str] | None = None) -> dict:
    """The last line: `wer` (all errors over all words), `clips`, `loops`, `rtf` (work over audio), `failed`.

    With `known_words`, also `wer_known` and `clips_known`: the clips all of whose words are among them.
    """
    good = [s for s in scores if s.transcript is not None]
    words, errors = sum(s.words for s in good), sum(s.errors for s in good)
    audio = sum(s.transcript.audio_seconds for s in good)
    line = {"wer": _share(errors, words), "clips": len(good), "loops": sum(s.transcript.loops > 0 for s in good),
            "rtf": _share(sum(s.transcript.wall_seconds for s in good), audio), "words": words, "errors": errors,
            "audio_seconds": round(audio, 2), "failed": len(scores) - len(good)}
    if known_words is not None:
        known = [s for s in good if s.words and set(normalise(s.clip.text).split()) <= known_words]
        line["wer_known"] = _share(sum(s.errors for s in known), sum(s.words for s in known))
        line["clips_known"] = len(known)
    return line


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


def read_words(path: str | Path) -> set[str]:
    """The words of a `words.txt` (a word, a tab and its count per line), normalised."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        return {word for line in lines for word in normalise(line.split("\t")[0]).split()}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as a list of words ({error})") from None


