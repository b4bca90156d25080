"""From recordings of any length to text with times: segment, decode segment by segment, join.

`transcribe_recordings` asks an engine; `transcribe_segments` below it knows no nets: a function that turns segments of
samples into finished runs is handed in, and so is the one that decodes tokens.
"""

from __future__ import annotations

import html
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from .audio.segment import cut_points
from .audio.vad import Detector, speech_spans
from .backend.device import on_cpu
from .backend.memory import MemoryUse, free_buffers, memory_use
from .choices import StopReason, alternatives
from .constants import CHUNK_SECONDS, HOP, SAMPLE_RATE, TAIL_PADDING
from .decoding.generate import Run
from .decoding.options import DecodingOptions
from .decoding.speculative import Drafts
from .decoding.word_times import Word
from .engine import Engine, PromptTokens
from .errors import DataError
from .files import replaced_file
from .text import subtitles
from .text.scripts import join_texts

LONG = 60.0  # seconds from which a progress bar is worth its line
SEARCH = 8.0  # seconds before the limit in which a pause is sought
CPU_BATCH, GPU_BATCH = 8, 32  # segments decoded together unless the caller says otherwise
FORMATS = ("txt", "json", "srt", "vtt", "tsv")
Encode = Callable[[list[np.ndarray]], list[mx.array]]


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


# ---------------------------------------------------------------- with a model


def transcribe_recordings(
    engine: Engine,
    recordings: Sequence[np.ndarray],
    options: DecodingOptions,
    prompt: str | PromptTokens,
    progress: bool | None = None,
    vad: str | Detector | None = "energy",
    encode: Encode | None = None,
    words: bool = False,
    run: Decode | None = None,
) -> list[Transcript]:
    """Transcribe recordings together; segments of similar length share a batch.

    Parameters
    ----------
    engine : Engine
    recordings : sequence of np.ndarray
        float32, (n,) each, at 16 kHz.
    options : DecodingOptions
    prompt : str or pair of sequences of int
        As `Engine.transcription_request`.
    progress, vad
        As `transcribe_segments`.
    encode : callable, optional
        Segments -> their audio embeddings, for a caller that has them already; by default the engine computes them.
    words : bool
        Give each word its times; `ConfigError` for a model whose alignment heads are not known.
    run : callable, optional
        Segments -> their runs, for a caller that makes them, say with edits; then without `encode` and `words`.
    """
    engine.require_weights()
    if words:
        engine.require_alignment()
    encoder = engine.config.audio_encoder_config
    most = 2 * encoder.n_audio_ctx * HOP - TAIL_PADDING  # samples whose mel frames fit the encoder's positions

    def hear(segments: list[np.ndarray]) -> list[mx.array]:
        return engine.encode_audio(engine.log_mel(s) for s in segments)

    def decode(segments: list[np.ndarray]) -> list[Run]:
        began = time.perf_counter()
        requests = engine.transcription_requests(segments, (encode or hear)(segments), prompt, began)
        runs = engine.run(requests, options)
        if not words:
            return runs
        lengths = [len(segment) / SAMPLE_RATE for segment in segments]
        return [engine.with_words(*one) for one in zip(requests, runs, lengths, strict=True)]

    found = transcribe_segments(
        recordings,
        run or decode,
        engine.decode,
        engine.stop_ids(),
        batch_size(options),
        min(engine.pipeline.chunk_samples, most) / SAMPLE_RATE,
        progress,
        vad,
    )
    return [_with_silence(one) for one in found] if words else found


def _with_silence(found: Transcript) -> Transcript:
    """A transcript with words, none of them in what was skipped."""
    return replace(found, segments=tuple(replace(s, words=s.words or ()) for s in found.segments))


def batch_size(options: DecodingOptions) -> int:
    """Segments that are decoded together."""
    return batch_size_of(options.batch)


def batch_size_of(asked: int | None) -> int:
    """The number asked for, or else that of the backend."""
    return asked if asked is not None else CPU_BATCH if on_cpu() else GPU_BATCH


# ---------------------------------------------------------------- without one

Decode = Callable[[list[np.ndarray]], list[Run]]
ToText = Callable[[Sequence[int]], str | None]


def transcribe_segments(
    recordings: Sequence[np.ndarray],
    decode: Decode,
    to_text: ToText,
    stop_ids: frozenset[int],
    batch: int,
    max_seconds: float = CHUNK_SECONDS,
    progress: bool | None = None,
    vad: str | Detector | None = "energy",
) -> list[Transcript]:
    """Transcribe recordings together, `batch` segments of similar length at a time.

    Parameters
    ----------
    recordings : sequence of np.ndarray
        float32, (n,) each, at 16 kHz.
    decode : callable
        Segments -> their runs.
    to_text : callable
        Token ids -> text, or None without a tokenizer.
    stop_ids : frozenset of int
        End marks, which are no part of a segment's tokens.
    batch : int >= 1
    max_seconds : float
        Longest segment.
    progress : bool, optional
        Show a bar on stderr; by default only for more than a minute of audio, and only on a terminal.
    vad : {"energy", "silero", "off"} or callable
        As `audio.vad.speech_spans`: what it leaves out is not decoded.

    Returns
    -------
    list of Transcript
        In the order of the recordings; `wall_seconds` is each one's share, by length, of the batches it was in.
    """
    search = min(SEARCH, max_seconds / 2)
    done: dict[tuple[int, int], Segment] = {}
    made: dict[tuple[int, int], Run] = {}
    wall = np.zeros(len(recordings))
    spans = []
    for r, x in enumerate(recordings):
        end = 0
        for start, stop in (*speech_spans(x, vad), (len(x), len(x))):
            if end < start:
                times = end / SAMPLE_RATE, start / SAMPLE_RATE
                done[r, end] = Segment(*times, to_text(()), (), StopReason.SILENCE, 0.0)
            if start < stop:
                cuts = cut_points(x[start:stop], max_seconds, search)
                spans += [(r, start + a, start + b) for a, b in cuts]
            end = stop
    spans.sort(key=lambda span: span[2] - span[1], reverse=True)
    with _bar(sum(map(len, recordings)) / SAMPLE_RATE, progress) as bar:
        bar.update(round(sum(s.end - s.start for s in done.values())))
        for i in range(0, len(spans), batch):
            group, began = spans[i : i + batch], time.perf_counter()
            runs = decode([recordings[r][start:stop] for r, start, stop in group])
            free_buffers()  # the next batch has other lengths, for which they are of no use
            spent, size = time.perf_counter() - began, sum(stop - start for _, start, stop in group)
            for (r, start, stop), run in zip(group, runs, strict=True):
                done[r, start], made[r, start] = _segment(start, stop, run, to_text, stop_ids), run
                wall[r] += spent * (stop - start) / size
                bar.update(round((stop - start) / SAMPLE_RATE))
    parts: list[list[Segment]] = [[] for _ in recordings]
    runs_of: list[list[Run]] = [[] for _ in recordings]
    for r, start in sorted(done):
        parts[r].append(done[r, start])
        if (r, start) in made:
            runs_of[r].append(made[r, start])
    use = memory_use(max((run.kv_bytes for run in made.values()), default=0))
    joined = (_join(*found) for found in zip(parts, runs_of, map(len, recordings), wall, strict=True))
    return [replace(one, memory=use) for one in joined]


def _bar(seconds: float, progress: bool | None) -> tqdm:
    """A bar over seconds of audio; unless asked for, hidden if it would be short or stderr is no terminal."""
    hidden = not progress if progress is not None else seconds < LONG or None  # None: tqdm looks for a terminal
    return tqdm(total=round(seconds), unit="s of audio", disable=hidden)


def _segment(start: int, stop: int, run: Run, to_text: ToText, stop_ids: frozenset[int]) -> Segment:
    ended = run.stop == StopReason.EOS and run.tokens[-1] in stop_ids
    tokens = run.tokens[:-1] if ended else run.tokens
    text, offset, words = to_text(tokens), start / SAMPLE_RATE, None
    if run.words is not None:
        words = tuple(replace(w, start=offset + w.start, end=offset + w.end) for w in run.words)
    return Segment(
        start / SAMPLE_RATE,
        stop / SAMPLE_RATE,
        None if text is None else text.strip(),
        tuple(tokens),
        run.stop or StopReason.LENGTH,
        run.mean_logprob,
        None if run.loop is None else asdict(run.loop),
        words,
    )


def _join(segments: list[Segment], runs: list[Run], n_samples: int, wall: float) -> Transcript:
    text = None if any(s.text is None for s in segments) else join_texts(s.text or "" for s in segments)
    first = runs[0].first_seconds if runs else None
    drafts = [run.drafts for run in runs if run.drafts]
    saved = sum(drafts, Drafts()) if drafts else None
    return Transcript(text, tuple(segments), n_samples / SAMPLE_RATE, float(wall), (), first, saved)


def timed(transcript: Transcript, wall_seconds: float) -> Transcript:
    """The same transcript with the wall time that a caller measured around reading, segmentation and decoding."""
    return replace(transcript, wall_seconds=wall_seconds)
