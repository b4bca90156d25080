"""How well a model transcribes: word error rate, repetition loops and speed over a table of recordings."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from ..constants import SAMPLE_RATE
from ..errors import DataError, StepAudioError
from ..transcribe import Transcript, timed
from .manifest import Clip, read_manifest
from .word_errors import count_errors, normalise

GROUP = 64  # recordings held in memory at a time


@dataclass(frozen=True)
class Score:
    """One clip's result. errors, words : of this clip. error : why it could not be scored, else None."""

    clip: Clip
    transcript: Transcript | None
    words: int = 0
    errors: int = 0
    error: str | None = None

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
            "loops": self.transcript.loops,
            "audio_seconds": round(self.transcript.audio_seconds, 3),
            "wall_seconds": round(self.transcript.wall_seconds, 3),
        }

    def __str__(self) -> str:
        name = self.clip.file.name
        if self.transcript is None:
            return f"{name}  failed: {self.error}"
        texts = [text or "(nothing)" for text in (self.clip.text, self.transcript.text)]
        wrong = f"{self.errors} of {self.words} words wrong" if self.words else f"{self.errors} words where none were"
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

    def totals(self, known_words: set[str] | None = None) -> dict:
        """As the function `totals`."""
        return totals(self.scores, known_words)

    def __str__(self) -> str:
        t = self.totals()
        wer, rtf = ("-" if v is None else format(v, form) for v, form in ((t["wer"], ".1%"), (t["rtf"], ".3f")))
        failed = f", {t['failed']} could not be used" if t["failed"] else ""
        last = (
            f"word error rate {wer} ({t['errors']} of {t['words']} words), {t['clips']} clips{failed}, loops in "
            f"{t['loops']}, real-time factor {rtf}"
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
    Evaluation: a sequence of `Score`s with `wer` and `totals()`. A recording that cannot be used gives a `Score` with
    `error`, and the others go on.

    Raises
    ------
    DataError : the model has no tokenizer, or the manifest cannot be read.
    """
    return Evaluation(tuple(score_clips(model, clips, downmix=downmix, **options)))


def score_clips(
    model, clips: str | Path | Iterable[Clip], *, downmix: str = "first", **options: Any
) -> Iterator[Score]:
    """Scores as they are finished, a group of recordings at a time; parameters and errors as in `evaluate`."""
    if model.tokenizer is None:
        raise DataError("word errors need text, and the model was loaded with tokenizer=None: load it with one")
    clips = read_manifest(clips) if isinstance(clips, str | Path) else list(clips)
    for i in range(0, len(clips), GROUP):
        yield from _score_group(model, clips[i : i + GROUP], downmix, options)


def _score_group(model, group: list[Clip], downmix: str, options: dict[str, Any]) -> Iterator[Score]:
    samples, failed, began = {}, {}, time.perf_counter()
    for k, clip in enumerate(group):
        try:
            samples[k] = model.pipeline.load(clip.file, downmix=downmix)
        except StepAudioError as error:
            failed[k] = str(error)
    reading = (time.perf_counter() - began) / max(1, sum(map(len, samples.values())))  # seconds per sample
    transcripts = model.transcribe(list(samples.values()), sr=SAMPLE_RATE, **options) if samples else []
    done = dict(zip(samples, transcripts, strict=True))
    for k, clip in enumerate(group):
        if k in failed:
            yield Score(clip, None, error=failed[k])
            continue
        words, errors = count_errors(clip.text, done[k].text or "")
        yield Score(clip, timed(done[k], done[k].wall_seconds + reading * len(samples[k])), words, errors)


def totals(scores: Iterable[Score], known_words: set[str] | None = None) -> dict:
    """Sums over all scores.

    Returns
    -------
    dict with `wer` (all errors over all words), `clips`, `loops` (clips with one), `rtf` (seconds of work per second
    of audio), `words`, `errors`, `audio_seconds` and `failed`; a rate of nothing is None. With `known_words` (say, a
    model's training vocabulary) also `wer_known` and `clips_known`: the clips all of whose words are among them.
    """
    scores = list(scores)
    good = [(s, s.transcript) for s in scores if s.transcript is not None]
    words, errors = sum(s.words for s, _ in good), sum(s.errors for s, _ in good)
    audio = sum(t.audio_seconds for _, t in good)
    line = {
        "wer": _share(errors, words),
        "clips": len(good),
        "loops": sum(t.loops > 0 for _, t in good),
        "rtf": _share(sum(t.wall_seconds for _, t in good), audio),
        "words": words,
        "errors": errors,
        "audio_seconds": round(audio, 2),
        "failed": len(scores) - len(good),
    }
    if known_words is not None:
        known = [s for s, _ in good if s.words and set(normalise(s.clip.text).split()) <= known_words]
        line["wer_known"] = _share(sum(s.errors for s in known), sum(s.words for s in known))
        line["clips_known"] = len(known)
    return line


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None
