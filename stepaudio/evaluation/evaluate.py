"""How well a model hears: word error rate, loops and speed over a table of recordings.

Word errors are counted by jiwer after one stated normaliser (`normalise`). Knows no nets.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import DataError, StepAudioError
from ..transcribe import Transcript, timed
from .manifest import Clip
from .wer import count_errors, normalise

GROUP = 64  # recordings held in memory at a time


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
        return {
            "file": str(self.clip.file),
            "text": self.clip.text,
            "heard": self.transcript.text,
            "words": self.words,
            "errors": self.errors,
            "loops": self.transcript.loops,
            "audio_seconds": round(self.transcript.audio_seconds, 3),
            "wall_seconds": round(self.transcript.wall_seconds, 3),
        }


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
    line = {
        "wer": _share(errors, words),
        "clips": len(good),
        "loops": sum(s.transcript.loops > 0 for s in good),
        "rtf": _share(sum(s.transcript.wall_seconds for s in good), audio),
        "words": words,
        "errors": errors,
        "audio_seconds": round(audio, 2),
        "failed": len(scores) - len(good),
    }
    if known_words is not None:
        known = [s for s in good if s.words and set(normalise(s.clip.text).split()) <= known_words]
        line["wer_known"] = _share(sum(s.errors for s in known), sum(s.words for s in known))
        line["clips_known"] = len(known)
    return line


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None
