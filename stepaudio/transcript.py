"""What was said in a recording: its segments with times, and the same as text, JSON, subtitles or a table.

Knows no nets and no samples; what transcribes makes these records.
"""

from __future__ import annotations

import html
import json
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path

from .backend.memory import MemoryUse
from .choices import StopReason, alternatives
from .decoding.speculative import Drafts
from .decoding.word_times import Word
from .errors import DataError
from .files import replaced_file
from .text import subtitles
from .text.scripts import join_texts

FORMATS = ("txt", "json", "srt", "vtt", "tsv")


@dataclass(frozen=True)
class Segment:
    """What was said in one segment.

    Parameters
    ----------
    start, end : float
        Seconds from the beginning of the recording.
    text : str, optional
        None where the model was loaded without a tokenizer.
    tokens : tuple of int
        Token ids, without the end mark.
    stop : StopReason
        "eos", "length", "stop string", "loop", or "silence" for a segment that was skipped because no speech was found
        in it.
    mean_logprob : float
        Natural logarithm, over all tokens, the end mark included.
    loop : dict, optional
        {period, onset, repeats} if the tokens repeat.
    words : tuple of Word, optional
        Each with text, start, end and probability; None unless asked for.
    """

    start: float
    end: float
    text: str | None
    tokens: tuple[int, ...]
    stop: StopReason | str
    mean_logprob: float
    loop: dict | None = None
    words: tuple[Word, ...] | None = None


@dataclass(frozen=True)
class Transcript:
    """What was said in a whole recording. Shows itself as a table in a notebook; `print` gives its text.

    Two transcripts are equal if all but the work they took is.

    Parameters
    ----------
    text : str, optional
        None where the model was loaded without a tokenizer.
    segments : tuple of Segment
        In order, without a gap.
    audio_seconds : float
    wall_seconds : float
        What the work took; of recordings transcribed together, each one's share by length.
    notes : tuple of str
        What had to be assumed, such as the rate of an array that came without one.
    first_token_seconds : float, optional
        From when the first segment came to be encoded to its first token; None if nothing was decoded.
    drafts : Drafts, optional
        What speculative decoding saved, over all segments; None where it was off.
    memory : MemoryUse, optional
        Bytes when all was done; keys and values are those of the batch that held most.
    """

    text: str | None
    segments: tuple[Segment, ...]
    audio_seconds: float
    wall_seconds: float = field(compare=False)
    notes: tuple[str, ...] = ()
    first_token_seconds: float | None = field(default=None, compare=False)
    drafts: Drafts | None = field(default=None, compare=False)
    memory: MemoryUse | None = field(default=None, compare=False)

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of audio."""
        return self.wall_seconds / self.audio_seconds

    @property
    def skipped(self) -> tuple[tuple[float, float], ...]:
        """(start, end) in seconds of what was not decoded because no speech was found in it."""
        return tuple((s.start, s.end) for s in self.segments if s.stop == StopReason.SILENCE)

    @property
    def skipped_seconds(self) -> float:
        """How much that is in all."""
        return sum(end - start for start, end in self.skipped)

    @property
    def loops(self) -> int:
        """How many segments ended in a repetition loop."""
        return sum(s.loop is not None for s in self.segments)

    def to_dict(self) -> dict:
        """All fields as plain dicts and tuples, and what was skipped."""
        found = asdict(self) | {"skipped": self.skipped, "skipped_seconds": self.skipped_seconds}
        for segment in found["segments"]:
            if segment["words"] is None:
                del segment["words"]
        return found

    def to_txt(self) -> str:
        """The text and a line break. `DataError` without a tokenizer, as for every format but JSON."""
        return join_texts(text for _, _, text in self._lines()) + "\n"

    def to_json(self) -> str:
        """The same as one JSON object, Chinese and the like as they are."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def to_srt(self) -> str:
        """SubRip subtitles, one per segment that has words; with word times, one per word, "word (?)" for a doubt."""
        timed = self._words()
        if timed is None:
            return subtitles.srt(self._lines())
        return subtitles.srt((w.start, w.end, f"{w.text} (?)" if w.doubtful else w.text) for w in timed)

    def to_vtt(self) -> str:
        """WebVTT subtitles, one per segment that has words; with word times, these stand between the words.

        A doubtful word is of the class "doubt".
        """
        if self._words() is None:
            return subtitles.vtt(self._lines())
        return subtitles.vtt_words(
            (s.start, s.end, [(w.start, w.text, w.doubtful) for w in s.words or ()]) for s in self.segments
        )

    def to_tsv(self) -> str:
        """Start and end in milliseconds and text, tab-separated, one line per segment that has words.

        With word times, one line per word, and its probability and "?" for a doubt behind it.
        """
        timed = self._words()
        if timed is None:
            return subtitles.tsv(self._lines())
        return subtitles.tsv_words((w.start, w.end, w.text, w.probability, w.doubtful) for w in timed)

    def to(self, form: str) -> str:
        """The transcript in one of `FORMATS`; "text" means "txt". Raises `DataError` for another."""
        form = "txt" if form == "text" else form
        if form not in FORMATS:
            raise DataError(f"format of a transcript: expected {alternatives(FORMATS)}, found {form!r}")
        return getattr(self, f"to_{form}")()

    def save(self, path: str | PathLike) -> Path:
        """Write a file whose suffix says the format: .txt, .json, .srt, .vtt or .tsv. UTF-8, whole or not at all.

        Raises
        ------
        DataError
            Another suffix, no text to write, or a place where nothing can be written.
        """
        path = Path(path)
        if path.suffix[1:].lower() not in FORMATS:
            raise DataError(f"{path}: the suffix says the format of a transcript: expected .{', .'.join(FORMATS)}")
        content = self.to(path.suffix[1:].lower())
        try:
            with replaced_file(path) as aside:
                aside.write_text(content, encoding="utf-8", newline="\n")
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror})") from None
        return path

    def _words(self) -> list[Word] | None:
        """All words with their times; None if they were not asked for."""
        known = [s.words for s in self.segments if s.words is not None]
        return [word for words in known for word in words] if known else None

    def _lines(self) -> list[tuple[float, float, str]]:
        """(start, end, text) of the segments that have words."""
        if self.text is None:
            raise DataError("this transcript has no text: the model was loaded with tokenizer=None; save it as .json")
        return [(s.start, s.end, s.text) for s in self.segments if s.text]

    def __str__(self) -> str:
        return f"{len(self.segments)} segments without text" if self.text is None else self.text

    def _repr_html_(self) -> str:
        """A table with one line per segment, for notebooks."""
        head = "".join(
            f"<th style='text-align:left'>{name}</th>" for name in ("start", "end", "text", "stop", "logprob")
        )
        rows = "".join(
            f"<tr><td>{s.start:.2f}</td><td>{s.end:.2f}</td>"
            f"<td style='text-align:left'>{html.escape(_shown(s))}</td><td>{s.stop}</td>"
            f"<td>{f'{s.mean_logprob:.2f}' if s.tokens else ''}</td></tr>"
            for s in self.segments
        )
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{notes}"


def _shown(segment: Segment) -> str:
    return f"{len(segment.tokens)} tokens" if segment.text is None else segment.text
