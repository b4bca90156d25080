"""How well a model transcribes: error rates, repetition loops and speed over a table of recordings."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from ..constants import SAMPLE_RATE
from ..decoding.options import merge_options
from ..errors import DataError, StepAudioError
from ..text.scripts import is_unspaced
from ..transcribe import Transcript, batch_size, timed
from .manifest import Clip, distinct_names, read_manifest
from .word_errors import count_char_errors, count_errors, count_mixed_errors, normalise

WER, MIXED = "wer", "mixed"  # the rate to read: the second where references have scripts without blanks


@dataclass(frozen=True)
class Score:
    """One clip's result.

    Parameters
    ----------
    clip : what was said.
    transcript : what was recognised, None if the recording could not be used.
    words, errors : in the reference, and of the hypothesis.
    error : why it could not be scored, else None.
    name : what tells it from the others of its table; by default the file's last name.
    """

    clip: Clip
    transcript: Transcript | None
    words: int = 0
    errors: int = 0
    error: str | None = None
    name: str = ""

    @cached_property
    def char_counts(self) -> tuple[int, int]:
        """(characters in the reference, character errors)."""
        return count_char_errors(self.clip.text, self._hypothesis)

    @cached_property
    def mixed_counts(self) -> tuple[int, int]:
        """(units in the reference, errors): characters of scripts without blanks between words, words elsewhere."""
        return count_mixed_errors(self.clip.text, self._hypothesis)

    @property
    def _hypothesis(self) -> str:
        return "" if self.transcript is None else self.transcript.text or ""

    def to_dict(self) -> dict:
        """Plain values: the file and both texts with their numbers, or the file and why it failed."""
        if self.transcript is None:
            return {"file": str(self.clip.file), "error": self.error}
        return {
            "file": str(self.clip.file),
            "reference": self.clip.text,
            "hypothesis": self.transcript.text,
            "words": self.words,
            "errors": self.errors,
            "chars": self.char_counts[0],
            "char_errors": self.char_counts[1],
            "mixed_units": self.mixed_counts[0],
            "mixed_errors": self.mixed_counts[1],
            "loops": self.transcript.loops,
            "audio_seconds": round(self.transcript.audio_seconds, 3),
            "skipped_seconds": round(self.transcript.skipped_seconds, 3),
            "wall_seconds": round(self.transcript.wall_seconds, 3),
        }

    def __str__(self) -> str:
        name = self.name or self.clip.file.name
        if self.transcript is None:
            return f"{name}  failed: {self.error}"
        texts = [text or "(nothing)" for text in (self.clip.text, self.transcript.text)]
        of, units, errors = "words", self.words, self.errors
        if is_unspaced(self.clip.text):
            of, (units, errors) = "characters and words", self.mixed_counts
        wrong = f"{errors} of {units} {of} wrong" if units else f"{errors} {of} where none were"
        return f"{name}  {wrong}\n  reference   {texts[0]}\n  hypothesis  {texts[1]}"


@dataclass(frozen=True)
class Evaluation(Sequence[Score]):
    """The scores of a table of recordings, in its order. Printed, it shows each clip and the totals below."""

    scores: tuple[Score, ...]

    @overload
    def __getitem__(self, index: int) -> Score: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Score, ...]: ...
    def __getitem__(self, index: int | slice) -> Score | tuple[Score, ...]:
        return self.scores[index]

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def wer(self) -> float | None:
        """Word error rate, all errors over all words; None where no words were spoken in what could be scored."""
        return self.totals()["wer"]

    @property
    def cer(self) -> float | None:
        """Character error rate, as `wer`."""
        return self.totals()["cer"]

    @property
    def mixed(self) -> float | None:
        """Mixed error rate, as `wer`: characters of scripts without blanks between words, words elsewhere."""
        return self.totals()["mixed"]

    def totals(self, known_words: set[str] | None = None) -> dict:
        """As the function `totals`."""
        return totals(self.scores, known_words)

    def __str__(self) -> str:
        t = self.totals()
        rates = {k: "-" if t[k] is None else format(t[k], ".1%") for k in ("wer", "mixed", "cer")}
        main = f"word error rate {rates['wer']} ({t['errors']} of {t['words']} words)"
        if t["measure"] == MIXED:
            main = f"mixed error rate {rates['mixed']} ({t['mixed_errors']} of {t['mixed_units']} characters and words)"
        failed = f", {t['failed']} could not be used" if t["failed"] else ""
        rtf = "-" if t["rtf"] is None else f"{t['rtf']:.3f}"
        last = (
            f"{main}, character error rate {rates['cer']}, {t['clips']} clips{failed}, loops in {t['loops']}, "
            f"real-time factor {rtf}"
        )
        return "\n".join([*map(str, self.scores), "", last])


def evaluate(model, clips: str | Path | Iterable[Clip], *, downmix: str = "first", **options: Any) -> Evaluation:
    """Transcribe and score all recordings of a table.

    Parameters
    ----------
    model : a `StepAudio2` with a tokenizer.
    clips : path of a manifest (a TSV or CSV with the columns `file` and `text`), or `Clip`s.
    downmix : "first" channel or "mean", where a recording has several.
    options : as in `StepAudio2.transcribe`.

    Returns
    -------
    Evaluation: a sequence of `Score`s with `wer`, `cer`, `mixed` and `totals()`. A recording that cannot be used gives
    a `Score` with `error`, and the others go on.

    Raises
    ------
    DataError : the model has no tokenizer, or the manifest cannot be read or lacks a text.
    """
    return Evaluation(tuple(score_clips(model, clips, downmix=downmix, **options)))


def score_clips(
    model, clips: str | Path | Iterable[Clip], *, downmix: str = "first", **options: Any
) -> Iterator[Score]:
    """Scores as they are finished, a batch of recordings at a time; parameters and errors as in `evaluate`."""
    if model.tokenizer is None:
        raise DataError("word errors need text, and the model was loaded with tokenizer=None: load it with one")
    clips = read_manifest(clips) if isinstance(clips, str | Path) else list(clips)
    if odd := [clip for clip in clips if not isinstance(clip, Clip)]:
        raise DataError(f"clips to score: expected a manifest or Clip(file, text)s, found {type(odd[0]).__name__}")
    named = list(zip(clips, distinct_names([clip.file for clip in clips]), strict=True))
    given = {key: options[key] for key in ("batch",) if key in options}
    batch = batch_size(merge_options(options.get("options"), "transcribe", **given))
    for i in range(0, len(clips), batch):  # no more than that: what is not handed on yet is lost with an interrupt
        yield from _score_batch(model, named[i : i + batch], downmix, options)


def _score_batch(model, named: list[tuple[Clip, str]], downmix: str, options: dict[str, Any]) -> Iterator[Score]:
    samples, failed, began = {}, {}, time.perf_counter()
    for k, (clip, _) in enumerate(named):
        try:
            samples[k] = model.pipeline.load(clip.file, downmix=downmix)
        except StepAudioError as error:
            failed[k] = str(error)
    reading = (time.perf_counter() - began) / max(1, sum(map(len, samples.values())))  # seconds per sample
    transcripts = model.transcribe(list(samples.values()), sr=SAMPLE_RATE, **options) if samples else []
    done = dict(zip(samples, transcripts, strict=True))
    for k, (clip, name) in enumerate(named):
        if k in failed:
            yield Score(clip, None, error=failed[k], name=name)
            continue
        words, errors = count_errors(clip.text, done[k].text or "")
        transcript = timed(done[k], done[k].wall_seconds + reading * len(samples[k]))
        yield Score(clip, transcript, words, errors, name=name)


def totals(scores: Iterable[Score], known_words: set[str] | None = None) -> dict:
    """Sums over all scores.

    Returns
    -------
    dict with `measure`, the name of the rate to read: "mixed" if a reference has a script without blanks between
    words, else "wer"; `wer`, `cer` and `mixed` (all errors over all words, characters, or characters of such scripts
    and words elsewhere); `clips`, `loops` (clips with one), `rtf` (seconds of work per second of audio), `words`,
    `errors`, `chars`, `char_errors`, `mixed_units`, `mixed_errors`, `audio_seconds` and `failed`; a rate of nothing
    is None. With `known_words` (say, a model's training vocabulary) also `wer_known` and `clips_known`: the clips all
    of whose words are among them.
    """
    scores = list(scores)
    good = [(s, s.transcript) for s in scores if s.transcript is not None]
    words, errors = _sums((s.words, s.errors) for s, _ in good)
    chars, char_errors = _sums(s.char_counts for s, _ in good)
    mixed_units, mixed_errors = _sums(s.mixed_counts for s, _ in good)
    audio = sum(t.audio_seconds for _, t in good)
    line = {
        "measure": MIXED if any(is_unspaced(s.clip.text) for s, _ in good) else WER,
        "wer": _share(errors, words),
        "cer": _share(char_errors, chars),
        "mixed": _share(mixed_errors, mixed_units),
        "clips": len(good),
        "loops": sum(t.loops > 0 for _, t in good),
        "rtf": _share(sum(t.wall_seconds for _, t in good), audio),
        "words": words,
        "errors": errors,
        "chars": chars,
        "char_errors": char_errors,
        "mixed_units": mixed_units,
        "mixed_errors": mixed_errors,
        "audio_seconds": round(audio, 2),
        "failed": len(scores) - len(good),
    }
    if known_words is not None:
        known = [s for s, _ in good if s.words and set(normalise(s.clip.text).split()) <= known_words]
        line["wer_known"] = _share(sum(s.errors for s in known), sum(s.words for s in known))
        line["clips_known"] = len(known)
    return line


def _sums(counts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """(All units, all errors)."""
    counts = list(counts)
    return sum(units for units, _ in counts), sum(errors for _, errors in counts)


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None
