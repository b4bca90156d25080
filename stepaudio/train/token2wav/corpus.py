"""Speech to train token2wav on: all clips in one array, sorted by speaker, with phonemes and F0 beside it.

A folder holds triples NAME.pcm (24 kHz int16), NAME.f0 (Hz, float16, one value for every 300 samples, 0 where
unvoiced) and NAME.jsonl (a line a clip: `offset`, `n_samples`, `person`, phoneme `ids` and their `durations` in frames
of 600 samples), as `data/recipe/kokoro_synth.py --pitch` writes them. Every clip is a whole number of codes long, so
any excerpt at a multiple of 960 samples begins with a code. No MLX here.

N samples; N / 300 values of F0; N / 600 phonemes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...audio.features import FLOW_SAMPLE_RATE
from ...errors import DataError
from ..batches import PHONEME_SPACE

F0_HOP, PHONEME_HOP, CODE_HOP = 300, 600, 960  # samples at 24 kHz
LEAD = 2  # frames by which a phoneme sounds before Kokoro's durations place it: measured on its fricatives and vowels
MOST_SAMPLES = (1 << 31) - (1 << 24)  # 32-bit indices suffice, with room for an excerpt at the end
STRESS, LENGTH = (156, 157), 158  # the synthesiser's ids of the marks before a stressed vowel and behind a long one
UNKNOWN = 0  # label of a frame whose phoneme is not known; real labels are one higher than the phoneme's id


class SpeechCorpus:
    """All clips of some folders in one array, or as many of them as `hours` allow.

    Parameters
    ----------
    folders : where the triples lie.
    hours : of speech, at most.
    seed : decides which clips are taken, and their order.

    Attributes
    ----------
    pcm : (N,) int16.
    f0 : (N / 300,) float32, Hz.
    phonemes : (N / 600,) uint8, at the time at which they sound.
    log_f0 : (N / 300,) float32, logarithm of F0 minus its mean over the clip; 0 where unvoiced.
    speakers : names of the speakers, as the index has them.
    edges : (speakers + 1,) int64, the samples at which each speaker begins, then the end.

    Raises
    ------
    DataError
        No clip there, or a clip that is not a whole number of codes.
    """

    def __init__(self, folders: Sequence[Path], hours: float = 12.0, seed: int = 0):
        clips = [clip for folder in folders for clip in _index(Path(folder))]
        if not clips:
            raise DataError(f"no clips in {', '.join(map(str, folders))}: expected NAME.pcm, NAME.f0 and NAME.jsonl")
        clips = _some(clips, min(hours * 3600 * FLOW_SAMPLE_RATE, MOST_SAMPLES), np.random.default_rng(seed))
        n = sum(clip["n_samples"] for clip in clips)
        self.pcm, self.phonemes = np.empty(n, np.int16), np.empty(n // PHONEME_HOP, np.uint8)
        self.f0, self.log_f0 = (np.empty(n // F0_HOP, np.float32) for _ in range(2))
        self.speakers: list = []
        edges, at = [], 0
        for clip in clips:
            if not self.speakers or self.speakers[-1] != clip["person"]:
                self.speakers.append(clip["person"])
                edges.append(at)
            self._put(clip, at)
            at += clip["n_samples"]
        self.edges = np.array([*edges, at])

    def _put(self, clip: dict, at: int) -> None:
        stop = at + clip["n_samples"]
        self.pcm[at:stop] = _read(clip, ".pcm", np.int16, 1)
        f0 = _read(clip, ".f0", np.float16, F0_HOP).astype(np.float32)
        part = slice(at // F0_HOP, stop // F0_HOP)
        self.f0[part], self.log_f0[part] = f0, relative_log_f0(f0)
        labels = sounding(clip["ids"], clip["durations"]) + 1
        labels = np.concatenate([labels[LEAD:], np.repeat(labels[-1:], LEAD)])[: len(labels)]
        self.phonemes[at // PHONEME_HOP : stop // PHONEME_HOP] = labels

    @property
    def hours(self) -> float:
        """Length of all clips."""
        return len(self.pcm) / FLOW_SAMPLE_RATE / 3600

    def windows(self, rng: np.random.Generator, count: int, n: int, step: int = CODE_HOP):
        """Random places of `count` excerpts of n samples, each of one speaker alone.

        Speakers are drawn in proportion to the places that they offer.

        Returns
        -------
        start : (count,) int32, first sample of each, a multiple of `step`.
        speaker : (count,) int32, index into `speakers`.

        Raises
        ------
        DataError
            No speaker has that much speech.
        """
        first = -(-self.edges[:-1] // step)
        last = (self.edges[1:] - n) // step
        room = np.maximum(last - first + 1, 0)
        if not room.sum():
            seconds = n / FLOW_SAMPLE_RATE
            raise DataError(f"no speaker has {seconds:.1f} s of speech: make more speech, or train on shorter excerpts")
        speaker = rng.choice(len(room), count, p=room / room.sum())
        start = (first[speaker] + (rng.random(count) * room[speaker]).astype(np.int64)) * step
        return start.astype(np.int32), speaker.astype(np.int32)


def sounding(ids: Sequence[int], durations: Sequence[int]) -> np.ndarray:
    """The phoneme that sounds in each frame.

    The synthesiser gives frames to marks, too: a fifth of all frames are a stress mark's or those between two words,
    and sound like their neighbours. The first half of such frames is the previous phoneme's, the second half the next
    one's; a length mark's are its vowel's. Pauses are one sound, whichever mark asks for them.

    Parameters
    ----------
    ids : of a clip, silence at both ends. durations : their lengths in frames.

    Returns
    -------
    (sum of `durations`,) int64, phoneme ids, 0 for silence.
    """
    sounds = np.array(ids)
    sounds[sounds < PHONEME_SPACE] = 0
    for k in np.flatnonzero(sounds == LENGTH):
        sounds[k] = sounds[k - 1]
    each = np.repeat(sounds, durations)
    frames, mark = np.arange(len(each)), np.isin(each, (PHONEME_SPACE, *STRESS))
    before = np.maximum.accumulate(np.where(mark, 0, frames))
    behind = np.minimum.accumulate(np.where(mark, len(each) - 1, frames)[::-1])[::-1]
    return each[np.where(frames - before <= behind - frames, before, behind)]


def relative_log_f0(f0: np.ndarray) -> np.ndarray:
    """(n,) Hz -> float32, logarithm of F0 minus its mean over the clip; 0 where unvoiced (0 Hz)."""
    voiced = f0 > 0
    if not voiced.any():
        return np.zeros_like(f0)
    log = np.log(np.maximum(f0, 1.0))
    return np.where(voiced, log - log[voiced].mean(), 0.0).astype(np.float32)


def _index(folder: Path) -> list[dict]:
    """The clips that are complete on disk; a line that its writer had not finished is left out."""
    clips = []
    for index in sorted(folder.glob("*.jsonl")):
        pcm, f0 = index.with_suffix(".pcm"), index.with_suffix(".f0")
        if not (f0.exists() and pcm.exists()):
            continue
        total = min(pcm.stat().st_size // 2, f0.stat().st_size // 2 * F0_HOP)
        for line in index.read_bytes().splitlines():
            try:
                clip = json.loads(line)
            except ValueError:
                continue
            n = clip["n_samples"]
            if n % CODE_HOP or n % PHONEME_HOP or sum(clip["durations"]) * PHONEME_HOP != n:
                raise DataError(
                    f"{index}: a clip of {n} samples; expected a whole number of codes ({CODE_HOP}) and of "
                    "phoneme frames, as its durations add up to"
                )
            if clip["offset"] + n <= total:
                clips.append(clip | {"file": index})
    return clips


def _some(clips: list[dict], most: float, rng: np.random.Generator) -> list[dict]:
    """As many clips as fit `most` samples, drawn at random, then sorted by speaker."""
    order = [clips[i] for i in rng.permutation(len(clips))]
    ends = np.cumsum([clip["n_samples"] for clip in order])
    return sorted(order[: max(1, int(np.searchsorted(ends, most, "right")))], key=lambda clip: clip["person"])


def _read(clip: dict, suffix: str, kind: type, hop: int) -> np.ndarray:
    offset = clip["offset"] // hop * np.dtype(kind).itemsize
    return np.fromfile(clip["file"].with_suffix(suffix), kind, clip["n_samples"] // hop, offset=offset)
