"""Speech to train the speaking half on: one long row of sound, sorted by who speaks, with phonemes and pitch beside it.

A folder holds triples NAME.pcm (24 kHz int16), NAME.f0 (Hz, float16, one for every 300 samples, 0 where there is no
voice) and NAME.jsonl (a line a clip: `offset`, `n_samples`, `person`, phoneme `ids` and their `durations` in frames of
600 samples), as `data/recipe/kokoro_synth.py --pitch` writes them. Every clip is a whole number of codes long, so
whatever is cut out of the row at a multiple of 960 samples is too. No MLX here.

N samples; N / 300 pitches; N / 600 phonemes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..mel_speaking import FLOW_SAMPLE_RATE

PITCH_HOP, PHONEME_HOP, CODE_HOP = 300, 600, 960  # samples at 24 kHz
LEAD = 2  # frames by which a phoneme is heard before Kokoro's durations say it is: measured on its hisses and vowels
MOST_SAMPLES = (1 << 31) - (1 << 24)  # so that 32-bit indices do, with room for what is cut at the end
UNKNOWN = 0  # phoneme of a frame about which nothing is known; real ones are one higher than their ids


class SpeakingCorpus:
    """All clips of some folders in one row, or as many of them as `hours` allow.

    Parameters
    ----------
    folders : where the triples lie. hours : of sound, at most. seed : which clips are taken, and their order.

    Attributes
    ----------
    pcm : (N,) int16. pitch : (N / 300,) float32 Hz. phonemes : (N / 600,) uint8, as they are heard.
    melody : (N / 300,) float32, logarithm of the pitch above its clip's mean; 0 where there is no voice.
    persons : names of who speaks, as the index has them. edges : (persons + 1,) int64, the samples at which each
        begins, then the end.

    Raises
    ------
    DataError : no clip there, or a clip that is not a whole number of codes.
    """

    def __init__(self, folders: list[Path], hours: float = 12.0, seed: int = 0):
        clips = [clip for folder in folders for clip in _index(Path(folder))]
        if not clips:
            raise DataError(f"no clips in {', '.join(map(str, folders))}: expected NAME.pcm, NAME.f0 and NAME.jsonl")
        clips = _some(clips, min(hours * 3600 * FLOW_SAMPLE_RATE, MOST_SAMPLES), np.random.default_rng(seed))
        n = sum(clip["n_samples"] for clip in clips)
        self.pcm, self.phonemes = np.empty(n, np.int16), np.empty(n // PHONEME_HOP, np.uint8)
        self.pitch, self.melody = (np.empty(n // PITCH_HOP, np.float32) for _ in range(2))
        self.persons, edges, at = [], [], 0
        for clip in clips:
            if not self.persons or self.persons[-1] != clip["person"]:
                self.persons.append(clip["person"])
                edges.append(at)
            self._put(clip, at)
            at += clip["n_samples"]
        self.edges = np.array([*edges, at])

    def _put(self, clip: dict, at: int) -> None:
        stop = at + clip["n_samples"]
        self.pcm[at:stop] = _read(clip, ".pcm", np.int16, 1)
        pitch = _read(clip, ".f0", np.float16, PITCH_HOP).astype(np.float32)
        part = slice(at // PITCH_HOP, stop // PITCH_HOP)
        self.pitch[part], self.melody[part] = pitch, melody(pitch)
        ids = np.repeat(np.array(clip["ids"]) + 1, clip["durations"])
        ids = np.concatenate([ids[LEAD:], np.repeat(ids[-1:], LEAD)])[: len(ids)]
        self.phonemes[at // PHONEME_HOP : stop // PHONEME_HOP] = ids

    @property
    def hours(self) -> float:
        return len(self.pcm) / FLOW_SAMPLE_RATE / 3600

    def windows(self, rng, rows: int, n: int, step: int = CODE_HOP, margin: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Where `rows` stretches of n samples begin, a multiple of `step`, and whose they are: both (rows,) int32.

        Each is one person's alone, drawn as often as that person speaks; `margin` samples on both sides exist, but may
        be another's.
        """
        first = -(-np.maximum(self.edges[:-1], margin) // step)
        last = (np.minimum(self.edges[1:], len(self.pcm) - margin) - n) // step
        room = np.maximum(last - first + 1, 0)
        if not room.sum():
            raise DataError(f"nobody speaks for {n / FLOW_SAMPLE_RATE:.1f} s: make more speech, or cut shorter pieces")
        who = rng.choice(len(room), rows, p=room / room.sum())
        start = (first[who] + (rng.random(rows) * room[who]).astype(np.int64)) * step
        return start.astype(np.int32), who.astype(np.int32)


def melody(pitch: np.ndarray) -> np.ndarray:
    """(n,) Hz -> logarithm of the pitch above its mean over the clip; 0 where there is no voice (0 Hz)."""
    voiced = pitch > 0
    if not voiced.any():
        return np.zeros_like(pitch)
    log = np.log(np.maximum(pitch, 1.0))
    return np.where(voiced, log - log[voiced].mean(), 0.0).astype(np.float32)


def _index(folder: Path) -> list[dict]:
    """The clips of which everything is there; a line that its writer had not finished is left out."""
    clips = []
    for index in sorted(folder.glob("*.jsonl")):
        if not (index.with_suffix(".f0").exists() and index.with_suffix(".pcm").exists()):
            continue
        total = min(index.with_suffix(".pcm").stat().st_size // 2,
                    index.with_suffix(".f0").stat().st_size // 2 * PITCH_HOP)
        for line in index.read_bytes().splitlines():
            try:
                clip = json.loads(line)
            except ValueError:
                continue
            n = clip["n_samples"]
            if n % CODE_HOP or n % PHONEME_HOP or sum(clip["durations"]) * PHONEME_HOP != n:
                raise DataError(f"{index}: a clip of {n} samples; expected a whole number of codes ({CODE_HOP}) and of "
                                "phoneme frames, as its durations add up to")
            if clip["offset"] + n <= total:
                clips.append(clip | {"file": index})
    return clips


def _some(clips: list[dict], most: float, rng) -> list[dict]:
    """As many clips as fit `most` samples, drawn at random, then sorted by who speaks."""
    order = [clips[i] for i in rng.permutation(len(clips))]
    ends = np.cumsum([clip["n_samples"] for clip in order])
    return sorted(order[: max(1, int(np.searchsorted(ends, most, "right")))], key=lambda clip: clip["person"])


def _read(clip: dict, suffix: str, kind, hop: int) -> np.ndarray:
    return np.fromfile(clip["file"].with_suffix(suffix), kind, clip["n_samples"] // hop,
                       offset=clip["offset"] // hop * np.dtype(kind).itemsize)
