"""The score of one clip: what was said, what was recognised, and the errors by every way of counting them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ..errors import one_line
from ..text.scripts import is_unspaced
from ..transcript import Transcript
from .alignment import MIXED, WORDS, Alignment, align
from .manifest import TRANSLATE, Clip
from .normalisers import OURS, normaliser
from .word_errors import count_char_errors, count_errors, count_mixed_errors


class Counts(NamedTuple):
    """Units of the reference and errors, by words, by characters, and mixed; the names are columns of a sweep."""

    words: int
    errors: int
    chars: int
    char_errors: int
    mixed_units: int
    mixed_errors: int


@dataclass(frozen=True)
class Score:
    """One clip's result. Printed, it shows both texts; `alignment()` shows error by error.

    Parameters
    ----------
    clip : what was said.
    transcript : what was recognised, None if the recording could not be used.
    words, errors : in the reference, and of the hypothesis.
    error : why it could not be scored, else None.
    name : what tells it from the others of its table; by default the file's last name.
    normalizer : of `words` and `errors`, and of all other counts that name none.
    """

    clip: Clip
    transcript: Transcript | None
    words: int = 0
    errors: int = 0
    error: str | None = None
    name: str = ""
    normalizer: str = OURS

    @classmethod
    def of(cls, clip: Clip, transcript: Transcript, name: str = "", normalizer: str = OURS) -> Score:
        """The score of a transcript, its words counted."""
        by = normaliser(normalizer, clip.text, clip.language)
        counted = count_errors(clip.text, transcript.text or "", by)
        return cls(clip, transcript, *counted, name=name, normalizer=normalizer)

    @cached_property
    def char_counts(self) -> tuple[int, int]:
        """(characters in the reference, character errors)."""
        return count_char_errors(self.clip.text, self.hypothesis, self._by(self.normalizer))

    @cached_property
    def mixed_counts(self) -> tuple[int, int]:
        """(units in the reference, errors): characters of scripts without blanks between words, words elsewhere."""
        return count_mixed_errors(self.clip.text, self.hypothesis, self._by(self.normalizer))

    def counts(self, normalizer: str | None = None) -> Counts:
        """All counts by a normaliser, by default the score's own."""
        if normalizer in (None, self.normalizer):
            return Counts(self.words, self.errors, *self.char_counts, *self.mixed_counts)
        texts, by = (self.clip.text, self.hypothesis), self._by(normalizer)
        return Counts(*count_errors(*texts, by), *count_char_errors(*texts, by), *count_mixed_errors(*texts, by))

    def _by(self, normalizer: str):
        return normaliser(normalizer, self.clip.text, self.clip.language)

    @property
    def hypothesis(self) -> str:
        """The text that was recognised, "" where there is none."""
        return "" if self.transcript is None else self.transcript.text or ""

    @property
    def measure(self) -> str:
        """The rate to read of this clip: "mixed" if its reference has a script without blanks, else "wer"."""
        return MIXED if is_unspaced(self.clip.text) else WORDS

    @property
    def words_in_silence(self) -> int:
        """Words (characters of scripts without blanks) that were written although nobody speaks; 0 of other clips."""
        return 0 if self.clip.has_speech else self.mixed_counts[1]

    @property
    def loops(self) -> int:
        """How many segments ended in a repetition loop."""
        return 0 if self.transcript is None else self.transcript.loops

    @property
    def label(self) -> str:
        """Its name, or the file's, as a terminal can show it."""
        return one_line(self.name or self.clip.file.name)

    def alignment(self, unit: str = "auto") -> Alignment:
        """Reference and hypothesis, error by error, with the segments' times; `unit` as in `alignment.align`."""
        segments = () if self.transcript is None else self.transcript.segments
        spans = [(s.start, s.end, s.text or "") for s in segments]
        options = {"normalizer": self.normalizer, "language": self.clip.language}
        return align(self.clip.text, self.hypothesis, **options, unit=unit, segments=spans)

    def to_dict(self) -> dict:
        """Plain values: the file and both texts with their numbers, or the file and why it failed."""
        if self.transcript is None:
            return {"file": str(self.clip.file), "error": self.error}
        line = {"file": str(self.clip.file), "reference": self.clip.text, "hypothesis": self.transcript.text}
        if self.clip.task == TRANSLATE:
            line |= {"task": TRANSLATE, "to": self.clip.target}
        else:
            line |= self.counts()._asdict() | {"normalizer": self.normalizer}
            line |= {"language": self.clip.language} if self.clip.language else {}
        segments = [
            {"start": s.start, "end": s.end, "text": s.text, "stop": str(s.stop), "loops": s.loop is not None}
            for s in self.transcript.segments
        ]
        return line | {
            "loops": self.transcript.loops,
            "audio_seconds": round(self.transcript.audio_seconds, 3),
            "skipped_seconds": round(self.transcript.skipped_seconds, 3),
            "wall_seconds": round(self.transcript.wall_seconds, 3),
            "segments": segments,
        }

    def __str__(self) -> str:
        if self.transcript is None:
            return f"{self.label}  failed: {self.error}"
        texts = [text or "(nothing)" for text in (self.clip.text, self.transcript.text)]
        return f"{self.headline}\n  reference   {texts[0]}\n  hypothesis  {texts[1]}"

    @property
    def headline(self) -> str:
        """Its name, how much of it is wrong, and whether it loops."""
        loops = f", {self.loops} of its segments loop" if self.loops > 1 else ", loops" if self.loops else ""
        if self.clip.task == TRANSLATE:
            return f"{self.label}  translation{loops}"
        of, units, errors = "words", self.words, self.errors
        if self.measure == MIXED:
            of, (units, errors) = "characters and words", self.mixed_counts
        wrong = f"{errors} of {units} {of} wrong" if units else f"{errors} {of} where none were"
        return f"{self.label}  {wrong}{loops}"
