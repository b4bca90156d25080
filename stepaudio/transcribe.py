"""From a recording of any length to text with times: cut, decode piece by piece, join.

Knows no nets: a function that turns pieces of samples into finished runs is handed in, and so is the one that
turns ids into text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from tqdm import tqdm

from .audio.segment import cut_points, is_silent
from .constants import CHUNK_SECONDS, SAMPLE_RATE
from .decoding.generate import Run

LONG = 60.0  # seconds from which a progress bar is worth its line
SEARCH = 8.0  # seconds before the limit in which a cut is sought


@dataclass(frozen=True)
class Segment:
    """What was said in one piece: times in seconds, ids without the end mark, why decoding stopped.

    stop : "eos", "length", "stop string", "loop", or "silence" for a piece that was not decoded because nothing in
        it rises above -60 dBFS. loop : {period, onset, repeats} if the ids repeat. mean_logprob : natural log.
    """

    start: float
    end: float
    text: str | None
    ids: tuple[int, ...]
    stop: str
    mean_logprob: float
    loop: dict | None = None


@dataclass(frozen=True)
class Transcript:
    """A whole recording. `text` is None where the model was loaded without a tokenizer."""

    text: str | None
    segments: tuple[Segment, ...]
    audio_seconds: float
    wall_seconds: float

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of audio."""
        return self.wall_seconds / self.audio_seconds

    @property
    def loops(self) -> int:
        return sum(s.loop is not None for s in self.segments)

    def to_dict(self) -> dict:
        return asdict(self)


Decode = Callable[[list[np.ndarray]], list[Run]]
Spell = Callable[[Sequence[int]], str | None]


def transcribe_many(
    recordings: Sequence[np.ndarray],
    decode: Decode,
    spell: Spell,
    stop_ids: frozenset[int],
    batch: int,
    max_seconds: float = CHUNK_SECONDS,
    progress: bool | None = None,
) -> list[Transcript]:
    """Transcribe recordings together, `batch` pieces of similar length at a time.

    recordings : float32 samples at 16 kHz. `wall_seconds` of each is its share, by length, of the batches it was in.
    progress : show a bar on stderr; by default only for more than a minute of audio, and only on a terminal.
    """
    search = min(SEARCH, max_seconds / 2)
    pieces = [(r, *cut) for r, x in enumerate(recordings) for cut in cut_points(x, max_seconds, search)]
    segments: dict[tuple[int, int], Segment] = {}
    wall = np.zeros(len(recordings))
    loud = []
    for piece in pieces:
        r, start, stop = piece
        if is_silent(recordings[r][start:stop]):
            segments[r, start] = Segment(start / SAMPLE_RATE, stop / SAMPLE_RATE, spell(()), (), "silence", 0.0)
        else:
            loud.append(piece)
    loud.sort(key=lambda p: p[2] - p[1], reverse=True)
    seconds = sum(map(len, recordings)) / SAMPLE_RATE
    # Nobody asked: hidden if short, and otherwise None, which makes tqdm ask whether stderr is a terminal.
    hidden = not progress if progress is not None else seconds < LONG or None
    with tqdm(total=round(seconds), unit="s of audio", disable=hidden) as bar:
        bar.update(round(sum(s.end - s.start for s in segments.values())))
        for i in range(0, len(loud), batch):
            group, began = loud[i : i + batch], time.perf_counter()
            runs = decode([recordings[r][start:stop] for r, start, stop in group])
            spent, size = time.perf_counter() - began, sum(stop - start for _, start, stop in group)
            for (r, start, stop), run in zip(group, runs, strict=True):
                segments[r, start] = _segment(start, stop, run, spell, stop_ids)
                wall[r] += spent * (stop - start) / size
                bar.update(round((stop - start) / SAMPLE_RATE))
    parts: list[list[Segment]] = [[] for _ in recordings]
    for r, start in sorted(segments):
        parts[r].append(segments[r, start])
    return [_join(part, len(x), spent) for part, x, spent in zip(parts, recordings, wall, strict=True)]


def _segment(start: int, stop: int, run: Run, spell: Spell, stop_ids: frozenset[int]) -> Segment:
    ids = run.ids[:-1] if run.stop == "eos" and run.ids[-1] in stop_ids else run.ids
    text = spell(ids)
    return Segment(
        start / SAMPLE_RATE,
        stop / SAMPLE_RATE,
        None if text is None else text.strip(),
        tuple(ids),
        run.stop or "length",
        run.mean_logprob,
        None if run.loop is None else asdict(run.loop),
    )


def _join(segments: list[Segment], n_samples: int, wall: float) -> Transcript:
    texts = [s.text for s in segments if s.text]
    text = None if any(s.text is None for s in segments) else " ".join(texts)
    return Transcript(text, tuple(segments), n_samples / SAMPLE_RATE, float(wall))


def timed(transcript: Transcript, wall_seconds: float) -> Transcript:
    """The same transcript with the wall time that a caller measured around reading, cutting and decoding."""
    return replace(transcript, wall_seconds=wall_seconds)
