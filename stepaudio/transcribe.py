"""From recordings of any length to text with times: segment, decode segment by segment, join.

`transcribe_recordings` asks an engine; `transcribe_segments` below it knows no nets: a function that turns segments of
samples into finished runs is handed in, and so is the one that decodes tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from .audio.segment import cut_points
from .audio.vad import Detector, speech_spans
from .backend.device import on_cpu
from .backend.memory import free_buffers, memory_use
from .choices import StopReason
from .constants import CHUNK_SECONDS, HOP, SAMPLE_RATE, TAIL_PADDING
from .decoding.generate import Run
from .decoding.options import DecodingOptions
from .decoding.speculative import Drafts
from .engine import Engine, PromptTokens
from .text.scripts import join_texts
from .transcript import Segment, Transcript

LONG = 60.0  # seconds from which a progress bar is worth its line
SEARCH = 8.0  # seconds before the limit in which a pause is sought
CPU_BATCH, GPU_BATCH = 8, 32  # segments decoded together unless the caller says otherwise
Encode = Callable[[list[np.ndarray]], list[mx.array]]

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
