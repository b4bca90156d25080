"""Segmentation: long recordings into segments that the encoder can hold, with boundaries where nobody speaks.

Works on short-time energy alone: no model of speech, no files, no mels.
"""

from __future__ import annotations

import numpy as np

from ..constants import CHUNK_SECONDS, MIN_SECONDS, SAMPLE_RATE
from ..errors import AudioError, ConfigError

FRAME = SAMPLE_RATE // 50  # samples, 20 ms: the grid of energies, and of boundaries
SMOOTH_FRAMES = 10  # 0.2 s around a possible boundary; longer than the closure of a plosive inside a word
FLOOR_POWER = 1e-10  # -100 dB, so that digital silence has a level
SILENCE_DBFS = -60.0  # loudest 20 ms below this: nothing to hear
SPEECH_PERCENTILE = 90  # the level that stands for speech; the quietest 0.2 s stands for the noise under it
PAUSE_SHARE = 0.35  # a pause lies in the lowest third between noise and speech ...
PAUSE_DROP_DB = 30.0  # ... or this far below speech, whichever is the more generous
MIN_CONTRAST_DB = 6.0  # less between noise and speech, and there is no telling what is a pause
LONG_PAUSE_FRAMES = 12  # quarter of a second free on both sides of a boundary is as good as more
PAUSE_STEP = 3  # frames; pauses that differ by less count as equal
BLOCK_FRAMES = 4096  # frames whose energy is taken at a time


def cut_points(
    samples: np.ndarray, max_seconds: float = CHUNK_SECONDS, search_seconds: float = 8.0
) -> list[tuple[int, int]]:
    """Split a recording into segments of at most `max_seconds`, at pauses where there are any.

    Each boundary is sought in the last `search_seconds` before the limit: the middle of the longest pause, the latest
    among equals, else the quietest fifth of a second. When what remains is at most `max_seconds +
    search_seconds`, it is split near its middle instead, so that no short remainder is left at the end.

    Parameters
    ----------
    samples : np.ndarray of float, (n,)
        16 kHz.
    max_seconds : number
        Longest segment. The reference cuts at exactly 25 s, wherever that falls.
    search_seconds : number
        How far before the limit a boundary may lie, 0.1 to `max_seconds` / 2.

    Returns
    -------
    list of (start, end)
        In samples, end exclusive; the first starts at 0, each starts where the one before ends, the last ends
        at n. Where there are several, none is shorter than the smaller of `search_seconds` and (`max_seconds` -
        `search_seconds`) / 2: 8 s by default.

    Raises
    ------
    AudioError
        Not a mono float signal, empty, or with NaN or Inf.
    ConfigError
        A search window that does not fit the limit.

    Examples
    --------
    >>> cut_points(np.zeros(16_000 * 10, np.float32))
    [(0, 160000)]
    """
    samples = checked_samples(samples)
    limit, search = int(max_seconds * SAMPLE_RATE), int(search_seconds * SAMPLE_RATE)
    if not MIN_SECONDS * SAMPLE_RATE <= search <= limit / 2:
        raise ConfigError(
            f"search_seconds: expected {MIN_SECONDS} to half of max_seconds ({max_seconds / 2:g}), "
            f"found {search_seconds:g}"
        )
    if samples.size <= limit:
        return [(0, samples.size)]
    level = _smoothed_db(samples)
    starts = [0]
    while (left := samples.size - starts[-1]) > limit:
        latest = starts[-1] + (limit if left > limit + search else (left + search) // 2)
        starts.append(_best_boundary(level, starts[-1], latest - search, latest))
    return list(zip(starts, [*starts[1:], samples.size], strict=True))


def is_silent(samples: np.ndarray) -> bool:
    """Whether the loudest 20 ms stay below -60 dBFS (root mean square about the mean; 1.0 is 0 dBFS).

    Parameters
    ----------
    samples : np.ndarray of float, (n,)
        16 kHz. A constant offset counts as silence.

    Raises
    ------
    AudioError
        Not a mono float signal, empty, or with NaN or Inf.
    """
    samples = checked_samples(samples)
    frame = min(FRAME, samples.size)
    last = _frame_power(samples[-frame:], frame)  # the grid of frames may end before the recording does
    return bool(max(_frame_power(samples, frame).max(), last[0]) < 10 ** (SILENCE_DBFS / 10))


def checked_samples(samples: np.ndarray) -> np.ndarray:
    """The samples, (n,), if they are a mono float signal that is not empty; else `AudioError`."""
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype.kind != "f" or samples.size == 0:
        raise AudioError(
            f"expected float samples of shape (n,), found {samples.dtype} {samples.shape}; load_audio "
            f"makes such samples"
        )
    return samples


@np.errstate(invalid="ignore", over="ignore")  # reported by our own error instead
def _frame_power(samples: np.ndarray, frame: int = FRAME) -> np.ndarray:
    """Variance of every whole frame, float64, (n // frame,); about the mean, so that an offset is not loud."""
    frames = samples[: samples.size // frame * frame].reshape(-1, frame)
    power = np.empty(len(frames))
    for start in range(0, len(frames), BLOCK_FRAMES):
        frames[start : start + BLOCK_FRAMES].var(axis=1, dtype=np.float64, out=power[start : start + BLOCK_FRAMES])
    if not np.isfinite(power).all():
        raise AudioError("the samples hold NaN or Inf; load_audio says where")
    return power


def _smoothed_db(samples: np.ndarray) -> np.ndarray:
    """Level in dB of the 0.2 s around each boundary of frames, (n // FRAME + 1,): entry i is for sample i * FRAME."""
    power = _frame_power(samples)
    half, boundary = SMOOTH_FRAMES // 2, np.arange(len(power) + 1)
    total = np.convolve(power, np.ones(SMOOTH_FRAMES))[half - 1 : half + len(power)]
    count = np.minimum(boundary, half) + np.minimum(len(power) - boundary, half)  # fewer at both ends
    return 10 * np.log10(total / count + FLOOR_POWER)


def _best_boundary(level: np.ndarray, start: int, earliest: int, latest: int) -> int:
    """The sample in [earliest, latest] at which to end the segment that began at `start`."""
    lo, hi = -(-earliest // FRAME), latest // FRAME
    boundary = _pause_boundary(level, start // FRAME, lo, hi)
    if boundary is None:  # no pause: the quietest place, the latest among equals
        window = level[lo : hi + 1]
        boundary = lo + int(np.flatnonzero(window <= window.min() + 0.1)[-1])
    return boundary * FRAME


def _pause_boundary(level: np.ndarray, start: int, lo: int, hi: int) -> int | None:
    """The boundary in [lo, hi] deepest inside a pause, or None; `level` from `start` on says what a pause is."""
    context = level[start : hi + 1 + LONG_PAUSE_FRAMES]
    noise, speech = context.min(), np.percentile(context, SPEECH_PERCENTILE)
    if speech - noise < MIN_CONTRAST_DB:
        return None
    quiet = context < max(noise + PAUSE_SHARE * (speech - noise), speech - PAUSE_DROP_DB)
    edges = start + np.flatnonzero(np.diff(quiet, prepend=False, append=False)).reshape(-1, 2)  # [first, past end)
    best, best_score = None, -1
    for first, stop in edges:
        if first > hi or stop <= lo:
            continue
        boundary = min(max((first + stop - 1) // 2, lo), hi)
        score = min(boundary - first, stop - 1 - boundary, LONG_PAUSE_FRAMES) // PAUSE_STEP
        if score >= best_score:  # in order of time, so the latest of equals wins
            best, best_score = boundary, score
    return best if best is None else int(best)
